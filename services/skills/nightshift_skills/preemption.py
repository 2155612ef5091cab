"""Making room for a user: gate, STOP, own runs, and only then the record (governance.md, Pre-emption)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.ids import IdFactory
from nightshift_skills.activity import ActivityRelay, GenerationReport
from nightshift_skills.fences import Fences
from nightshift_skills.gate import Closed, Gate
from nightshift_skills.stops import GRANTS_LAPSE_S, StopResult, Stops
from nightshift_skills.store.plane import Preemption

_log = structlog.get_logger("nightshift.skills.preemption")

# An older send time is a wrong clock or a report from a spool, not the latency of a stop.
_SANE_TRAVEL_S = 60.0
# Causes that stop what persons started on purpose, too.
STOPS_EVERYTHING = frozenset({"lock", "shutdown"})


@dataclass(frozen=True, slots=True)
class Heard:
    """Answer to a report; `generation` is to be kept before it is given."""

    fence: int
    preempted: bool
    preemption: str
    generation: GenerationReport | None = None


# Stores a pre-emption; `final` says that its last times are in. Called on the stop loop.
Recorder = Callable[[Preemption, bool], Awaitable[None]]


class Preemptor:
    """Hears of users on any thread, and stops background work from the stop loop."""

    def __init__(
        self,
        *,
        gate: Gate,
        fences: Fences,
        stops: Stops,
        relay: ActivityRelay,
        record: Recorder,
        clock: Clock,
        ids: IdFactory,
        on_begin: Callable[[Preemption], None] = lambda _preemption: None,
    ) -> None:
        """Args: `on_begin` hears of each pre-emption at once, in memory, on whatever thread it began."""
        self._gate = gate
        self._fences = fences
        self._stops = stops
        self._relay = relay
        self._record = record
        self._clock = clock
        self._ids = ids
        self._on_begin = on_begin
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Name of the pre-emption that keeps the gate closed; "" before the first.
        self._current = ""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says on which loop the stop channels live."""
        self._loop = loop

    def report(self, kind: str, send_time: datetime | None, count: int, run_id: str) -> Heard:
        """A user is here. Microseconds, from any thread; the stop goes on by itself."""
        arrived_ns = self._clock.boottime_ns()
        now = self._clock.now()
        # Noted in memory first: whoever asks the monitor for idleness after this sign must see that the
        # monitor has not heard of it yet.
        generation = self._relay.note(kind, now, max(count, 1), run_id)
        closed = self._gate.close()
        if closed.began:
            self._begin(closed, "user", now, send_time, arrived_ns)
        return Heard(closed.fence, closed.began, self._current, generation)

    async def keep(self, heard: Heard) -> None:
        """Makes what was heard outlive this process; on any loop, and never in the way of the stop."""
        await self._relay.keep(heard.generation)

    def stop_all(self, cause: str) -> bool:
        """Stops background work for another reason than a reported user; whether there was any need."""
        closed = self._gate.close(sign=cause == "user")
        if closed.began:
            for run in closed.stopped:
                run.cause = cause
            self._begin(closed, cause, self._clock.now(), None, self._clock.boottime_ns())
        return closed.began

    def lock(self) -> None:
        """Stops everything, what persons started on purpose included; the gate stays locked."""
        arrived_ns = self._clock.boottime_ns()
        self._begin(self._gate.engage(), "lock", self._clock.now(), None, arrived_ns)

    async def announce(self, cause: str, *, on_purpose_too: bool = False) -> StopResult:
        """Tells all services the fence in force and stops what runs under older ones. On the stop loop."""
        request = control_pb.StopRequest(
            fence=self._fences.current, cause=cause, on_purpose_too=on_purpose_too
        )
        return await self._stops.deliver(request)

    async def take_over(self) -> None:
        """Voids what a silent leader may still have in hand, persons' grants too. On the stop loop.

        Goes on until each service confirmed, or those grants have lapsed.
        """
        request = control_pb.StopRequest(fence=self._fences.current, cause="takeover", on_purpose_too=True)
        await self._stops.insist(request, GRANTS_LAPSE_S)

    async def announce_end(self) -> StopResult:
        """Raises the fence for the last time and stops everything, because the plane goes down."""
        self._gate.shut()
        self._fences.raise_one()
        return await self.announce("shutdown", on_purpose_too=True)

    async def stop_run(self, run_id: str) -> StopResult:
        """Stops the work of one run, without raising the fence. On the stop loop."""
        request = control_pb.StopRequest(
            fence=self._fences.current,
            cause="cancel",
            on_purpose_too=True,
            skill_run=f"skillRuns/{run_id}",
        )
        return await self._stops.deliver(request)

    async def settled(self) -> None:
        """Waits until all pre-emptions under way are recorded. On the stop loop."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _begin(
        self, closed: Closed, cause: str, now: datetime, send_time: datetime | None, arrived_ns: int
    ) -> None:
        travel_s = (now - send_time).total_seconds() if send_time is not None else 0.0
        sane = send_time is not None and 0 <= travel_s <= _SANE_TRAVEL_S
        origin_ns = arrived_ns - round(travel_s * 1e9) if sane else arrived_ns
        preemption = Preemption(
            id=self._ids(),
            fence=closed.fence,
            cause=cause,
            start_time=now,
            send_time=send_time if sane else None,
            t1_ns=max(0, self._clock.boottime_ns() - origin_ns),
            skill_runs=tuple(run.id for run in closed.stopped),
        )
        self._current = preemption.id
        self._on_begin(preemption)
        assert self._loop is not None, "attach() comes before the first report"
        self._loop.call_soon_threadsafe(self._start, preemption, closed, origin_ns)

    def _start(self, preemption: Preemption, closed: Closed, origin_ns: int) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._carry_out(preemption, closed, origin_ns))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, preemption: Preemption, closed: Closed, origin_ns: int) -> None:
        request = control_pb.StopRequest(
            fence=preemption.fence,
            cause=preemption.cause,
            on_purpose_too=preemption.cause in STOPS_EVERYTHING,
        )
        delivery = asyncio.ensure_future(self._stops.deliver(request, persist=True))
        # One turn of the loop puts STOP on the wire before anything else is done.
        await asyncio.sleep(0)
        for run in closed.stopped:
            run.cancel()
        recording = asyncio.ensure_future(self._keep(preemption, False))
        result = await delivery

        reached_ns = preemption.t1_ns

        def span(at_ns: int | None) -> int | None:
            # A point is reached when those before it are, whichever services and clocks tell of them: one
            # may have ended its work before another has heard of the stop.
            nonlocal reached_ns
            if at_ns is None:
                return None
            reached_ns = max(reached_ns, at_ns - origin_ns)
            return reached_ns

        preemption = replace(
            preemption,
            t2_ns=span(result.delivered_ns),
            t3_ns=span(result.cooperative_ns),
            t4_ns=span(result.done_ns),
            t5_ns=span(result.released_ns),
            t5_detail=result.release_detail,
            killed_count=result.killed_count,
            confirmed=result.confirmed,
            lapsed_services=result.lapsed,
        )
        await recording
        await self._keep(preemption, True)
        await self._refill()

    async def _keep(self, preemption: Preemption, final: bool) -> None:
        try:
            await self._record(preemption, final)
        except NightshiftError as error:
            # The stop itself has happened; a disk that refuses must not undo or delay it.
            _log.error("pre-emption not recorded", preemption=preemption.id, reason=error.reason)

    async def _refill(self) -> None:
        try:
            await asyncio.to_thread(self._fences.refill)
        except NightshiftError as error:
            _log.error("no further fences reserved", reason=error.reason)

"""Stopping background work: what the acting services put behind StopService.

    Stop(fence) ▸ gate raised in memory ▸ STOP to every work below the fence ▸ DELIVERED
                ▸ EXITED for each that ends ▸ 600 ms later: kill what has not ▸ … ▸ DONE
                ▸ RELEASED, where the service holds a GPU

A work is anything that goes on: a call under a background grant (tracked by the guard by itself), a worker
process, an indexing thread. Works may be registered from any thread; the hub's coroutines run on the control
server's event loop, so that a busy main loop delays no stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import structlog

from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError, Preempted
from nightshift_kit.grants import FenceGate, Grant

KILL_AFTER_S: Final = 0.6
# skills renews each second and promises 3 s; a second earlier nothing may be left that holds the GPU.
LEASE_S: Final = 2.0

_LOOK_EACH_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something that runs and can be stopped.

    Attributes:
        name: For the stop stream and the log ("training jobs/… worker 4711").
        skill_run: Run that it belongs to ("skillRuns/…").
        fence: Of its grant.
        on_purpose: Started by a person; a user's arrival does not stop it.
        stop: Asks it to end, giving the cause ("user", "lock", …); called from any thread, must not block.
        kill: Ends it for sure, as far as that is possible; called from any thread, must not block.
        leased: Whether it is stopped when skills has not renewed its run for 2 s.
    """

    name: str
    skill_run: str
    fence: int
    stop: Callable[[str], None]
    kill: Callable[[], None] | None = None
    on_purpose: bool = False
    leased: bool = False


class Phase(Enum):
    """What an event of a stop tells."""

    DELIVERED = "delivered"
    EXITED = "exited"
    DONE = "done"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class StopEvent:
    """One step of a stop; `boottime_ns` is CLOCK_BOOTTIME at that step, 0 where it cannot be told."""

    phase: Phase
    boottime_ns: int
    work: str = ""
    killed: bool = False
    running_count: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Whether what works held outside of their processes is back.

    Attributes:
        boottime_ns: Since when, on CLOCK_BOOTTIME; 0 where that cannot be told.
        detail: What that rests on, or why it cannot be told.
    """

    boottime_ns: int
    detail: str


@dataclass(slots=True, eq=False)
class Registration:
    """A work that is known to the hub. Call `done` when it has ended, from whatever thread."""

    work: Work
    hub: StopHub
    lease_ns: int
    stopped: bool = False
    killed: bool = False
    _waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)
    ended: bool = False

    @property
    def over_ns(self) -> int:
        """When a leased work is dead at the latest, on CLOCK_BOOTTIME, unless it is renewed; 0 for others.

        Whoever can see to that without this process running does: it may be stopped itself.
        """
        return self.lease_ns + self.hub.lease_over_ns if self.work.leased else 0

    def done(self) -> None:
        """The work has ended. A second call changes nothing."""
        self.hub.forget(self)


class StopHub:
    """All works of one service."""

    def __init__(
        self, gate: FenceGate, clock: Clock, *, kill_after_s: float = KILL_AFTER_S, lease_s: float = LEASE_S
    ) -> None:
        self.gate = gate
        self._clock = clock
        self._kill_after_s = kill_after_s
        self._lease_ns = round(lease_s * 1e9)
        # Looked at, asked and killed: from a renewal to the end of what was not renewed again.
        self.lease_over_ns = self._lease_ns + round((_LOOK_EACH_S + kill_after_s) * 1e9)
        self._lock = threading.Lock()
        self._running: set[Registration] = set()
        self._killers: set[asyncio.Task[None]] = set()
        self._release: Callable[[], Awaitable[Release]] | None = None
        self._logger: Any = structlog.get_logger()

    def register(self, work: Work) -> Registration:
        """Makes a work known.

        Check the fence (`gate.check` or `Effect.begin`) after this, not before: then a stop that comes in
        between reaches the work one way or the other.
        """
        registration = Registration(work, self, self._clock.boottime_ns())
        with self._lock:
            self._running.add(registration)
        return registration

    @contextmanager
    def running(self, work: Work) -> Iterator[Registration]:
        """Registers a work for the length of a block."""
        registration = self.register(work)
        try:
            yield registration
        finally:
            registration.done()

    def on_release(self, check: Callable[[], Awaitable[Release]]) -> None:
        """Says who tells, after each stop, when GPU memory is back. Awaited on the control loop."""
        self._release = check

    def forget(self, registration: Registration) -> None:
        """Behind Registration.done."""
        with self._lock:
            self._running.discard(registration)
            registration.ended = True
            waiters = registration._waiters
            registration._waiters = []
        for loop, event in waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def track_call(
        self, grant: Grant, name: str, interrupt: Callable[[NightshiftError], None]
    ) -> Callable[[], None]:
        """Registers the task of a call; the guard does this for every acting call.

        Background calls are leased as workers are: where skills has gone silent, nothing goes on for it.
        """

        def stop(cause: str) -> None:
            interrupt(
                Preempted(
                    "Stopped, because a user is here." if cause == "user" else f"Stopped: {cause}.",
                    metadata={"cause": cause},
                )
            )

        return self.register(
            Work(
                name=name,
                skill_run=grant.skill_run,
                fence=grant.fence,
                on_purpose=grant.on_purpose,
                stop=stop,
                leased=not grant.on_purpose,
            )
        ).done

    def skill_runs(self) -> list[str]:
        """Runs that have work here, sorted."""
        with self._lock:
            return sorted({one.work.skill_run for one in self._running})

    def works(self) -> list[str]:
        """Names of what runs, sorted."""
        with self._lock:
            return sorted(one.work.name for one in self._running)

    async def stop(
        self, fence: int, *, cause: str, on_purpose_too: bool = False, skill_run: str = ""
    ) -> AsyncIterator[StopEvent]:
        """Stops works and tells how that goes. Killing goes on where nobody listens to the end.

        Args:
            fence: The new fence; ignored with `skill_run`. What persons began under it or a higher one goes
                on, so that a skills that was replaced stops nothing of its successor.
            cause: Why ("user", "lock", "cancel", "shutdown", "platform_gone").
            on_purpose_too: Also what persons started.
            skill_run: Only this run's works, without raising the fence; "" means all.
        """
        if skill_run:
            hit = self._select(lambda work: work.skill_run == skill_run)
        else:
            # A call that a person's grant makes later than this is as stopped as one that runs now.
            self.gate.raise_in_memory(fence, everything=on_purpose_too)
            hit = self._select(
                lambda work: (
                    on_purpose_too and work.fence < fence
                    if work.on_purpose
                    else work.fence < self.gate.highest
                )
            )
        self._deliver(hit, cause)
        yield StopEvent(Phase.DELIVERED, self._clock.boottime_ns(), running_count=len(hit))
        durable = None if skill_run else asyncio.create_task(self._store(fence, everything=on_purpose_too))
        exits = {asyncio.ensure_future(self._exit(one)): one for one in hit}
        try:
            waiting = set(exits)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for exited in done:
                    one = exits[exited]
                    yield StopEvent(Phase.EXITED, exited.result(), one.work.name, one.killed)
        finally:
            for task in exits:
                task.cancel()
            if durable is not None:
                await durable
        yield StopEvent(Phase.DONE, self._clock.boottime_ns())
        if self._release is not None and not skill_run:
            release = await self._release()
            yield StopEvent(Phase.RELEASED, release.boottime_ns, detail=release.detail)

    async def renew(self, fence: int, skill_runs: Iterable[str]) -> tuple[int, list[str]]:
        """Opens the gate, renews leases, and stops background works of lower fences.

        Returns:
            The highest fence seen, and the runs that have work here.

        Raises:
            Preempted: the fence is below the highest seen; the caller is not the skills in force.
        """
        before = self.gate.highest
        if not self.gate.raise_in_memory(fence):
            raise Preempted(
                "The fence is below the highest seen here.",
                metadata={"fence": str(fence), "highest": str(self.gate.highest)},
            )
        runs = frozenset(skill_runs)
        now_ns = self._clock.boottime_ns()
        with self._lock:
            for one in self._running:
                if one.work.skill_run in runs:
                    one.lease_ns = now_ns
        if fence > before:
            # A stop did not get here; what it was for counts all the same.
            self._deliver(self._select(lambda work: not work.on_purpose and work.fence < fence), "fence")
            await self._store(fence)
        return self.gate.highest, self.skill_runs()

    async def watch_leases(self) -> None:
        """Stops leased works whose run was not renewed in time. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EACH_S)
            oldest_ns = self._clock.boottime_ns() - self._lease_ns
            with self._lock:
                lapsed = [one for one in self._running if one.work.leased and one.lease_ns < oldest_ns]
            self._deliver([one for one in lapsed if not one.stopped], "lease")

    def _select(self, wanted: Callable[[Work], bool]) -> list[Registration]:
        with self._lock:
            return [one for one in self._running if wanted(one.work)]

    def _deliver(self, hit: list[Registration], cause: str) -> None:
        fresh = [one for one in hit if not one.stopped]
        for one in fresh:
            one.stopped = True
            self._call(one, lambda work=one.work: work.stop(cause))  # type: ignore[misc]
        if fresh:
            killer = asyncio.create_task(self._kill_rest(fresh))
            self._killers.add(killer)
            killer.add_done_callback(self._killers.discard)

    async def _kill_rest(self, hit: list[Registration]) -> None:
        await asyncio.sleep(self._kill_after_s)
        while left := [one for one in hit if not one.ended]:
            for one in left:
                if not one.killed:
                    self._logger.warning("work did not exit in time and is killed", work=one.work.name)
                one.killed = True
                if one.work.kill is not None:
                    self._call(one, one.work.kill)
            await asyncio.sleep(_LOOK_EACH_S)

    def _call(self, one: Registration, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._logger.exception("stopping a work failed", work=one.work.name, exc_info=error)

    async def _exit(self, one: Registration) -> int:
        event = asyncio.Event()
        with self._lock:
            if not one.ended:
                one._waiters.append((asyncio.get_running_loop(), event))
            else:
                event.set()
        await event.wait()
        return self._clock.boottime_ns()

    async def _store(self, fence: int, *, everything: bool = False) -> None:
        try:
            await self.gate.raise_to(fence, everything=everything)
        except NightshiftError as error:
            # The gate is raised in memory, and closed after a start: a full disk must not keep work running.
            self._logger.exception("the fence is not durable", fence=fence, reason=error.reason)

"""The scheduler: on ticks and events, what may goes on, and what is due is started or proposed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift_kit.errors import NightshiftError
from nightshift_skills.agenda import Agenda
from nightshift_skills.autonomy import Autonomy
from nightshift_skills.books import Books
from nightshift_skills.budgets import Left
from nightshift_skills.executor import Executor
from nightshift_skills.expected import Expected
from nightshift_skills.gate import Gate
from nightshift_skills.health import HealthCheck
from nightshift_skills.jobs import JobPhase, view
from nightshift_skills.plans import Plan
from nightshift_skills.ports import MonitorPort, TrainerPort
from nightshift_skills.preemption import Preemptor
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import Proposals
from nightshift_skills.registry import Registry
from nightshift_skills.runs import WAITING, Run, RunState
from nightshift_skills.schedule import Entry, Situation
from nightshift_skills.skill import Skill
from nightshift_skills.store import decisions

_log = structlog.get_logger("nightshift.skills.scheduler")

# The monitor's codes that speak of a user. A monitor that starts anew, or a back-off, stops nothing that
# runs.
_USER_CODES = frozenset({"ACTIVITY", "QUIET", "IN_FLIGHT", "GPU_IN_USE", "EXPORTS_WRITTEN"})
_RECONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How the scheduler keeps time. Spans in seconds."""

    tick_s: float = 30.0
    platform_gone_grace_s: float = 60.0
    max_background_runs: int = 1


class Scheduler:
    """Starts by itself what may start by itself."""

    def __init__(
        self,
        *,
        pace: Pace,
        registry: Registry,
        agenda: Agenda,
        proposals: Proposals,
        progress: Progress,
        executor: Executor,
        gate: Gate,
        preemptor: Preemptor,
        relay_settled: Callable[[], bool],
        backoff_until: Callable[[], datetime | None],
        books: Books,
        monitor: MonitorPort,
        trainer: TrainerPort,
        health: HealthCheck,
        autonomy: Autonomy,
        claim_tick: Callable[[], Awaitable[float]],
        leads: Callable[[], bool] = lambda: True,
        on_quiet: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes a scheduler that has not begun.

        Args: `claim_tick` gives 0, or how long to wait for a tick that is ours; `leads` says whether this
        replica may act; `on_quiet` hears that the machine is idle again after users were there.
        """
        self._claim_tick = claim_tick
        self._leads = leads
        self._autonomy = autonomy
        self._pace = pace
        self._registry = registry
        self._agenda = agenda
        self._proposals = proposals
        self._progress = progress
        self._executor = executor
        self._gate = gate
        self._preemptor = preemptor
        self._relay_settled = relay_settled
        self._backoff_until = backoff_until
        self._books = books
        self._monitor = monitor
        self._trainer = trainer
        self._health = health
        self._on_quiet = on_quiet
        self._signs_heard = 0
        self._wake = asyncio.Event()
        self._idleness: monitor_types.Idleness | None = None
        self._gone_since_ns: int | None = None
        self._expected = Expected()

    def poke(self) -> None:
        """Something happened that may let work start. On the main loop."""
        self._wake.set()

    async def run(self) -> None:
        """Ticks until cancelled."""
        await self._begin()
        loop = asyncio.get_running_loop()
        next_tick_s = loop.time()
        while True:
            tick = loop.time() >= next_tick_s
            if tick:
                next_tick_s = loop.time() + self._pace.tick_s
            self._wake.clear()
            try:
                if self._leads():
                    if tick and (wait_s := await self._claim_tick()):
                        tick, next_tick_s = False, loop.time() + wait_s
                    await self.turn(tick=tick)
            except NightshiftError as error:
                _log.warning("turn cut short", reason=error.reason, error=error.message)
            try:
                async with asyncio.timeout_at(next_tick_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _begin(self) -> None:
        while True:
            try:
                await self._agenda.begin()
            except NightshiftError as error:
                _log.warning("the store does not answer yet", reason=error.reason)
                await asyncio.sleep(_RECONNECT_S)
            else:
                return

    async def watch_monitor(self) -> None:
        """Follows the monitor until cancelled, so that work starts and stops with the machine's idleness."""
        while True:
            try:
                async for response in self._monitor.watch_status():
                    if not response.keep_alive:
                        await self._heard(response.status.idleness)
            except NightshiftError as error:
                _log.info("monitor not watched", reason=error.reason)
            await asyncio.sleep(_RECONNECT_S)

    async def turn(self, *, tick: bool) -> None:
        """One look at everything."""
        if tick:
            await self._health.check(locked=self._gate.locked)
            await self._proposals.expire()
            await self._autonomy.look()
            await self._adopt_strays()
        await self._continue_on_purpose()
        situation = await self.reconsider()
        await self._settle_jobs()
        if not self._gate.is_open:
            return
        room = self._pace.max_background_runs - situation.running
        room = await self._continue_background(room, situation)
        if room > 0 and self._gate.is_open:
            await self._agenda.start_due(self._situation(settled=self._relay_settled()), room)

    async def reconsider(self) -> Situation:
        """Asks the monitor anew, and opens or shuts the gate accordingly."""
        signs = self._gate.signs
        settled = self._relay_settled()
        await self._ask_monitor()
        situation = self._situation(settled=settled)
        self._watch_platform(situation)
        if situation.quiet:
            if not self._gate.is_open and self._gate.try_open(signs) and signs > self._signs_heard:
                self._signs_heard = signs
                self._agenda.look_anew()
                self._on_quiet()
        elif self._gate.is_open or self._gate.live(background=True):
            if situation.monitor_known and self._user_here():
                self._preemptor.stop_all("user")
            else:
                self._gate.shut()
        return situation

    async def may_start(self, skill: Skill, plan: Plan) -> bool:
        """Whether a background plan may start now, beside what runs."""
        situation = await self.reconsider()
        return situation.room and self._gate.is_open and not self._agenda.may_begin(skill, plan, situation)

    async def quiet_remaining_s(self) -> float:
        """Least time until idle work may start, in seconds; at least 1."""
        remaining_s = 1.0
        if self._idleness is not None:
            remaining_s = max(remaining_s, self._idleness.quiet_remaining.ToNanoseconds() / 1e9)
        until = self._backoff_until()
        if until is not None:
            remaining_s = max(remaining_s, (until - self._books.clock.now()).total_seconds())
        return remaining_s

    async def entries(self) -> tuple[Situation, list[Entry]]:
        """The schedule: each skill, and whether and why (not) it would run."""
        settled = self._relay_settled()
        await self._ask_monitor()
        situation = self._situation(settled=settled)
        return situation, await self._agenda.entries(situation)

    async def budget_left(self) -> Left:
        """What all skills together have left today."""
        return await self._agenda.left()

    # What the monitor says.

    async def _heard(self, idleness: monitor_types.Idleness) -> None:
        self._idleness = idleness
        if not idleness.idle and (self._gate.is_open or self._gate.live(background=True)):
            # A message may be older than the last look: ask before anything is stopped.
            await self.reconsider()
        self.poke()

    async def _ask_monitor(self) -> None:
        try:
            self._idleness = await self._monitor.get_idleness()
        except NightshiftError:
            self._idleness = None

    def _user_here(self) -> bool:
        return self._idleness is not None and any(
            reason.code in _USER_CODES and not reason.allows_idle for reason in self._idleness.reasons
        )

    def _situation(self, *, settled: bool) -> Situation:
        idleness = self._idleness
        reasons: tuple[tuple[bool, str], ...] = ()
        if idleness is not None:
            reasons = tuple((reason.allows_idle, reason.message) for reason in idleness.reasons)
        if not settled:
            reasons = ((False, "The monitor has not heard of the last activity yet."), *reasons)
        now, now_ns = self._books.clock.now(), self._books.clock.boottime_ns()
        busy = _busy(idleness)
        if idleness is not None:
            self._expected.look(busy, now, now_ns)
        return Situation(
            now=now,
            monitor_known=idleness is not None,
            idle=idleness is not None and idleness.idle and settled,
            platform_up=idleness is not None and idleness.platform_up,
            idle_reasons=reasons,
            locked=self._gate.locked,
            backoff_until=self._backoff_until(),
            running=len(self._gate.live(background=True)),
            max_running=self._pace.max_background_runs,
            predicted_busy=busy,
            absent_s=self._expected.absent_s(_last_seen(idleness), now, now_ns),
        )

    def _watch_platform(self, situation: Situation) -> None:
        if not situation.monitor_known or situation.platform_up:
            self._gone_since_ns = None
            return
        now_ns = self._books.clock.boottime_ns()
        if self._gone_since_ns is None:
            self._gone_since_ns = now_ns
        gone_s = (now_ns - self._gone_since_ns) / 1e9
        if gone_s >= self._pace.platform_gone_grace_s and self._gate.live(background=True):
            _log.warning("the platform is gone; background work is stopped", gone_s=round(gone_s))
            self._preemptor.stop_all("platform_gone")

    # What goes on.

    async def _continue_on_purpose(self) -> None:
        if self._gate.locked:
            return
        for run in await self._books.read(decisions.runs_in, WAITING):
            if not self._registry.get(run.skill).background and not run.held:
                await self._start(run)

    async def _continue_background(self, room: int, situation: Situation) -> int:
        waiting = [
            run
            for run in await self._books.read(decisions.runs_in, WAITING)
            if not run.held
            and self._registry.get(run.skill).background
            and not self._executor.working(run.id)
        ]
        held_back = self._agenda.held_back(waiting, situation)
        for run in waiting:
            if room <= 0:
                break
            why = held_back.get(run.id)
            if why:
                if run.outcome != why:
                    await self._books.change(decisions.save_outcome, run.id, why)
            elif await self._start(run):
                room -= 1
        return room

    async def _start(self, run: Run) -> bool:
        if self._executor.resting(run.id):
            return False
        try:
            self._executor.start(run)
        except NightshiftError as error:
            _log.info("run not continued", run=run.id, reason=error.reason)
            return False
        return True

    async def _adopt_strays(self) -> None:
        """Runs that the store calls RUNNING and nobody works on: their end was not written down."""
        for run in await self._books.read(decisions.runs_in, [RunState.RUNNING]):
            if not self._executor.working(run.id):
                # Read again: it may have ended between the two looks.
                current = await self._progress.get(run.id)
                if current.state is RunState.RUNNING and not self._executor.working(run.id):
                    await self._progress.waiting(
                        run.id, RunState.INTERRUPTED, "Its end could not be written down; looked at again."
                    )

    async def _settle_jobs(self) -> None:
        """Waiting runs whose training ended, or was let go on, under another run."""
        for run in await self._books.read(decisions.runs_in, WAITING):
            if not run.job or self._executor.working(run.id):
                continue
            try:
                job = view(await self._trainer.get_job(run.job))
            except NightshiftError as error:
                _log.info("job not looked at", job=run.job, reason=error.reason)
                continue
            ends = {
                JobPhase.SUCCEEDED: RunState.SUCCEEDED,
                JobPhase.FAILED: RunState.FAILED,
                JobPhase.CANCELLED: RunState.CANCELLED,
            }
            if job.phase in ends:
                await self._progress.ended(run.id, ends[job.phase], job.outcome, failure=job.failure)


def _busy(idleness: monitor_types.Idleness | None) -> datetime | None:
    """When the monitor expects users next; None where it cannot tell."""
    if idleness is None or not idleness.HasField("predicted_busy_time"):
        return None
    return idleness.predicted_busy_time.ToDatetime(tzinfo=UTC)


def _last_seen(idleness: monitor_types.Idleness | None) -> datetime | None:
    """When a user was there last; where none is known, since when the machine is idle."""
    if idleness is None or not idleness.idle:
        return None
    known = idleness.HasField("last_activity_time")
    time = idleness.last_activity_time if known else idleness.since_time
    return time.ToDatetime(tzinfo=UTC)

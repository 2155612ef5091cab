"""What is true now: joins probes, activity and witnesses into one status, and says each change at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_monitor.activity import NANOSECONDS, ActivityLedger, ActivityReport
from nightshift_monitor.board import Board, Posted
from nightshift_monitor.config import MonitorSettings
from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.gpus import GpuReader, GpuWatch
from nightshift_monitor.hours import ActivityHours, HourCount, Profile
from nightshift_monitor.idleness import ExportsFact, Facts, Idleness, Judgement, UseFact, judge
from nightshift_monitor.incidents import Incidents
from nightshift_monitor.looks import Look
from nightshift_monitor.observations import GpuReading, ProbeResult
from nightshift_monitor.probing import Prober
from nightshift_monitor.resources import ProbeName
from nightshift_monitor.status import ProbeView, StatusView
from nightshift_monitor.store.records import Records

_LOG = logging.getLogger(__name__)

# Between two savings of the activity: a crash forgets at most this much, and a busy hour costs four fsyncs
# a second.
SAVE_SPACING_S = 0.25
# Readings that merely moved are told once in this while; changes of state are told at once.
REFRESH_SPACING_S = 1.0
PRUNE_INTERVAL_S = 3600.0


class UseWitness(Protocol):
    """Somebody who knows whether the platform uses the machine."""

    async def ask(self) -> UseFact:
        """Asks once; never raises for what it may meet."""
        ...


class NewestExport(Protocol):
    """Somebody who knows when the platform last wrote an export."""

    async def ask(self) -> ExportsFact:
        """Looks once; never raises for what it may meet."""
        ...


class Monitor:
    """The monitor's core. ``start`` it inside an event loop; everything else runs on that loop."""

    def __init__(
        self,
        settings: MonitorSettings,
        probes: Sequence[ProbeDeclaration],
        looks: Mapping[str, Look],
        records: Records,
        gpus: GpuReader,
        incidents: Incidents,
        *,
        clock: Clock,
        time_zone: str = "UTC",
        uses: Sequence[UseWitness] = (),
        exports: NewestExport | None = None,
    ) -> None:
        self._settings = settings
        self._records = records
        self._gpus = GpuWatch(
            gpus, interval_s=settings.gpu_watch_interval_s, keep_alive_s=settings.keep_alive_s
        )
        self._incidents = incidents
        self._hours = ActivityHours(
            time_zone,
            half_life_weeks=settings.activity_half_life_weeks,
            busy_probability=settings.busy_probability,
        )
        self._clock = clock
        self._uses = tuple(uses)
        self._exports = exports
        self._prober = Prober(
            probes,
            looks,
            clock=clock,
            default_interval_s=settings.probe_interval_s,
            recheck_interval_s=settings.recheck_interval_s,
            on_result=self._on_result,
        )
        self._ledger: ActivityLedger
        self._board: Board[StatusView]
        self._use_facts: tuple[UseFact, ...] = ()
        self._exports_fact: ExportsFact | None = None
        self._verdict: Judgement
        self._verdict_since: datetime
        self._timer: asyncio.TimerHandle | None = None
        self._refresh: asyncio.TimerHandle | None = None
        self._unsaved = asyncio.Event()
        self._noted_count = 0
        self._saved_count = 0
        self._saving: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Takes up what the store knows and begins to look."""
        now, now_ns = self._clock.now(), self._clock.boottime_ns()
        record = await self._records.load_activity()
        self._ledger = ActivityLedger(
            record, now=now, now_ns=now_ns, in_flight_timeout_s=self._settings.in_flight_timeout_s
        )
        self._hours.recall(*await self._records.load_hours(now - self._hours.memory))
        names = [probe.name for probe in self._prober.probes]
        self._prober.recall(await self._records.latest_results(names))
        await self._incidents.start(names)
        await self._gpus.read()
        await self._ask_witnesses()
        self._verdict = self._judge()
        self._verdict_since = now
        self._board = Board(self._view())
        self._arm(self._verdict)
        self._incidents.listen(lambda _: self.evaluate())
        self._prober.start()
        self._run(self._save_for_ever())
        self._run(self._prune_for_ever())
        if self._uses or self._exports is not None:
            self._run(self._corroborate_for_ever())

    async def stop(self) -> None:
        """Ends the looking and the streams, and saves the activity."""
        for handle in (self._timer, self._refresh):
            if handle is not None:
                handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._prober.stop()
        self._gpus.close()
        self._board.close()
        if self._saving is not None:
            await asyncio.gather(self._saving, return_exceptions=True)
        # Counted rather than asked of the event: the last saving may have failed.
        if self._saved_count != self._noted_count:
            with contextlib.suppress(NightshiftError):
                await self._save()

    def record_activity(self, report: ActivityReport) -> None:
        """Takes in a report: the verdict changes before this returns, the store follows.

        A store that cannot be written does not keep a user from counting.
        """
        now = self._clock.now()
        self._ledger.note(report, now=now, now_ns=self._clock.boottime_ns())
        self._hours.note(report, now)
        self._noted_count += 1
        self._unsaved.set()
        self.evaluate()

    def idleness(self) -> Idleness:
        """The verdict now, with reasons."""
        self.evaluate()
        return self._idleness()

    async def status(self) -> StatusView:
        """Everything now; the GPUs are read afresh."""
        await self._gpus.read()
        self.evaluate()
        return self._view()

    async def gpus(self) -> GpuReading:
        """The GPUs now."""
        return await self._gpus.read()

    def watch_gpus(self, after_seq: int) -> AsyncIterator[Posted[GpuReading]]:
        """The GPUs first (or only changes after ``after_seq``), then each change, and keep-alives."""
        return self._gpus.watch(after_seq)

    @property
    def incidents(self) -> Incidents:
        """What went wrong for longer than a glitch."""
        return self._incidents

    def profile(self) -> Profile:
        """What past weeks tell of each hour of the week."""
        return self._hours.profile(self._clock.now())

    async def activity_hours(self, *, before_us: int, limit: int) -> list[tuple[int, datetime, HourCount]]:
        """Kept hours with their positions, newest first, those before a position (0 for all)."""
        return await self._records.list_hours(before_us=before_us, limit=limit)

    @property
    def newest(self) -> StatusView:
        """The status as it was posted last; from any thread."""
        return self._board.newest.state

    def watch(self, after_seq: int) -> AsyncIterator[Posted[StatusView]]:
        """The status first (or only changes after ``after_seq``), then each change, and keep-alives."""
        return self._board.watch(after_seq, keep_alive_s=self._settings.keep_alive_s)

    def probes(self, *, after: str, limit: int) -> list[ProbeView]:
        """Declared probes by name, those after the name ``after`` ("" for all)."""
        return [self._probe_view(probe) for probe in self._prober.probes if probe.name > after][:limit]

    def probe(self, name: ProbeName) -> ProbeView:
        """One probe.

        Raises:
            ProbeUnknown: if none of that name is declared.
        """
        return self._probe_view(self._prober.probe(name))

    async def run_probe(self, name: ProbeName) -> ProbeResult:
        """Looks now; the answer is stored before this returns.

        Raises:
            ProbeUnknown: if none of that name is declared.
        """
        return await self._prober.look_now(name)

    async def probe_results(
        self, name: ProbeName, *, before_id: str, limit: int
    ) -> list[tuple[str, ProbeResult]]:
        """Stored answers with their ids, newest first.

        Raises:
            ProbeUnknown: if none of that name is declared.
        """
        probe = self._prober.probe(name)
        return await self._records.list_results(probe.name, before_id=before_id, limit=limit)

    def evaluate(self) -> None:
        """Weighs the facts again; posts the status at once if its outline changed."""
        verdict = self._judge()
        if verdict.idle != self._verdict.idle:
            self._verdict_since = self._clock.now()
            _LOG.info(
                "machine is %s", "idle" if verdict.idle else "not idle", extra={"reasons": _codes(verdict)}
            )
        self._verdict = verdict
        self._arm(verdict)
        view = self._view()
        if view.outline() != self._board.newest.state.outline():
            self._board.post(view)
        elif self._refresh is None:
            self._refresh = asyncio.get_running_loop().call_later(REFRESH_SPACING_S, self._post_refresh)

    def _post_refresh(self) -> None:
        self._refresh = None
        self._board.post(self._view())

    def _judge(self) -> Judgement:
        now_ns = self._clock.boottime_ns()
        facts = Facts(
            quiet_ns=round(self._settings.quiet_s * NANOSECONDS),
            quiet_since_ns=self._ledger.quiet_since_ns,
            activity_known=self._ledger.known,
            in_flight_starts_ns=tuple(self._ledger.in_flight_starts_ns(now_ns)),
            in_flight_timeout_ns=round(self._settings.in_flight_timeout_s * NANOSECONDS),
            quiet_until_ns=self._ledger.quiet_until_ns,
            platform=self._prober.platform(),
            uses=self._use_facts,
            exports=self._exports_fact,
        )
        return judge(facts, now_ns)

    def _arm(self, verdict: Judgement) -> None:
        """Wakes exactly when time alone may change the verdict."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if verdict.next_change_ns is None:
            return
        delay_s = max(0.0, (verdict.next_change_ns - self._clock.boottime_ns()) / NANOSECONDS)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.evaluate)

    def _idleness(self) -> Idleness:
        return Idleness(
            idle=self._verdict.idle,
            reasons=self._verdict.reasons,
            since=self._verdict_since,
            last_activity=self._ledger.last_activity,
            quiet_remaining_s=self._verdict.quiet_remaining_ns / NANOSECONDS,
            platform_up=self._verdict.platform_up,
            predicted_busy=self._hours.predicted(self._clock.now()),
        )

    def _view(self) -> StatusView:
        return StatusView(
            time=self._clock.now(),
            probes=tuple(self._probe_view(probe) for probe in self._prober.probes),
            gpus=self._gpus.latest,
            idleness=self._idleness(),
            incidents=self._incidents.unresolved,
        )

    def _probe_view(self, probe: ProbeDeclaration) -> ProbeView:
        return ProbeView(probe, self._prober.interval_s(probe), self._prober.latest(probe.name))

    async def _on_result(self, result: ProbeResult) -> None:
        if self._prober.probe(ProbeName(result.probe)).kind == "gpu":
            await self._gpus.read()
        self.evaluate()
        try:
            await self._records.append_result(result)
        except NightshiftError as error:
            # The answer stands in memory; a monitor that cannot write its history still has to watch.
            _LOG.warning("a probe's answer could not be stored: %s", error, extra={"probe": result.probe})
        await self._incidents.observe(result)

    async def _ask_witnesses(self) -> None:
        self._use_facts = tuple(await asyncio.gather(*(witness.ask() for witness in self._uses)))
        if self._exports is not None:
            self._exports_fact = await self._exports.ask()

    async def _corroborate_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.corroborate_interval_s)
            await self._ask_witnesses()
            self.evaluate()

    async def _save_for_ever(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            try:
                await self._save()
            except NightshiftError as error:
                _LOG.warning("the activity could not be stored: %s", error)
                self._unsaved.set()
            await asyncio.sleep(SAVE_SPACING_S)

    async def _save(self) -> None:
        # Never cut short: nobody could tell whether the hours that were handed over have been added.
        self._saving = asyncio.create_task(self._save_once(), name="save activity")
        await asyncio.shield(self._saving)

    async def _save_once(self) -> None:
        noted_count = self._noted_count
        record = self._ledger.record(now=self._clock.now(), now_ns=self._clock.boottime_ns())
        hours = self._hours.take_unsaved()
        try:
            await self._records.save_activity(record, hours)
        except NightshiftError:
            self._hours.give_back(hours)
            raise
        self._saved_count = noted_count

    async def _prune_for_ever(self) -> None:
        while True:
            try:
                now, settings = self._clock.now(), self._settings
                await self._records.prune(
                    before=now - timedelta(days=settings.history_days),
                    rows_per_probe=settings.history_rows_per_probe,
                )
                await self._records.prune_hours(before=now - timedelta(days=settings.activity_days))
                await self._incidents.prune(before=now - timedelta(days=settings.incident_days))
            except NightshiftError as error:
                _LOG.warning("what is old could not be removed: %s", error)
            await asyncio.sleep(PRUNE_INTERVAL_S)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_complain)
        self._tasks.append(task)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("a loop of the monitor ended", exc_info=error)


def _codes(verdict: Judgement) -> list[str]:
    return [reason.code for reason in verdict.reasons if not reason.allows_idle]

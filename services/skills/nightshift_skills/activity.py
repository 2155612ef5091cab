"""Passing users' activity on to the monitor: coalesced, never in the way of a stop. Thread-safe.

Each kind goes out at most once a second, with its count; beginnings and ends of generations always go out
one by one, because the monitor pairs them by run id. A beginning or end that is acknowledged and not passed
on yet is in the store: were an end lost with this process, the machine would count as busy for half an hour.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift_kit.errors import NightshiftError
from nightshift_kit.ids import IdFactory, new_id
from nightshift_skills.ports import MonitorPort

_log = structlog.get_logger("nightshift.skills.activity")

PAIRED_KINDS = frozenset({"generation_started", "generation_finished"})
_INTERVAL_S = 1.0
# Distinct words that are told apart; further ones are passed on as "other".
_KINDS = 32
_PAIRED_WAITING = 10_000
# Reports that one may stand for. The monitor takes no more, and sums beyond say nothing.
MOST_REPORTS = 1_000_000_000


@dataclass(slots=True)
class _Heap:
    """Reports of one kind that wait to be passed on together."""

    count: int
    time: datetime


@dataclass(slots=True, eq=False)
class GenerationReport:
    """The beginning or the end of one generation; `kept` in the store, `passed` on to the monitor."""

    id: str
    kind: str
    run_id: str
    count: int
    time: datetime
    kept: bool = False
    passed: bool = False

    def request(self) -> monitor_pb.RecordActivityRequest:
        """As the monitor is told."""
        request = monitor_pb.RecordActivityRequest(kind=self.kind, count=self.count, run_id=self.run_id)
        request.activity_time.FromDatetime(self.time)
        return request


class ReportStore(Protocol):
    """Where reports on generations are until the monitor has them. From any loop."""

    async def save(self, report: GenerationReport) -> None:
        """On disk when it returns."""
        ...

    async def drop(self, ids: Sequence[str]) -> None:
        """Forgets reports that were passed on."""
        ...


class ActivityRelay:
    """Collects reports on any thread and passes them on from one loop."""

    def __init__(
        self,
        monitor: MonitorPort,
        quiet_until: Callable[[], datetime | None],
        *,
        store: ReportStore | None = None,
        waiting: Sequence[GenerationReport] = (),
        ids: IdFactory = new_id,
    ) -> None:
        """Args: `waiting` are reports that an earlier life acknowledged and did not pass on."""
        self._monitor = monitor
        self._quiet_until = quiet_until
        self._store = store
        self._ids = ids
        self._lock = threading.Lock()
        self._heaps: dict[str, _Heap] = {}
        self._paired: deque[GenerationReport] = deque(waiting, maxlen=_PAIRED_WAITING)
        self._sending = 0
        self._woken = False
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settled(self) -> bool:
        """Whether the monitor has heard of everything that was reported."""
        with self._lock:
            return not (self._heaps or self._paired or self._sending)

    def note(self, kind: str, time: datetime, count: int, run_id: str) -> GenerationReport | None:
        """Takes one report; microseconds, from any thread.

        Returns:
            For `keep`, where it is about a generation.
        """
        report: GenerationReport | None = None
        with self._lock:
            if kind in PAIRED_KINDS and run_id:
                report = GenerationReport(self._ids(), kind, run_id, count, time)
                self._paired.append(report)
            else:
                key = kind if kind in self._heaps or len(self._heaps) < _KINDS else "other"
                heap = self._heaps.get(key)
                if heap is None:
                    self._heaps[key] = _Heap(min(count, MOST_REPORTS), time)
                else:
                    heap.count = min(heap.count + count, MOST_REPORTS)
                    heap.time = time
            woken, self._woken = self._woken, True
        if not woken and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
        return report

    async def keep(self, report: GenerationReport | None) -> None:
        """Before a report is acknowledged: it outlives this process, unless the monitor has it already.

        A disk that refuses is logged: what it costs is little, and a user's report must not fail for it.
        """
        if report is None or report.passed or self._store is None:
            return
        try:
            await self._store.save(report)
        except NightshiftError as error:
            _log.error("report kept in memory alone", kind=report.kind, reason=error.reason)
            return
        if self._passed_meanwhile(report):
            await self._drop([report.id])

    def _passed_meanwhile(self, report: GenerationReport) -> bool:
        with self._lock:
            report.kept = True
            return report.passed

    async def run(self) -> None:
        """Passes reports on until cancelled. The loop on which this runs is the relay's."""
        self._loop = asyncio.get_running_loop()
        last_sent: dict[str, float] = {}
        while True:
            now_s = self._loop.time()
            for kind in [kind for kind, at_s in last_sent.items() if now_s - at_s >= _INTERVAL_S]:
                del last_sent[kind]
            heaps, reports = self._take(last_sent)
            failed = False
            for report in reports:
                failed = failed or not await self._send(report.request())
                report.passed = not failed
            for kind, heap in heaps.items():
                failed = failed or not await self._send(_request(kind, heap))
                if failed:
                    self._put_back(kind, heap)
                else:
                    last_sent[kind] = now_s
            await self._done(reports)
            if failed or self._waiting():
                await asyncio.sleep(_INTERVAL_S if failed else 0.05)
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        with self._lock:
            self._woken = False
            if self._heaps or self._paired:
                return
        await self._wake.wait()
        self._wake.clear()

    def _waiting(self) -> bool:
        with self._lock:
            return bool(self._heaps or self._paired)

    def _take(self, last_sent: dict[str, float]) -> tuple[dict[str, _Heap], list[GenerationReport]]:
        with self._lock:
            reports = list(self._paired)
            self._paired.clear()
            due = [kind for kind in self._heaps if kind not in last_sent]
            heaps = {kind: self._heaps.pop(kind) for kind in due}
            self._sending = len(reports) + len(heaps)
        return heaps, reports

    def _put_back(self, kind: str, heap: _Heap) -> None:
        with self._lock:
            newer = self._heaps.setdefault(kind, _Heap(0, heap.time))
            newer.count = min(newer.count + heap.count, MOST_REPORTS)
            newer.time = max(newer.time, heap.time)

    async def _done(self, reports: Sequence[GenerationReport]) -> None:
        with self._lock:
            # In front of what came meanwhile: a generation begins before it ends.
            self._paired.extendleft(report for report in reversed(reports) if not report.passed)
            self._sending = 0
            kept = [report.id for report in reports if report.passed and report.kept]
        await self._drop(kept)

    async def _drop(self, ids: Sequence[str]) -> None:
        if not ids or self._store is None:
            return
        try:
            await self._store.drop(ids)
        except NightshiftError as error:
            # Told again after the next start; the monitor knows a generation by its run id.
            _log.warning("report not forgotten", reason=error.reason)

    async def _send(self, request: monitor_pb.RecordActivityRequest) -> bool:
        until = self._quiet_until()
        if until is not None:
            request.quiet_until_time.FromDatetime(until)
        try:
            await self._monitor.record_activity(request)
        except NightshiftError as error:
            _log.warning("activity not passed on", reason=error.reason)
            return False
        return True


def _request(kind: str, heap: _Heap) -> monitor_pb.RecordActivityRequest:
    request = monitor_pb.RecordActivityRequest(kind=kind, count=heap.count)
    request.activity_time.FromDatetime(heap.time)
    return request

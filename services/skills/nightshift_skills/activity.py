"""Passing users' activity on to the monitor: coalesced, never in the way of a stop. Thread-safe.

Each kind goes out at most once a second, with its count; beginnings and ends of generations always go out
one by one, because the monitor pairs them by run id.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift_kit.errors import NightshiftError
from nightshift_skills.ports import MonitorPort

_log = structlog.get_logger("nightshift.skills.activity")

PAIRED_KINDS = frozenset({"generation_started", "generation_finished"})
_INTERVAL_S = 1.0
# Distinct words that are told apart; further ones are passed on as "other".
_KINDS = 32
_PAIRED_WAITING = 10_000


@dataclass(slots=True)
class _Heap:
    """Reports of one kind that wait to be passed on together."""

    count: int
    time: datetime


class ActivityRelay:
    """Collects reports on any thread and passes them on from one loop."""

    def __init__(self, monitor: MonitorPort, quiet_until: Callable[[], datetime | None]) -> None:
        self._monitor = monitor
        self._quiet_until = quiet_until
        self._lock = threading.Lock()
        self._heaps: dict[str, _Heap] = {}
        self._paired: deque[monitor_pb.RecordActivityRequest] = deque(maxlen=_PAIRED_WAITING)
        self._sending = 0
        self._woken = False
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def settled(self) -> bool:
        """Whether the monitor has heard of everything that was reported."""
        with self._lock:
            return not (self._heaps or self._paired or self._sending)

    def note(self, kind: str, time: datetime, count: int, run_id: str) -> None:
        """Takes one report; microseconds, from any thread."""
        with self._lock:
            if kind in PAIRED_KINDS and run_id:
                request = monitor_pb.RecordActivityRequest(kind=kind, count=count, run_id=run_id)
                request.activity_time.FromDatetime(time)
                self._paired.append(request)
            else:
                key = kind if kind in self._heaps or len(self._heaps) < _KINDS else "other"
                heap = self._heaps.get(key)
                if heap is None:
                    self._heaps[key] = _Heap(count, time)
                else:
                    heap.count += count
                    heap.time = time
            woken, self._woken = self._woken, True
        if not woken and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Passes reports on until cancelled. The loop on which this runs is the relay's."""
        self._loop = asyncio.get_running_loop()
        last_sent: dict[str, float] = {}
        while True:
            now_s = self._loop.time()
            for kind in [kind for kind, at_s in last_sent.items() if now_s - at_s >= _INTERVAL_S]:
                del last_sent[kind]
            batch = self._take(last_sent)
            failed = False
            for request in batch:
                failed = failed or not await self._send(request)
                if failed:
                    self._put_back(request)
                else:
                    last_sent[request.kind] = now_s
            self._done(batch)
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

    def _take(self, last_sent: dict[str, float]) -> list[monitor_pb.RecordActivityRequest]:
        until = self._quiet_until()
        with self._lock:
            batch = list(self._paired)
            self._paired.clear()
            for kind in [kind for kind in self._heaps if kind not in last_sent]:
                heap = self._heaps.pop(kind)
                request = monitor_pb.RecordActivityRequest(kind=kind, count=heap.count)
                request.activity_time.FromDatetime(heap.time)
                batch.append(request)
            self._sending = len(batch)
        if until is not None:
            for request in batch:
                request.quiet_until_time.FromDatetime(until)
        return batch

    def _put_back(self, request: monitor_pb.RecordActivityRequest) -> None:
        with self._lock:
            if request.run_id:
                self._paired.append(request)
                return
            time = request.activity_time.ToDatetime(tzinfo=UTC)
            heap = self._heaps.setdefault(request.kind, _Heap(0, time))
            heap.count += request.count
            heap.time = max(heap.time, time)

    def _done(self, batch: list[monitor_pb.RecordActivityRequest]) -> None:
        with self._lock:
            self._sending = 0

    async def _send(self, request: monitor_pb.RecordActivityRequest) -> bool:
        try:
            await self._monitor.record_activity(request)
        except NightshiftError as error:
            _log.warning("activity not passed on", reason=error.reason)
            return False
        return True

"""Activity that waits to be told: requests put together, generations each told on its own and in order."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

GENERATION_KINDS = frozenset({"generation_started", "generation_finished"})
MAX_KINDS = 64
MAX_GENERATION_EVENTS = 1_000
# The plane forgets a generation that never finished after half an hour; older news helps nobody.
GENERATION_EVENT_AGE_S = 1_800.0

_KIND = re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class Report:
    """One report to send: ``count`` reports of one kind, the first of them at ``time_ns`` (Unix time)."""

    kind: str
    count: int
    run_id: str
    time_ns: int


@dataclass(slots=True)
class _Pending:
    count: int = 0
    time_ns: int = 0
    sent_at: float | None = None
    in_flight: bool = False


class ActivityQueue:
    """Coalesces reports: the first of a kind goes at once, then at most one a ``spacing_s``; thread-safe."""

    def __init__(
        self,
        *,
        spacing_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spacing_s = spacing_s
        self._clock = clock
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._kinds: dict[str, _Pending] = {}
        self._generations: deque[Report] = deque()
        self._generation_in_flight = False
        self.lost_count = 0

    def add(self, kind: str, run_id: str = "") -> None:
        """Notes one report; a kind that the plane would refuse becomes ``request``."""
        if not _KIND.fullmatch(kind):
            kind = "request"
        with self._lock:
            if kind in GENERATION_KINDS:
                if len(self._generations) >= MAX_GENERATION_EVENTS:
                    self._generations.popleft()
                    self.lost_count += 1
                self._generations.append(Report(kind, 1, run_id, self._clock_ns()))
                return
            if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
                kind = "request"
            pending = self._kinds.setdefault(kind, _Pending())
            if pending.count == 0:
                pending.time_ns = self._clock_ns()
            pending.count += 1

    def take(self) -> list[Report]:
        """What may be sent now; each must come back by ``done``."""
        now = self._clock()
        with self._lock:
            reports = []
            for kind, pending in self._kinds.items():
                if pending.count and self._due_at(pending, now) <= now:
                    reports.append(Report(kind, pending.count, "", pending.time_ns))
                    pending.count, pending.sent_at, pending.in_flight = 0, now, True
            self._forget_old()
            if self._generations and not self._generation_in_flight:
                self._generation_in_flight = True
                reports.append(self._generations[0])
            return reports

    def next_in_s(self) -> float | None:
        """Seconds until ``take`` has something; 0 if now, None if nothing waits (or only for an answer)."""
        now = self._clock()
        with self._lock:
            if self._generations and not self._generation_in_flight:
                return 0.0
            dues = [
                self._due_at(pending, now)
                for pending in self._kinds.values()
                if pending.count and not pending.in_flight
            ]
            return max(0.0, min(dues) - now) if dues else None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is on its way."""
        with self._lock:
            return not self._generations and not any(
                pending.count or pending.in_flight for pending in self._kinds.values()
            )

    def done(self, report: Report, *, sent: bool) -> None:
        """Ends the sending of a report: unsent generations wait, unsent requests are lost."""
        with self._lock:
            if report.kind in GENERATION_KINDS:
                self._generation_in_flight = False
                if sent and self._generations and self._generations[0] is report:
                    self._generations.popleft()
                return
            self._kinds[report.kind].in_flight = False
            if not sent:
                self.lost_count += report.count

    def drop_requests(self) -> None:
        """Forgets the waiting requests: nobody can be told, and later they would be stale."""
        with self._lock:
            for pending in self._kinds.values():
                self.lost_count += pending.count
                pending.count = 0

    def after_fork(self) -> None:
        """Empties the queue in a forked child: its reports are the parent's to send."""
        self._lock = threading.Lock()
        self._kinds = {}
        self._generations = deque()
        self._generation_in_flight = False

    def _due_at(self, pending: _Pending, now: float) -> float:
        if pending.in_flight:
            return float("inf")
        return now if pending.sent_at is None else pending.sent_at + self._spacing_s

    def _forget_old(self) -> None:
        limit_ns = self._clock_ns() - round(GENERATION_EVENT_AGE_S * 1e9)
        while (
            self._generations and not self._generation_in_flight and self._generations[0].time_ns < limit_ns
        ):
            self._generations.popleft()
            self.lost_count += 1

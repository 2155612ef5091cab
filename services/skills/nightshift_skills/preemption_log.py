"""What stays of a pre-emption: its row, its audit event, the back-off after it, its metrics."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram

from nightshift_skills.backoff import Backoff
from nightshift_skills.books import Books
from nightshift_skills.store import plane
from nightshift_skills.store.plane import Preemption

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.175, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0)


class PreemptionLog:
    """Keeps pre-emptions. `began` is thread-safe and in memory, `record` is durable."""

    def __init__(self, books: Books, backoff: Backoff, metrics: CollectorRegistry) -> None:
        self._books = books
        self._lock = threading.Lock()
        self._backoff = backoff
        # The wall clock is believed once, for what an earlier life left behind; then the boot clock counts.
        now = books.clock.now()
        now_ns = books.clock.boottime_ns()
        self._ends_ns = now_ns + round(backoff.remaining_s(now) * 1e9)
        past_s = 0.0 if backoff.last is None else max(0.0, (now - backoff.last).total_seconds())
        self._last_ns = now_ns - round(past_s * 1e9)
        self._times = Histogram(
            "nightshift_preemption_seconds",
            "T1 to T5 of pre-emptions, from the client's send where it told it.",
            ("point",),
            buckets=_BUCKETS_S,
            registry=metrics,
        )
        self._killed = Counter(
            "nightshift_preemption_killed", "Works that had to be killed.", registry=metrics
        )
        self._unconfirmed = Counter(
            "nightshift_preemption_unconfirmed",
            "Pre-emptions that not every acting service confirmed.",
            registry=metrics,
        )
        self._lapsed = Counter(
            "nightshift_preemption_lapsed",
            "Services whose stop was confirmed by nothing but their lapsed leases.",
            registry=metrics,
        )

    @property
    def backoff_until(self) -> datetime | None:
        """Until when background work stays away, by the wall clock as it is; None if it need not."""
        remaining_ns = self._ends_ns - self._books.clock.boottime_ns()
        if remaining_ns <= 0:
            return None
        return self._books.clock.now() + timedelta(microseconds=remaining_ns / 1e3)

    def began(self, preemption: Preemption) -> None:
        """Takes the back-off into account at once; only stopped work counts, and only users stop for long."""
        if preemption.cause == "user" and preemption.skill_runs:
            with self._lock:
                now_ns = self._books.clock.boottime_ns()
                since_last_s = (now_ns - self._last_ns) / 1e9
                self._backoff = self._backoff.preempted(preemption.start_time, since_last_s)
                self._last_ns = now_ns
                self._ends_ns = now_ns + round(self._backoff.span_s * 1e9)

    async def record(self, preemption: Preemption, final: bool) -> None:
        """Writes a pre-emption down; called once at its beginning and once at its end."""
        if final:
            self._observe(preemption)
        await self._books.change(self._record, preemption, final)

    def _record(self, connection: sa.Connection, preemption: Preemption, final: bool) -> None:
        plane.save_preemption(connection, preemption)
        if self._backoff.last is not None:
            plane.save_backoff(connection, self._backoff)
        kind = "preemption.ended" if final else "preemption.began"
        self._books.event(
            connection,
            kind,
            "service/skills",
            f"preemptions/{preemption.id}",
            cause=preemption.cause,
            fence=preemption.fence,
            skill_runs=[f"skillRuns/{run}" for run in preemption.skill_runs],
            killed_count=preemption.killed_count,
            confirmed=preemption.confirmed,
            lapsed_services=list(preemption.lapsed_services),
        )

    def _observe(self, preemption: Preemption) -> None:
        points = {
            "t1": preemption.t1_ns,
            "t2": preemption.t2_ns,
            "t3": preemption.t3_ns,
            "t4": preemption.t4_ns,
            "t5": preemption.t5_ns,
        }
        for point, span_ns in points.items():
            if span_ns is not None:
                self._times.labels(point).observe(span_ns / 1e9)
        self._killed.inc(preemption.killed_count)
        self._lapsed.inc(len(preemption.lapsed_services))
        if not preemption.confirmed:
            self._unconfirmed.inc()

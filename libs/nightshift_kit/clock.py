"""Time as a parameter: the machine's, or one that tests turn by hand."""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the plane asks about time."""

    def now(self) -> dt.datetime:
        """Wall clock, UTC and aware. For people and records; it may jump."""
        ...

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspend included. For leases and spans; it never jumps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> dt.datetime:
        """Wall clock, UTC and aware."""
        return dt.datetime.now(dt.UTC)

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME in nanoseconds: a laptop that slept has not kept its leases."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class FakeClock:
    """A clock that stands still until a test moves it; safe to share between threads.

    Args:
        start: Aware instant that ``now`` starts at.
        boottime_ns: Nanoseconds that ``boottime_ns`` starts at.
    """

    def __init__(self, start: dt.datetime | None = None, boottime_ns: int = 10_000_000_000) -> None:
        start = start or dt.datetime(2026, 1, 5, 9, 0, tzinfo=dt.UTC)
        if start.tzinfo is None:
            raise ValueError("start must be an aware datetime")
        self._lock = threading.Lock()
        self._now = start.astimezone(dt.UTC)
        self._boottime_ns = boottime_ns

    def now(self) -> dt.datetime:
        """Instant that the test set."""
        with self._lock:
            return self._now

    def boottime_ns(self) -> int:
        """Nanoseconds that the test set."""
        with self._lock:
            return self._boottime_ns

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks.

        Args:
            seconds: Span ≥ 0.
        """
        if seconds < 0:
            raise ValueError("time passes forwards; use jump() for the wall clock")
        with self._lock:
            self._now += dt.timedelta(seconds=seconds)
            self._boottime_ns += round(seconds * 1e9)

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as NTP or a person would; may be negative."""
        with self._lock:
            self._now += dt.timedelta(seconds=seconds)

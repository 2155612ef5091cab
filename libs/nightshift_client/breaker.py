"""A circuit breaker: after some failures nobody waits, until a look in the background finds it better.

    CLOSED ── ``failures`` in a row ──▶ OPEN ── pause over ──▶ HALF_OPEN ── success ──▶ CLOSED
                                         ▲                        │
                                         └── failure, pause x2 ───┘

Callers pass in CLOSED alone; the one trial of HALF_OPEN is made in the background.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable


class BreakerState(enum.Enum):
    """States of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Thread-safe; ``clock`` gives seconds that only grow."""

    def __init__(
        self,
        *,
        failures: int = 3,
        pause_s: float = 5.0,
        max_pause_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = pause_s
        self._state = BreakerState.CLOSED
        self._retry_at = 0.0
        self.opened_count = 0

    @property
    def state(self) -> BreakerState:
        """The state now."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether a caller may wait for an answer."""
        return self._state is BreakerState.CLOSED

    def trial_in_s(self) -> float | None:
        """Seconds until a trial is due: 0 if now, None unless open."""
        with self._lock:
            if self._state is not BreakerState.OPEN:
                return None
            return max(0.0, self._retry_at - self._clock())

    def begin_trial(self) -> bool:
        """Whether the caller now holds the one trial; it must end in ``success`` or ``failure``."""
        with self._lock:
            if self._state is not BreakerState.OPEN or self._clock() < self._retry_at:
                return False
            self._state = BreakerState.HALF_OPEN
            return True

    def success(self) -> None:
        """The other side answered."""
        with self._lock:
            if self._state is BreakerState.OPEN:
                # An answer to a call of before: it does not prove that the other side is well now.
                return
            self._failures = 0
            self._pause_s = self._first_pause_s
            self._state = BreakerState.CLOSED

    def failure(self) -> None:
        """The other side did not answer, or not in time, or nonsense."""
        with self._lock:
            if self._state is BreakerState.OPEN:
                return
            if self._state is BreakerState.HALF_OPEN:
                self._pause_s = min(self._pause_s * 2, self._max_pause_s)
                self._open()
                return
            self._failures += 1
            if self._failures >= self._limit:
                self._open()

    def hasten(self) -> None:
        """Something changed that speaks for the other side (a new endpoints.json): try at once."""
        with self._lock:
            if self._state is BreakerState.OPEN:
                self._pause_s = self._first_pause_s
                self._retry_at = self._clock()

    def after_fork(self) -> None:
        """Makes the lock new in a forked child, whose copy may be held by a thread that is not there."""
        self._lock = threading.Lock()
        if self._state is BreakerState.HALF_OPEN:
            self._state = BreakerState.OPEN

    def _open(self) -> None:
        self._state = BreakerState.OPEN
        self._failures = 0
        self._retry_at = self._clock() + self._pause_s
        self.opened_count += 1

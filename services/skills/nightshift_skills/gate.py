"""The in-memory gate: whether background work may start, and which runs are at work. Thread-safe.

Every decision here is taken under one lock and without I/O, so that a pre-emption on the control thread and a
start on the main thread see each other: after `close` nothing in the background begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nightshift_kit.errors import GlobalLock
from nightshift_skills.errors import UserActive


@dataclass(slots=True, eq=False)
class LiveRun:
    """A run at work in this process.

    Attributes:
        id: Of the run.
        background: Whether a user's arrival stops it.
        fence: Under which its grants are minted; set on entry.
        cancel: Stops the work from any thread.
        cause: Why it was stopped; "" while it was not.
        lease_names: Further runs in whose name an acting service may hold this run's work.
    """

    id: str
    background: bool
    cancel: Callable[[], None]
    fence: int = 0
    cause: str = ""
    lease_names: set[str] = field(default_factory=set)

    def stop(self, cause: str) -> None:
        """Stops the work; the first cause counts."""
        self.cause = self.cause or cause
        self.cancel()


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing the gate found: whether anything had to be stopped, and what."""

    began: bool
    fence: int
    stopped: tuple[LiveRun, ...]


class Gate:
    """Open only between a confirmed idleness and the next sign of a user."""

    def __init__(self, current_fence: Callable[[], int], raise_fence: Callable[[], int]) -> None:
        self._lock = threading.Lock()
        self._on_enter: Callable[[], None] = lambda: None
        self._current_fence = current_fence
        self._raise_fence = raise_fence
        self._open = False
        self._locked = False
        self._signs = 0
        self._runs: dict[str, LiveRun] = {}

    @property
    def is_open(self) -> bool:
        """Whether background work may start."""
        return self._open and not self._locked

    @property
    def locked(self) -> bool:
        """Whether the global lock is on."""
        return self._locked

    @property
    def signs(self) -> int:
        """Signs of users so far; `try_open` takes the number read before idleness was asked for."""
        return self._signs

    def try_open(self, signs: int) -> bool:
        """Opens the gate unless a sign of a user came since `signs` was read, or the lock is on."""
        with self._lock:
            if signs != self._signs or self._locked:
                return False
            self._open = True
            return True

    def shut(self) -> None:
        """Closes the gate for new work without stopping any (the monitor is gone, a back-off began)."""
        self._open = False

    def close(self, *, sign: bool = True) -> Closed:
        """Closes the gate; raises the fence if it was open or background work is running.

        Args:
            sign: Whether a user was there (not for the lock or a platform that is gone).
        """
        with self._lock:
            self._signs += sign
            stopped = tuple(run for run in self._runs.values() if run.background and not run.cause)
            if not self._open and not stopped:
                return Closed(False, self._current_fence(), ())
            self._open = False
            fence = self._raise_fence()
            for run in stopped:
                # Marked here, so that a second report does not count them again; cancelled after STOP is out.
                run.cause = run.cause or "user"
            return Closed(True, fence, stopped)

    def engage(self) -> Closed:
        """Sets the lock: nothing may start any more, and everything that runs is to be stopped."""
        with self._lock:
            self._locked = True
            self._open = False
            stopped = tuple(run for run in self._runs.values() if not run.cause)
            for run in stopped:
                run.cause = "lock"
            return Closed(True, self._raise_fence(), stopped)

    def restore_lock(self) -> None:
        """After a start: the lock was on when the plane went down."""
        self._locked = True

    def release(self) -> None:
        """Lifts the lock; the gate stays closed until idleness is confirmed."""
        self._locked = False

    def enter(self, run: LiveRun) -> None:
        """Lets a run begin, under the fence in force.

        Raises:
            GlobalLock: the lock is on.
            UserActive: it is background work and the gate is closed.
        """
        with self._lock:
            if self._locked:
                raise GlobalLock("The global lock is on; an admin lifts it with: nightshift unlock.")
            if run.background and not self._open:
                raise UserActive("A user is here, or the machine is not idle yet.")
            run.fence = self._current_fence()
            self._runs[run.id] = run
        self._on_enter()

    def on_enter(self, told: Callable[[], None]) -> None:
        """Says who hears, at once and in memory, that a run began."""
        self._on_enter = told

    def leave(self, run: LiveRun) -> None:
        """A run has stopped working."""
        with self._lock:
            self._runs.pop(run.id, None)

    def get(self, run_id: str) -> LiveRun | None:
        """A run at work."""
        return self._runs.get(run_id)

    def live(self, *, background: bool | None = None) -> tuple[LiveRun, ...]:
        """Runs at work: all, or only background ones, or only others."""
        with self._lock:
            return tuple(
                run for run in self._runs.values() if background is None or run.background is background
            )

    def leases(self) -> tuple[int, frozenset[str]]:
        """Fence in force, and ids of the runs whose work may go on."""
        with self._lock:
            going = [run for run in self._runs.values() if not run.cause]
            return self._current_fence(), frozenset(run.id for run in going).union(
                *(run.lease_names for run in going)
            )

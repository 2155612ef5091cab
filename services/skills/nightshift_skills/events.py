"""What skills with an event trigger wait for.

Whatever changes something leaves an audit event in the change's own transaction ("config.promoted",
"import.ended", "lock.released"), and the sealed chain holds those of all services in one order: it is the
durable bus, from which each skill's mark says how far it has heard. What leaves no audit event is published
here and is heard by this process alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

# The machine is found idle again after users were there: a workshop ended.
USERS_LEFT = "users.left"
# Users came while the machine was idle: a workshop began.
USERS_CAME = "users.came"


class Events:
    """In-process events, and the wish to be woken by durable ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._last: dict[str, int] = {}
        self._heard: dict[str, int] = {}
        self._wake: Callable[[], None] = lambda: None
        self._wanted: frozenset[str] = frozenset()

    def wake_for(self, kinds: Iterable[str], wake: Callable[[], None]) -> None:
        """Says who is woken, from any thread, by which kinds."""
        self._wanted = frozenset(kinds)
        self._wake = wake

    def publish(self, kind: str) -> None:
        """Something happened that leaves no audit event."""
        with self._lock:
            self._count += 1
            self._last[kind] = self._count
        self.sealed([kind])

    def sealed(self, kinds: Iterable[str]) -> None:
        """Audit events of these kinds are in the sealed chain now."""
        if self._wanted.intersection(kinds):
            self._wake()

    def since(self, skill: str) -> list[str]:
        """Kinds that were published after a skill last heard."""
        with self._lock:
            heard = self._heard.get(skill, 0)
            return sorted(kind for kind, count in self._last.items() if count > heard)

    def position(self) -> int:
        """Where the bus stands; for `heard`."""
        with self._lock:
            return self._count

    def heard(self, skill: str, position: int) -> None:
        """A skill took into account what came up to a position."""
        with self._lock:
            self._heard[skill] = max(position, self._heard.get(skill, 0))

"""Fencing numbers: raised in memory at once, durable beforehand.

A block of numbers is reserved on disk before any of them is used, so that a pre-emption waits for no disk
and a number is never used twice: whoever starts begins the block after the reserved one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

BLOCK_SIZE = 1_000


class Fences:
    """The fence in force. Thread-safe."""

    def __init__(self, reserve: Callable[[int], None], reserved_to: int) -> None:
        """Begins the next block.

        Args:
            reserve: makes durable that all numbers up to and including its argument are taken; blocking.
            reserved_to: what the last `reserve` of any earlier process made durable; 0 at the very first
                start.
        """
        self._reserve = reserve
        self._lock = threading.Lock()
        self._current = reserved_to + 1
        self._reserved_to = reserved_to + BLOCK_SIZE
        reserve(self._reserved_to)

    @property
    def current(self) -> int:
        """The fence in force."""
        return self._current

    @property
    def durable(self) -> bool:
        """Whether the fence in force lies in a reserved block."""
        return self._current <= self._reserved_to

    def raise_one(self) -> int:
        """Raises the fence by one and returns it. Never touches the disk.

        Where a block was used up while the disk refused to reserve another, the fence goes on rising:
            stopping for
        a user comes first, and the verifiers, which keep the highest fence they saw, tell a successor.
        """
        with self._lock:
            self._current += 1
            return self._current

    def refill(self) -> None:
        """Reserves a further block when little is left of this one. Blocking: not for the hot path."""
        with self._lock:
            if self._reserved_to - self._current >= BLOCK_SIZE // 2:
                return
            reserved_to = max(self._reserved_to, self._current) + BLOCK_SIZE
        self._reserve(reserved_to)
        with self._lock:
            self._reserved_to = max(self._reserved_to, reserved_to)

    def raise_above(self, seen: int) -> int:
        """Goes above a fence that somebody has seen (a store restored from an old backup); blocking."""
        with self._lock:
            reserved_to = max(seen, self._current, self._reserved_to) + BLOCK_SIZE
        self._reserve(reserved_to)
        with self._lock:
            self._reserved_to = max(self._reserved_to, reserved_to)
            self._current = max(self._current, seen + 1)
            return self._current

"""The newest state for any number of watchers, each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Posted(Generic[T]):
    """One state with its sequence number; ``keep_alive`` where it only repeats the last one."""

    seq: int
    state: T
    keep_alive: bool = False


class Board(Generic[T]):
    """Holds one state; posting replaces it, so a slow watcher skips to the newest and costs no memory."""

    def __init__(self, first: T) -> None:
        self._posted = Posted(1, first)
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def newest(self) -> Posted[T]:
        """What stands there now."""
        return self._posted

    def post(self, state: T) -> None:
        """Replaces the state and wakes the watchers."""
        self._posted = Posted(self._posted.seq + 1, state)
        self._wake()

    def close(self) -> None:
        """Ends all watching."""
        self._closed = True
        self._wake()

    async def watch(self, after_seq: int, *, keep_alive_s: float) -> AsyncGenerator[Posted[T], None]:
        """The state (unless ``after_seq`` is its number), each change, and repeats as keep-alives.

        A number above the present one comes from an earlier process: its holder gets the state at once.
        """
        posted = self._posted
        told = after_seq if 0 < after_seq <= posted.seq else 0
        while not self._closed:
            changed = self._changed
            posted = self._posted
            if posted.seq != told:
                told = posted.seq
                yield posted
                continue
            try:
                async with asyncio.timeout(keep_alive_s):
                    await changed.wait()
            except TimeoutError:
                if self._posted.seq == told:
                    yield Posted(posted.seq, posted.state, keep_alive=True)

    def _wake(self) -> None:
        # A fresh event each time: nobody has to reset it, and no watcher can miss a change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

"""How many calls run at once, and how they end when the server stops."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightshift_kit.errors import Draining, Overloaded

if TYPE_CHECKING:
    from nightshift_kit.rpc.passage import Passage

# Watchers never end by themselves; they can resume elsewhere, so a stop does not wait long for them.
_WATCHER_GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes at once.

    Attributes:
        calls: Calls that end by themselves (unary answers).
        streams: Calls that answer with a stream.
        message_bytes: Size of one message, either way.
        metadata_bytes: Size of a call's metadata.
    """

    calls: int = 512
    streams: int = 512
    message_bytes: int = 4 * 1024 * 1024
    metadata_bytes: int = 16 * 1024


class Traffic:
    """Calls in flight of one server; used on its event loop only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls: set[Passage] = set()
        self._streams: set[Passage] = set()
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Calls and streams that run now."""
        return len(self._calls) + len(self._streams)

    def enter(self, passage: Passage) -> None:
        """Counts a call in. Raises Draining, Overloaded."""
        if self._draining:
            raise Draining("The service is stopping; try again in a moment.")
        room, limit = (
            (self._streams, self._limits.streams)
            if passage.rule.server_streaming
            else (self._calls, self._limits.calls)
        )
        if len(room) >= limit:
            raise Overloaded(
                f"The service already serves {limit} calls of this kind.", metadata={"limit": str(limit)}
            )
        room.add(passage)

    def leave(self, passage: Passage) -> None:
        """Counts a call out; harmless for one that was never counted in."""
        self._calls.discard(passage)
        self._streams.discard(passage)
        if self._draining:
            self._changed.set()

    async def drain(self, grace_s: float) -> int:
        """Refuses new calls and lets the running ones end.

        Watchers are told DRAINING after half a second, all others when the grace is over.

        Returns:
            How many calls had to be cut short.
        """
        self._draining = True
        started_s = time.monotonic()
        await self._wait(lambda: self.in_flight == 0, min(_WATCHER_GRACE_S, grace_s))
        cut = self._interrupt(self._streams)
        await self._wait(lambda: self.in_flight == 0, grace_s - (time.monotonic() - started_s))
        cut += self._interrupt(self._calls)
        # A moment for the refusals to reach their callers.
        await self._wait(lambda: self.in_flight == 0, 0.2)
        return cut

    def _interrupt(self, passages: set[Passage]) -> int:
        for passage in tuple(passages):
            passage.interrupt(Draining("The service is stopping; try again in a moment."))
        return len(passages)

    async def _wait(self, done: object, timeout_s: float) -> None:
        assert callable(done)
        ends_s = time.monotonic() + timeout_s
        while not done():
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                return

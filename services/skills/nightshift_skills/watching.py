"""Following runs and approvals: state first, then changes; every watcher reads the store itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar

import sqlalchemy as sa

from nightshift_skills.approvals import Approval
from nightshift_skills.books import Books
from nightshift_skills.errors import SeqGone
from nightshift_skills.runs import Run
from nightshift_skills.store import decisions

KEEP_ALIVE_S = 15.0
_PAGE = 100
# Whoever is further behind reads the state anew; that is quicker for both sides.
_FARTHEST = 10_000


class _Numbered(Protocol):
    @property
    def seq(self) -> int: ...


ItemT = TypeVar("ItemT", bound=_Numbered)


async def watch_runs(books: Books, after_seq: int) -> AsyncIterator[tuple[int, Run | None]]:
    """Open runs first, then each changed run as it is by then; None keeps the stream alive.

    A run that changes several times before it is read comes once, in its newest state.

    Raises:
        SeqGone: after_seq is too old, or from another life of the store.
    """
    async for change in _watch(books, "runs", after_seq, decisions.open_runs, decisions.changed_runs):
        yield change


async def watch_approvals(books: Books, after_seq: int) -> AsyncIterator[tuple[int, Approval | None]]:
    """As `watch_runs`, for approvals; the pending ones come first."""
    async for change in _watch(
        books, "approvals", after_seq, decisions.pending_approvals, decisions.changed_approvals
    ):
        yield change


async def _watch(
    books: Books,
    feed: str,
    after_seq: int,
    open_items: Callable[[sa.Connection], list[ItemT]],
    changed: Callable[[sa.Connection, int, int], list[ItemT]],
) -> AsyncIterator[tuple[int, ItemT | None]]:
    def begin(connection: sa.Connection) -> tuple[int, list[ItemT]]:
        return decisions.last_seq(connection, feed), [] if after_seq else open_items(connection)

    event = books.changes.subscribe()
    try:
        last_seq, state = await books.read(begin)
        if after_seq and not last_seq - _FARTHEST <= after_seq <= last_seq:
            raise SeqGone(f"Position {after_seq} cannot be resumed; begin anew with after_seq = 0.")
        for item in state:
            yield item.seq, item
        position = after_seq or last_seq
        # Tells that the state is complete, even where it is empty.
        yield position, None
        while True:
            event.clear()
            items = await books.read(changed, position, _PAGE)
            for item in items:
                position = item.seq
                yield position, item
            if items:
                continue
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await event.wait()
            except TimeoutError:
                yield position, None
    finally:
        books.changes.unsubscribe(event)

"""Ticks, each made once whatever number of replicas there are: claimed in the store before they are made."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_skills.books import Books
from nightshift_skills.store import leadership


class Ticks:
    """Claims ticks for one term."""

    def __init__(self, books: Books, term: int, tick_s: float) -> None:
        """Args: the store, our term, and how far ticks are apart, in seconds."""
        self._books = books
        self._term = term
        self._tick_s = tick_s

    async def claim(self) -> float:
        """Takes the next tick.

        Returns:
            0 where it is ours to make; else how long it is until one is due, in seconds: the leader before us
            has made one just now.

        Raises:
            Standby: another replica leads by now.
        """
        return await self._books.write(self._claim)

    def _claim(self, connection: sa.Connection) -> float:
        now = leadership.database_time(connection, self._books.clock.now())
        return leadership.claim_tick(connection, self._term, now, self._tick_s)

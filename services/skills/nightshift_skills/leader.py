"""Which replica of skills acts: a lease in the store, and a term that every deciding transaction checks.

Two clocks of two machines are never compared. The leader renews its lease by counting beats in one row; a
standby that has seen neither term nor beats change for the lease's length, by its own boot clock, takes over
with the next term. The leader counts its own time from before a beat was written, so it knows earlier than any
standby that its lease is over. Should it not notice (it was stopped, and goes on), its transactions do: a term
that is not the row's refuses each of them, and the successor's higher fence refuses its grants.

On SQLite nobody else shares the store: the term alone is raised at the start, and no beat is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.storage import Database
from nightshift_skills.errors import Standby
from nightshift_skills.store import leadership
from nightshift_skills.store.leadership import Lease

_log = structlog.get_logger("nightshift.skills.leader")


@dataclass(frozen=True, slots=True)
class LeaseRule:
    """Spans in seconds: a standby takes over when it saw no beat for `length_s`."""

    length_s: float = 4.0
    beat_s: float = 1.0
    # A leader thinks its lease over so much earlier than a standby may.
    margin_s: float = 0.5


class Leadership:
    """This replica's part. `check` and `leading` are thread-safe and in memory."""

    def __init__(self, db: Database, clock: Clock, holder: str, rule: LeaseRule | None = None) -> None:
        """Args: the store, the clock, a name of this replica for people, and spans."""
        self._db = db
        self._clock = clock
        self._holder = holder
        self._rule = rule or LeaseRule()
        self._shared = db.backend != "sqlite"
        self._term = 0
        self._valid_until_ns = 0
        self._seen: Lease | None = None
        self._seen_ns = 0

    @property
    def term(self) -> int:
        """Term of this replica; 0 while it never led."""
        return self._term

    @property
    def leading(self) -> bool:
        """Whether this replica may act now."""
        if not self._term:
            return False
        return not self._shared or self._clock.boottime_ns() < self._valid_until_ns

    @property
    def leader(self) -> str:
        """Who leads, as far as this replica knows; "" if nobody is known to."""
        if self.leading:
            return self._holder
        return self._seen.holder if self._seen is not None else ""

    def check(self) -> None:
        """Raises Standby unless this replica may act now."""
        if not self.leading:
            raise self._standby()

    def guard(self, connection: sa.Connection) -> None:
        """Within a deciding transaction: the term must be the one in force. Raises Standby."""
        if not self._term or leadership.get_lease(connection).term != self._term:
            raise self._standby()

    async def begin(self) -> bool:
        """At the start: takes the lease where it is free; whether this replica leads."""
        if not self._shared:
            lease = await self._db.write(leadership.take, self._holder, None)
            assert lease is not None
            self._took(lease, self._clock.boottime_ns())
            return True
        self._note(await self._db.read(leadership.get_lease))
        assert self._seen is not None
        return not self._seen.holder and await self._take()

    async def follow(self) -> None:
        """As a standby: returns when this replica has become the leader."""
        while True:
            try:
                self._note(await self._db.read(leadership.get_lease))
                assert self._seen is not None
                silent_s = (self._clock.boottime_ns() - self._seen_ns) / 1e9
                free = not self._seen.holder or silent_s >= self._rule.length_s
                if free and await self._take():
                    return
            except NightshiftError as error:
                # Time in which the store could not be read proves nothing about the leader.
                self._seen = None
                _log.warning("the lease cannot be read", reason=error.reason)
            await asyncio.sleep(self._rule.beat_s / 4)

    async def keep(self, on_lost: Callable[[], Awaitable[None] | None]) -> None:
        """As the leader: beats until the lease is lost, and says so."""
        if not self._shared:
            return
        while self.leading:
            asked_ns = self._clock.boottime_ns()
            try:
                if not await self._db.write(leadership.beat, self._term):
                    break
            except NightshiftError as error:
                _log.warning("the lease is not renewed", reason=error.reason)
            else:
                self._valid_from(asked_ns)
            await asyncio.sleep(self._rule.beat_s)
        _log.error("the lease is lost: another replica may lead", term=self._term)
        self._valid_until_ns = 0
        lost = on_lost()
        if lost is not None:
            await lost

    async def leave(self) -> None:
        """Gives the lease back, so that a standby need not wait."""
        term, self._term = self._term, 0
        if self._shared and term:
            with suppress(NightshiftError):
                await self._db.write(leadership.give_back, term)

    async def _take(self) -> bool:
        asked_ns = self._clock.boottime_ns()
        lease = await self._db.write(leadership.take, self._holder, self._seen)
        if lease is None:
            return False
        self._took(lease, asked_ns)
        _log.info("this replica leads", term=lease.term, holder=self._holder)
        return True

    def _took(self, lease: Lease, asked_ns: int) -> None:
        self._term = lease.term
        self._valid_from(asked_ns)

    def _valid_from(self, asked_ns: int) -> None:
        self._valid_until_ns = asked_ns + round((self._rule.length_s - self._rule.margin_s) * 1e9)

    def _note(self, lease: Lease) -> None:
        if lease != self._seen:
            self._seen, self._seen_ns = lease, self._clock.boottime_ns()

    def _standby(self) -> Standby:
        leader = self.leader
        where = f" The leader is {leader}." if leader else ""
        return Standby(
            f"This replica of skills stands by and does not act.{where}",
            metadata={"leader": leader},
            retry_after_s=1.0,
        )

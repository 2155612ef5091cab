"""Which replica of skills acts: a lease in the store, and a term that every writing transaction checks.

Two clocks of two machines are never compared. The leader renews its lease by counting beats in one row; a
standby that has looked on for the lease's length and saw neither term nor beats change takes over with the
next term, at once where the holder is gone for sure or gave the lease back. The leader counts its own time
from before a beat was written, so it knows earlier than any standby that its lease may be over, and does
nothing more until the store has said that it is not.

Should it not notice (it was stopped between a look at the clock and what came next), two things stop it:
its term is not the row's any more, so each of its transactions is refused; and the successor's fence is
higher, so its grants and its renewals are. On SQLite nobody else shares the store: the term alone is raised
at the start, and no beat is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.storage import Database
from nightshift_skills.errors import LeadershipLost, Standby
from nightshift_skills.replica import Replica, is_gone
from nightshift_skills.store import leadership
from nightshift_skills.store.leadership import Lease

_log = structlog.get_logger("nightshift.skills.leader")

_ACTOR = "service/skills"
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class LeaseRule:
    """Spans in seconds.

    Attributes:
        length_s: So long a standby looks on while no beat comes before it takes over.
    """

    length_s: float = 10.0

    @property
    def beat_s(self) -> float:
        """Between two beats."""
        return self.length_s / 5

    @property
    def look_s(self) -> float:
        """Between two looks of a standby."""
        return self.length_s / 20

    @property
    def valid_s(self) -> float:
        """So long after asking for a beat a leader may act: ended before any standby may take over."""
        return self.length_s * 0.8


class Leadership:
    """This replica's part. `leading`, `check` and `guard` are for any thread."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        replica: Replica,
        rule: LeaseRule | None = None,
        *,
        gone: Callable[[str], bool] = is_gone,
    ) -> None:
        """Makes a replica that does not lead.

        Args:
            db: The store, without a guard.
            clock: Its boot clock alone is asked.
            replica: This process.
            rule: Spans.
            gone: Whether a process (`Replica.process`) has ended for sure.
        """
        self._db = db
        self._clock = clock
        self._outbox = Outbox("skills", clock)
        self._replica = replica
        self._rule = rule or LeaseRule()
        self._gone = gone
        self._shared = db.backend != "sqlite"
        self._term = 0
        self._valid_until_ns = 0
        self._lost = False
        self._seen: Lease | None = None
        self._looked_ns = 0
        self._silent_s = 0.0
        self._after_silence = False

    @property
    def term(self) -> int:
        """Term of this replica; 0 while it never led."""
        return self._term

    @property
    def leading(self) -> bool:
        """Whether this replica may act now."""
        if not self._term or self._lost:
            return False
        return not self._shared or self._clock.boottime_ns() < self._valid_until_ns

    @property
    def lost(self) -> bool:
        """Whether another replica is known to have taken over."""
        return self._lost

    @property
    def after_silence(self) -> bool:
        """Whether the leader before this one may still live: it only fell silent."""
        return self._after_silence

    def check(self) -> None:
        """Raises Standby unless this replica may act now."""
        if not self.leading:
            raise self.refusal()

    def guard(self, connection: sa.Connection) -> None:
        """Within a writing transaction: the term must be the one in force. Raises Standby."""
        if not self._term or leadership.get_term(connection) != self._term:
            self._lost, self._seen = bool(self._term), leadership.get_lease(connection)
            raise self.refusal()

    def refusal(self) -> Standby:
        """What a replica that does not lead answers."""
        leader = self._seen.holder if self._seen is not None else None
        if self._term and not self._lost:
            words = "This replica of skills leads, but its store does not answer, so it does not act."
        elif leader is None:
            words = "This replica of skills stands by; no other one is known to lead yet."
        else:
            words = f"This replica of skills stands by; {leader.name} leads. Ask at {leader.address}."
        metadata = {}
        if leader is not None and not (self._term and not self._lost):
            metadata = {
                "leader": leader.name,
                "leader_address": leader.address,
                "leader_control_address": leader.control_address,
            }
        return Standby(words, metadata=metadata, retry_after_s=_RETRY_S)

    async def begin(self) -> bool:
        """At the start: takes the lease where it is free; whether this replica leads."""
        if not self._shared:
            lease = await self._db.write(leadership.take, self._replica, None)
            assert lease is not None
            self._term = lease.term
            return True
        return await self.look()

    async def follow(self) -> None:
        """As a standby: returns when this replica has become the leader."""
        while not await self.look():  # noqa: ASYNC110 - the store cannot wake us
            await asyncio.sleep(self._rule.look_s)

    async def look(self) -> bool:
        """One look of a standby at the lease; whether it leads now."""
        try:
            lease = await self._db.read(leadership.get_lease)
            self._note(lease)
            cause = self._cause(lease)
            return bool(cause) and await self._take(lease, cause)
        except NightshiftError as error:
            # Time in which the store could not be read proves nothing about the leader.
            self._seen = None
            _log.warning("the lease cannot be read", reason=error.reason)
            return False

    async def keep(self, on_lost: Callable[[LeadershipLost], None]) -> None:
        """As the leader: beats until the lease is lost, and says so."""
        if not self._shared:
            return
        while await self.beat():  # noqa: ASYNC110 - a beat is a matter of time alone
            await asyncio.sleep(self._rule.beat_s)
        _log.error("another replica leads by now", term=self._term)
        on_lost(LeadershipLost("Another replica of skills leads by now; this one ends, and stands by anew."))

    async def beat(self) -> bool:
        """One beat of the leader; False once the lease is lost for good."""
        asked_ns = self._clock.boottime_ns()
        try:
            kept = await self._db.write(leadership.beat, self._term)
        except NightshiftError as error:
            _log.warning("the lease is not renewed", reason=error.reason)
            return not self._lost
        if not kept:
            self._lost = True
            with suppress(NightshiftError):
                self._seen = await self._db.read(leadership.get_lease)
        elif not self._lost:
            self._valid_until_ns = asked_ns + round(self._rule.valid_s * 1e9)
        return not self._lost

    async def watch(self, on_change: Callable[[bool], Awaitable[None]]) -> None:
        """Tells whenever it changes whether this replica may act; runs until cancelled."""
        told = True
        while True:
            await asyncio.sleep(self._rule.look_s)
            leading = self.leading
            if leading != told:
                told = leading
                await on_change(leading)

    async def leave(self) -> None:
        """Gives the lease back, so that a standby need not wait."""
        if self._shared and self._term and not self._lost:
            self._lost = True
            with suppress(NightshiftError):
                await self._db.write(leadership.give_back, self._term)

    def _note(self, lease: Lease) -> None:
        now_ns = self._clock.boottime_ns()
        if lease != self._seen:
            self._seen, self._silent_s = lease, 0.0
        else:
            # Time in which we did not look, stopped or asleep ourselves, proves nothing either.
            self._silent_s += min((now_ns - self._looked_ns) / 1e9, 4 * self._rule.look_s)
        self._looked_ns = now_ns

    def _cause(self, lease: Lease) -> str:
        """Why the lease may be taken; "" where it may not."""
        if lease.holder is None:
            return "first" if lease.term == 0 else "given_back"
        if self._gone(lease.holder.process):
            return "gone"
        return "silent" if self._silent_s >= self._rule.length_s else ""

    async def _take(self, seen: Lease, cause: str) -> bool:
        asked_ns = self._clock.boottime_ns()
        lease = await self._db.write(self._take_over, seen, cause)
        if lease is None:
            return False
        self._valid_until_ns = asked_ns + round(self._rule.valid_s * 1e9)
        self._after_silence = cause == "silent"
        self._seen = lease
        self._term = lease.term
        _log.info("this replica leads", show=True, term=lease.term, name=self._replica.name, cause=cause)
        return True

    def _take_over(self, connection: sa.Connection, seen: Lease, cause: str) -> Lease | None:
        lease = leadership.take(connection, self._replica, seen)
        if lease is not None:
            self._outbox.append(
                connection,
                kind="leader.began",
                actor=_ACTOR,
                subject=f"terms/{lease.term}",
                payload={
                    "leader": self._replica.name,
                    "previous": seen.holder.name if seen.holder is not None else "",
                    "cause": cause,
                },
            )
        return lease

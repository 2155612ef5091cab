"""What makes a grant count: the fence, and the one effect in whose transaction it is redeemed."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import sqlalchemy as sa

from nightshift_kit.clock import Clock
from nightshift_kit.errors import Code, GrantReplayed, NightshiftError, Preempted
from nightshift_kit.grants.tokens import Grant, Tier
from nightshift_kit.ids import new_id
from nightshift_kit.storage import KIT, Database

# Rows of kit_fence: what is below the first voids background work, below the second a person's work too.
_BACKGROUND: Final = "background"
_EVERYTHING: Final = "everything"


class EffectUnfinished(NightshiftError):
    """The same call has been done by another process in this very moment."""

    code = Code.UNAVAILABLE
    reason = "EFFECT_UNFINISHED"


class FenceGate:
    """Highest fence that this service has seen, in memory and durably. Safe to use from any thread.

    Background grants of a lower fence are refused; grants of a person's own doing pass them. After a start
    everything is refused until skills has told the fence in force (Stop or RenewLease), and what was granted
    before that is void for good, a person's own grants too: the process before may have been told to stop
    everything, and have died before that was durable.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._highest = db.read_sync(read_fence)
        self._everything = db.read_sync(read_fence, _EVERYTHING)
        self._open = False

    @property
    def highest(self) -> int:
        """Highest fence seen, 0 before the first."""
        return self._highest

    @property
    def is_open(self) -> bool:
        """Whether skills has told the fence since the start."""
        return self._open

    def raise_in_memory(self, fence: int, *, everything: bool = False) -> bool:
        """Voids all background grants below the fence from now on, without waiting for a disk.

        Args:
            fence: The fence in force.
            everything: Whether grants of a person's own doing are void below it, too. That holds for a fence
                below the highest as well: a stop of everything may arrive late.

        Returns:
            Whether the fence is at least the highest seen; a lower one comes from a stale skills, or late,
            and voids nothing that was not void.
        """
        with self._lock:
            if everything:
                self._everything = max(self._everything, fence)
            if fence < self._highest:
                return False
            self._highest = fence
            if not self._open:
                self._everything = max(self._everything, fence)
            self._open = True
            return True

    async def raise_to(self, fence: int, *, everything: bool = False) -> bool:
        """As raise_in_memory, and durable when it returns. Raises the storage's typed errors."""
        known = self.raise_in_memory(fence, everything=everything)
        if known or everything:
            await self._db.write(_store_fences, fence, everything, self._clock.now())
        return known

    def check(self, grant: Grant) -> None:
        """Raises Preempted for a background grant of a lower fence, and for any while the gate is closed.

        A grant of a person's own doing is refused only below the fence under which everything was stopped,
        or which was the first that was told since the start.
        """
        with self._lock:
            is_open, highest, everything = self._open, self._highest, self._everything
            if is_open and grant.fence > highest and not grant.on_purpose:
                # Signed by skills, so that fence is in force already; the news has not come here yet.
                self._highest = grant.fence
        if not is_open:
            raise Preempted(
                "This service has just started and waits for skills to tell the fence in force.",
                metadata={"fence": str(grant.fence)},
                retry_after_s=1.0,
            )
        lowest = everything if grant.on_purpose else highest
        if grant.fence < lowest:
            raise _stopped(grant, lowest)


def read_fence(connection: sa.Connection, name: str = _BACKGROUND) -> int:
    """Highest fence in the store, 0 if none."""
    table = KIT.fence
    found = connection.execute(sa.select(table.c.fence).where(table.c.name == name))
    return found.scalar_one_or_none() or 0


def store_fence(connection: sa.Connection, fence: int, now: dt.datetime, name: str = _BACKGROUND) -> None:
    """Raises the stored fence; a lower one changes nothing."""
    table = KIT.fence
    found = connection.execute(sa.select(table.c.fence).where(table.c.name == name)).scalar_one_or_none()
    if found is None:
        connection.execute(table.insert().values(name=name, fence=fence, at=now))
    elif fence > found:
        connection.execute(table.update().where(table.c.name == name).values(fence=fence, at=now))


def _store_fences(connection: sa.Connection, fence: int, everything: bool, now: dt.datetime) -> None:
    store_fence(connection, fence, now)
    if everything:
        store_fence(connection, fence, now, _EVERYTHING)


def _stopped(grant: Grant, highest: int) -> Preempted:
    return Preempted(
        "Everything was stopped, or this service was started, since the grant was made."
        if grant.on_purpose
        else "Background work of this fence was stopped for a user.",
        metadata={"fence": str(grant.fence), "highest": str(highest)},
    )


@dataclass(frozen=True, slots=True)
class Effect:
    """One acting call's right to its effect, used inside the transaction of that effect.

    `begin` first, `finish` last, both on the transaction's connection: either everything of the call is
    committed (change, audit event, redeemed grant, answer) or nothing.
    """

    grant: Grant
    method: str
    arguments_digest: str
    single_use: bool
    actor: str
    now: Callable[[], dt.datetime]
    gate: FenceGate | None = field(default=None, compare=False)

    @classmethod
    def for_tests(
        cls,
        *,
        skill: str = "skills/test",
        skill_run: str = "skillRuns/test",
        tier: Tier = Tier.MANUAL,
        method: str = "nightshift.test.v1.TestService/Act",
        fence: int = 0,
        jti: str = "",
        arguments_digest: str = "0" * 64,
        single_use: bool = True,
        on_purpose: bool = True,
        initiator: str = "person/admin/tester",
        gate: FenceGate | None = None,
    ) -> Self:
        """An effect without a call, for tests of a core."""
        grant = Grant(
            skill=skill,
            skill_digest="test",
            skill_run=skill_run,
            tier=tier,
            methods=frozenset({method}),
            fence=fence,
            jti=jti or new_id(),
            expires_at=dt.datetime.max.replace(tzinfo=dt.UTC),
            audience="test",
            thumbprint="test",
            approval="approvals/test",
            arguments_digest=arguments_digest,
            on_purpose=on_purpose,
            initiator=initiator,
        )
        return cls(
            grant, method, arguments_digest, single_use, initiator, lambda: dt.datetime.now(dt.UTC), gate
        )

    def begin(self, connection: sa.Connection) -> bytes | None:
        """Checks the fence again, and whether the grant was redeemed already.

        Returns:
            None when the effect may take place; the stored answer where this very call has had its effect.

        Raises:
            Preempted: a user has come since the call began.
            GrantReplayed: the grant was used for another method or other arguments.
        """
        self._check_fence(connection)
        if not self.single_use:
            return None
        table = KIT.redeemed
        row = connection.execute(
            sa.select(table.c.arguments_digest, table.c.answer).where(table.c.jti == self.grant.jti)
        ).one_or_none()
        if row is None:
            return None
        if row.arguments_digest != self._call_digest:
            raise GrantReplayed(
                "The grant was used already, for something else.", metadata={"jti": self.grant.jti}
            )
        return bytes(row.answer)

    def finish(self, connection: sa.Connection, answer: bytes) -> None:
        """Redeems the grant and stores the answer (serialised) for an identical retry.

        Raises:
            EffectUnfinished: another process is doing the same; this transaction must not commit.
        """
        if not self.single_use:
            return
        try:
            connection.execute(
                KIT.redeemed.insert().values(
                    jti=self.grant.jti, arguments_digest=self._call_digest, answer=answer, at=self.now()
                )
            )
        except sa.exc.IntegrityError as error:
            raise EffectUnfinished(
                "The same call has just been done elsewhere; ask again for its answer.",
                metadata={"jti": self.grant.jti},
                retry_after_s=0.5,
            ) from error

    @property
    def _call_digest(self) -> str:
        # A grant may name several methods, so the arguments alone do not say which call it was.
        return f"{self.method} {self.arguments_digest}"

    def _check_fence(self, connection: sa.Connection) -> None:
        if self.gate is not None:
            self.gate.check(self.grant)
        stored = read_fence(connection, _EVERYTHING if self.grant.on_purpose else _BACKGROUND)
        if self.grant.fence < stored:
            raise _stopped(self.grant, stored)

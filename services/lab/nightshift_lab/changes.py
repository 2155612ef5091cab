"""Changes of the platform's folder: the only code that touches it.

    one thread, one change at a time
      read production ─▶ transaction: fence, grant, checks, rows, audit event, intent, answer ─▶ commit
                                                                                 │
                                            file effect: temp file, fsync, rename, fsync ◀┘
                                              └─ fails: a second transaction takes all of it back

A crash after the commit is redone from the intent at the next start; a crash before it has done nothing. So a
change whose answer was lost is found done, once, by the same grant asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import sqlalchemy as sa
import structlog

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import DriftDetected, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.safe_files import FileEffects, Outcome
from nightshift_kit.storage import Database

from .catalog import Catalog
from .errors import PlatformMissing
from .records import Promotion, Proposal, State, promotion_to_bytes
from .resources import PromotionName, ProposalName
from .store import promotions as rows
from .store import proposals as proposal_rows

_T = TypeVar("_T")
_log = structlog.get_logger("nightshift.lab")
#: Everybody who may list and run configs can read them; the platform usually runs as another user.
_MODE = 0o644


@dataclass(frozen=True)
class Planned:
    """A committed promotion.

    Attributes:
        promotion: It.
        fresh: Whether its file is still to be changed; False for the stored answer of an earlier call.
        before, after: The proposal that comes or goes with it, where one does.
    """

    promotion: Promotion
    fresh: bool = False
    before: Proposal | None = None
    after: Proposal | None = None


class Changes:
    """Makes promotions, of whatever kind, happen exactly once.

    Args:
        db: The lab's database.
        effects: File effects on the platform's root; None where there is no platform.
        catalog: Reads production; blocks.
        outbox: The lab's audit outbox.
        clock: Times of the records.
    """

    def __init__(
        self,
        db: Database,
        effects: FileEffects | None,
        catalog: Callable[[], Catalog],
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        self._db = db
        self._files = effects
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock
        # One thread: changes queue, and a caller that hangs up does not let the next one overtake.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lab-promotion")

    def close(self) -> None:
        """Waits for the running change and takes no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def _effects(self) -> FileEffects:
        if self._files is None:
            raise PlatformMissing("The platform's folder is not there; nothing can be promoted.")
        return self._files

    async def make(self, transaction: Callable[[sa.Connection, Catalog], Planned]) -> Promotion:
        """Commit a change, then change the file; take everything back where the file cannot be changed.

        Args:
            transaction: Given production as it is now; ends with `plan`, or with a stored answer.

        Raises:
            What the transaction raises, and the errors of files.
        """

        def work() -> Promotion:
            catalog = self._catalog()
            return self._done(lambda connection: transaction(connection, catalog))

        return await self._alone(work)

    async def _alone(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def plan(
        self,
        connection: sa.Connection,
        effect: Effect,
        promotion: Promotion,
        kind: str,
        *,
        before: Proposal | None = None,
        after: Proposal | None = None,
        further: Mapping[str, object] | None = None,
    ) -> Planned:
        """Everything that must be on disk before the file changes, in the caller's transaction.

        Args:
            connection: The transaction's.
            effect: Begun; finished here.
            promotion: What is to happen.
            kind: Of the audit event.
            before: The proposal that comes or goes with it, as it was.
            after: As it will be.
            further: What else the audit event says; no text.
        """
        if after is not None:
            proposal_rows.update(connection, after)
        known = promotion.previous_digest
        if promotion.content is None:
            intent = self._effects.plan_remove(connection, promotion.path, known)
        else:
            # A file that is there keeps its mode.
            intent = self._effects.plan_write(
                connection, promotion.path, promotion.content, known or None, mode=None if known else _MODE
            )
        promotion = replace(promotion, intent_id=intent, jti=effect.grant.jti)
        rows.insert(connection, promotion)
        told = {"skill_run": effect.grant.skill_run, **(further or {})}
        self._tell(connection, promotion, kind, effect.actor, told)
        effect.finish(connection, promotion_to_bytes(promotion))
        return Planned(promotion, True, before, after)

    def _done(self, transaction: Callable[[sa.Connection], Planned]) -> Promotion:
        planned = self._db.write_sync(transaction)
        if not planned.fresh:
            return planned.promotion
        try:
            self._effects.apply_sync(planned.promotion.intent_id)
        except (NightshiftError, OSError) as error:
            self._take_back(planned, error)
            raise
        return planned.promotion

    def _take_back(self, planned: Planned, error: Exception) -> None:
        """As if the call had never been made, save for the audit events of its beginning and its end.

        Where the file may have been changed all the same, or the database fails as well, everything stays:
        the intent is finished at the next start, and what the rows say becomes true.
        """
        promotion, before, after = planned.promotion, planned.before, planned.after

        def transaction(connection: sa.Connection) -> None:
            if self._effects.intent(connection, promotion.intent_id).state == "planned":
                self._effects.withdraw(connection, promotion.intent_id)
            if before is not None and after is not None:
                proposal_rows.restore(connection, before, instead_of=after)
            self._forget(connection, promotion, error)

        try:
            self._db.write_sync(transaction)
        except NightshiftError as problem:
            _log.error("promotion_not_taken_back", promotion=promotion.promotion_id, problem=str(problem))

    def recover(self) -> int:
        """Finish what a crash left half done; to be called at start, before anything is served. Blocks.

        A file that somebody changed between the crash and now is left to them, and its promotion is taken
        back.

        Returns:
            How many intents were found.

        Raises:
            The storage's typed errors.
        """
        if self._files is None:
            return 0
        found = self._files.recover_sync()
        for recovery in found:
            _log.warning("promotion_recovered", path=recovery.path, outcome=recovery.outcome.value)
            if recovery.outcome is Outcome.DRIFTED:
                self._db.write_sync(self._lost, recovery.intent_id)
        return len(found)

    def _lost(self, connection: sa.Connection, intent_id: str) -> None:
        promotion = rows.by_intent(connection, intent_id)
        if promotion is None:
            return
        if promotion.moves_proposal:
            proposal = proposal_rows.get(connection, promotion.proposal_id, for_update=True)
            to = State.VALIDATED if promotion.digest else State.PROMOTED
            proposal_rows.update(connection, proposal.moved(to, self._clock.now()))
        self._forget(connection, promotion, DriftDetected("the file was changed by somebody else"))

    def _forget(self, connection: sa.Connection, promotion: Promotion, error: Exception) -> None:
        rows.withdraw(connection, promotion)
        reason = error.reason if isinstance(error, NightshiftError) else "STORAGE_IO"
        self._tell(connection, promotion, "config.promotion_failed", "service/lab", {"reason": reason})

    def _tell(
        self,
        connection: sa.Connection,
        promotion: Promotion,
        kind: str,
        actor: str,
        further: Mapping[str, object],
    ) -> None:
        """Audit event: ids and digests, no text."""
        self._outbox.append(
            connection,
            kind=kind,
            actor=actor,
            subject=PromotionName(promotion.promotion_id).name,
            payload={
                "config_id": promotion.config_id,
                "path": promotion.path,
                "previous_digest": promotion.previous_digest,
                "digest": promotion.digest,
                "proposal": ProposalName(promotion.proposal_id).name if promotion.proposal_id else "",
                "rolls_back": promotion.rolls_back,
                **further,
            },
        )

"""Promotion and rollback: the only code that changes the platform's folder.

    one thread, one promotion at a time
      read production ─▶ transaction: fence, grant, checks, rows, audit event, intent, answer ─▶ commit
                                                                                 │
                                            file effect: temp file, fsync, rename, fsync ◀┘
                                              └─ fails: a second transaction takes all of it back

A crash after the commit is redone from the intent at the next start; a crash before it has done nothing. So a
promotion whose answer was lost is found done, once, by the same grant asked again.
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
from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import ContentChanged, DriftDetected, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.safe_files import FileEffects, Outcome
from nightshift_kit.storage import Database

from .catalog import Catalog
from .content import file_bytes
from .errors import AlreadyRolledBack, ConfigExists, PlatformMissing, PromotionConflict, VersionGone
from .paths import check_path
from .proposals import check_transition, check_version, refuse_taken_id
from .records import Kind, Promotion, Proposal, State, promotion_from_bytes, promotion_to_bytes
from .resources import PromotionName, ProposalName
from .store import promotions as rows
from .store import proposals as proposal_rows

_T = TypeVar("_T")
_log = structlog.get_logger("nightshift.lab")
#: Everybody who may list and run configs can read them; the platform usually runs as another user.
_MODE = 0o644


@dataclass(frozen=True)
class _Planned:
    """A committed promotion; without `before` and `after` it is the stored answer of an earlier call."""

    promotion: Promotion
    before: Proposal | None = None
    after: Proposal | None = None


class Promotions:
    """Moves proposals into production's folder and back.

    Args:
        db: The lab's database.
        effects: File effects on the platform's root; None where there is no platform.
        catalog: Reads production; blocks.
        outbox: The lab's audit outbox.
        clock: Times of the records.
        new_id: Makes ids that sort by time.
    """

    def __init__(
        self,
        db: Database,
        effects: FileEffects | None,
        catalog: Callable[[], Catalog],
        outbox: Outbox,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._db = db
        self._files = effects
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock
        self._new_id = new_id
        # One thread: promotions queue, and a caller that hangs up does not let the next one overtake.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lab-promotion")

    def close(self) -> None:
        """Waits for the running promotion and takes no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def _effects(self) -> FileEffects:
        if self._files is None:
            raise PlatformMissing("The platform's folder is not there; nothing can be promoted.")
        return self._files

    async def _alone(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def promote(
        self, effect: Effect, proposal_id: str, etag: str, content_digest: str, path: str
    ) -> Promotion:
        """Write a validated proposal into production's folder.

        Args:
            effect: The call's right to its effect.
            proposal_id: Which.
            etag: Of the version that the decider saw.
            content_digest: SHA-256 (hex) of the bytes that the decider approved.
            path: "" or the one path that is allowed.

        Raises:
            ProposalUnknown, EtagMismatch, PromotionConflict, ProposalState, ContentChanged, ConfigExists,
            ConfigIdCollision, ProtectedFile, PathEscape, NotRegularFile, DriftDetected, DiskFull,
            StorageReadOnly, StorageIo, AuditUnavailable.
        """

        def work() -> Promotion:
            catalog = self._catalog()
            return self._done(
                lambda connection: self._promote(
                    connection, effect, proposal_id, etag, content_digest, path, catalog
                ),
            )

        return await self._alone(work)

    def _promote(
        self,
        connection: sa.Connection,
        effect: Effect,
        proposal_id: str,
        etag: str,
        content_digest: str,
        path: str,
        catalog: Catalog,
    ) -> _Planned:
        stored = effect.begin(connection)
        if stored is not None:
            return _Planned(promotion_from_bytes(stored))
        proposal = proposal_rows.get(connection, proposal_id, for_update=True)
        target = check_path(path, proposal.config_id)
        if proposal.state is State.PROMOTED and etag == proposal.promoted_etag:
            raise PromotionConflict("Somebody else has just promoted this very version.")
        check_version(proposal, etag)
        check_transition(proposal, State.PROMOTED)
        _check_bytes(proposal, content_digest)
        _check_free(proposal.config_id, target, catalog)
        now = self._clock.now()
        promotion = Promotion(
            promotion_id=self._new_id(),
            kind=Kind.PROMOTE,
            proposal_id=proposal_id,
            config_id=proposal.config_id,
            path=target,
            previous_digest="",
            previous_content=None,
            digest=proposal.content_digest,
            content=proposal.file_content,
            rolls_back="",
            rolled_back_by="",
            created_at=now,
            actor=effect.actor,
        )
        moved = proposal.moved(State.PROMOTED, now, promoted_etag=etag)
        return self._plan(connection, effect, promotion, proposal, moved, "config.promoted")

    async def roll_back(self, effect: Effect, promotion_id: str, current_digest: str) -> Promotion:
        """Restore what a promotion replaced, as a new promotion.

        Args:
            effect: The call's right to its effect.
            promotion_id: Which.
            current_digest: SHA-256 (hex) of the file as the decider saw it, "" if it was not there.

        Raises:
            PromotionUnknown, AlreadyRolledBack, VersionGone, DriftDetected, ProposalState;
            ConfigIdCollision and ConfigExists where the id to restore has been taken; the errors of files
            as promote.
        """

        def work() -> Promotion:
            catalog = self._catalog()
            return self._done(
                lambda connection: self._roll_back(connection, effect, promotion_id, current_digest, catalog),
            )

        return await self._alone(work)

    def _roll_back(
        self,
        connection: sa.Connection,
        effect: Effect,
        promotion_id: str,
        current_digest: str,
        catalog: Catalog,
    ) -> _Planned:
        stored = effect.begin(connection)
        if stored is not None:
            return _Planned(promotion_from_bytes(stored))
        undone = rows.get(connection, promotion_id, for_update=True)
        if undone.rolled_back_by:
            raise AlreadyRolledBack(
                "The promotion has been taken back already.",
                metadata={"rolled_back_by": PromotionName(undone.rolled_back_by).name},
            )
        target = check_path(undone.path, undone.config_id)
        _check_drift(undone, current_digest, target, catalog)
        if undone.previous_digest and (
            undone.previous_content is None or sha256_hex(undone.previous_content) != undone.previous_digest
        ):
            raise VersionGone("The bytes that stood there before are no longer kept.")
        if undone.previous_digest and not undone.digest:
            # What is restored was away for a while: its id may have been given to somebody else.
            refuse_taken_id(undone.config_id, catalog)
        now = self._clock.now()
        proposal = proposal_rows.get(connection, undone.proposal_id, for_update=True)
        to = State.PROMOTED if undone.previous_digest else State.VALIDATED
        check_transition(proposal, to)
        moved = proposal.moved(to, now, promoted_etag=proposal.etag if to is State.PROMOTED else None)
        promotion = Promotion(
            promotion_id=self._new_id(),
            kind=Kind.ROLLBACK,
            proposal_id=undone.proposal_id,
            config_id=undone.config_id,
            path=target,
            previous_digest=undone.digest,
            previous_content=undone.content,
            digest=undone.previous_digest,
            content=undone.previous_content,
            rolls_back=undone.promotion_id,
            rolled_back_by="",
            created_at=now,
            actor=effect.actor,
        )
        rows.mark_rolled_back(connection, undone.promotion_id, promotion.promotion_id)
        return self._plan(connection, effect, promotion, proposal, moved, "config.rolled_back")

    def _plan(
        self,
        connection: sa.Connection,
        effect: Effect,
        promotion: Promotion,
        before: Proposal,
        after: Proposal,
        kind: str,
    ) -> _Planned:
        """Everything that must be on disk before the file changes, in the caller's transaction."""
        proposal_rows.update(connection, after)
        known = promotion.previous_digest
        if promotion.content is None:
            intent = self._effects.plan_remove(connection, promotion.path, known)
        else:
            intent = self._effects.plan_write(
                connection, promotion.path, promotion.content, known or None, mode=_MODE
            )
        promotion = replace(promotion, intent_id=intent, jti=effect.grant.jti)
        rows.insert(connection, promotion)
        self._tell(connection, promotion, kind, effect.actor, {"skill_run": effect.grant.skill_run})
        effect.finish(connection, promotion_to_bytes(promotion))
        return _Planned(promotion, before, after)

    def _done(self, transaction: Callable[[sa.Connection], _Planned]) -> Promotion:
        """Commit, then change the file; take everything back where the file cannot be changed."""
        planned = self._db.write_sync(transaction)
        if planned.before is None or planned.after is None:
            return planned.promotion
        try:
            self._effects.apply_sync(planned.promotion.intent_id)
        except (NightshiftError, OSError) as error:
            self._take_back(planned, error)
            raise
        return planned.promotion

    def _take_back(self, planned: _Planned, error: Exception) -> None:
        """As if the call had never been made, save for the audit events of its beginning and its end.

        Where the file may have been changed all the same, or the database fails as well, everything stays:
        the intent is finished at the next start, and what the rows say becomes true.
        """
        promotion, before, after = planned.promotion, planned.before, planned.after
        assert before is not None
        assert after is not None

        def transaction(connection: sa.Connection) -> None:
            if self._effects.intent(connection, promotion.intent_id).state == "planned":
                self._effects.withdraw(connection, promotion.intent_id)
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
                "proposal": ProposalName(promotion.proposal_id).name,
                "rolls_back": promotion.rolls_back,
                **further,
            },
        )

    async def get(self, promotion_id: str) -> Promotion:
        """One promotion. Raises PromotionUnknown."""
        return await self._db.read(rows.get, promotion_id)

    async def page(self, limit: int, before: str | None) -> list[Promotion]:
        """At most `limit` promotions, newest first, older than the id `before`."""

        def read(connection: sa.Connection) -> list[Promotion]:
            return rows.page(connection, limit, before=before)

        return await self._db.read(read)

    async def standing(self) -> dict[str, str]:
        """What Nightshift has put into production's folder and not taken away: path → digest."""
        return await self._db.read(rows.standing)


def _check_bytes(proposal: Proposal, approved_digest: str) -> None:
    """Raises ContentChanged unless what is stored is, byte for byte, what was approved."""
    stored = sha256_hex(proposal.file_content)
    if approved_digest != proposal.content_digest or stored != proposal.content_digest:
        raise ContentChanged(
            "The bytes to be written are not those that were approved; look at the proposal again.",
            metadata={"content_digest": stored},
        )
    if file_bytes(proposal.content) != proposal.file_content:
        raise ContentChanged("The proposal's content and the bytes to be written differ.")


def _check_free(config_id: str, target: str, catalog: Catalog) -> None:
    """Raises unless nothing has the target's place or id; for a link or FIFO the safe files' own error."""
    there = catalog.at(target)
    if there is not None:
        if there.refusal is not None:
            raise there.refusal
        raise ConfigExists(f"Production has a config {config_id!r} already.")
    refuse_taken_id(config_id, catalog)


def _check_drift(undone: Promotion, seen_digest: str, target: str, catalog: Catalog) -> None:
    """Raises DriftDetected unless the file is what the promotion left and what the decider saw."""
    there = catalog.at(target)
    if there is not None and there.refusal is not None:
        raise there.refusal
    now = there.digest if there is not None else ""
    if now != undone.digest or seen_digest != now:
        raise DriftDetected(
            "The file is not what this promotion left there; somebody has changed it since.",
            metadata={"path": target, "digest": now, "left": undone.digest},
        )

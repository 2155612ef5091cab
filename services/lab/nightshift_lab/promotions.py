"""Promotion and rollback of proposals, and the list of everything that changed production's folder."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import ContentChanged, DriftDetected
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database

from .catalog import Catalog
from .changes import Changes, Planned
from .content import file_bytes
from .errors import AlreadyRolledBack, ConfigExists, PromotionConflict, VersionGone
from .paths import check_path, existing_path
from .proposals import check_transition, check_version, refuse_taken_id
from .records import Kind, Promotion, Proposal, State, promotion_from_bytes
from .resources import PromotionName
from .store import promotions as rows
from .store import proposals as proposal_rows


class Promotions:
    """Moves proposals into production's folder and back.

    Args:
        db: The lab's database.
        changes: Changes the folder.
        clock: Times of the records.
        new_id: Makes ids that sort by time.
    """

    def __init__(self, db: Database, changes: Changes, clock: Clock, new_id: Callable[[], str]) -> None:
        self._db = db
        self._changes = changes
        self._clock = clock
        self._new_id = new_id

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
        return await self._changes.make(
            lambda connection, catalog: self._promote(
                connection, effect, proposal_id, etag, content_digest, path, catalog
            )
        )

    def _promote(
        self,
        connection: sa.Connection,
        effect: Effect,
        proposal_id: str,
        etag: str,
        content_digest: str,
        path: str,
        catalog: Catalog,
    ) -> Planned:
        stored = effect.begin(connection)
        if stored is not None:
            return Planned(promotion_from_bytes(stored))
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
        return self._changes.plan(
            connection, effect, promotion, "config.promoted", before=proposal, after=moved
        )

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
        return await self._changes.make(
            lambda connection, catalog: self._roll_back(
                connection, effect, promotion_id, current_digest, catalog
            )
        )

    def _roll_back(
        self,
        connection: sa.Connection,
        effect: Effect,
        promotion_id: str,
        current_digest: str,
        catalog: Catalog,
    ) -> Planned:
        stored = effect.begin(connection)
        if stored is not None:
            return Planned(promotion_from_bytes(stored))
        undone = rows.get(connection, promotion_id, for_update=True)
        if undone.rolled_back_by:
            raise AlreadyRolledBack(
                "The promotion has been taken back already.",
                metadata={"rolled_back_by": PromotionName(undone.rolled_back_by).name},
            )
        by_people = not undone.proposal_id
        target = existing_path(undone.config_id) if by_people else check_path(undone.path, undone.config_id)
        _check_drift(undone, current_digest, target, catalog)
        if undone.previous_digest and (
            undone.previous_content is None or sha256_hex(undone.previous_content) != undone.previous_digest
        ):
            raise VersionGone("The bytes that stood there before are no longer kept.")
        if undone.previous_digest and not undone.digest:
            # What is restored was away for a while: its id may have been given to somebody else.
            refuse_taken_id(undone.config_id, catalog)
        now = self._clock.now()
        before, after = self._proposal_back(connection, undone)
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
        return self._changes.plan(
            connection, effect, promotion, "config.rolled_back", before=before, after=after
        )

    def _proposal_back(
        self, connection: sa.Connection, undone: Promotion
    ) -> tuple[Proposal | None, Proposal | None]:
        """The proposal that goes, or comes again, with a rollback: as it was, and as it will be."""
        if not undone.moves_proposal:
            return None, None
        proposal = proposal_rows.get(connection, undone.proposal_id, for_update=True)
        to = State.PROMOTED if undone.previous_digest else State.VALIDATED
        check_transition(proposal, to)
        etag = proposal.etag if to is State.PROMOTED else None
        return proposal, proposal.moved(to, self._clock.now(), promoted_etag=etag)

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

"""Proposals: stored with their whole report, turned down, listed. Their promotion stands in promotions.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import canonical_json, sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import EtagMismatch, FieldInvalid
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database

from .catalog import Catalog
from .content import file_bytes
from .drafting import unified_diff
from .errors import ConfigExists, ConfigIdCollision, ConfigIdInvalid, ConfigUnknown, ProposalState
from .records import TRANSITIONS, Proposal, State, proposal_from_bytes, proposal_to_bytes
from .resources import ProposalName
from .store import proposals as rows
from .validation.identity import fold, id_findings
from .validation.report import Report
from .validation.validator import validate
from .wording import Json

#: A config of production has about 6 kB.
MAX_CONTENT_BYTES = 256 * 1024
MAX_COMMENT_CHARACTERS = 2000
MAX_DRAFTED_BY_CHARACTERS = 200
MAX_TEMPLATES = 32


@dataclass(frozen=True)
class NewProposal:
    """What somebody wants to propose; `templates` are config ids."""

    config_id: str
    content: Mapping[str, Json]
    opportunity: str = ""
    templates: tuple[str, ...] = ()
    drafted_by: str = ""


class Proposals:
    """Stores proposals and changes their states.

    Args:
        db: The lab's database.
        catalog: Reads production; blocks, so it is called in a thread.
        outbox: The lab's audit outbox.
        clock: Times of the records.
        new_id: Makes ids that sort by time.
    """

    def __init__(
        self,
        db: Database,
        catalog: Callable[[], Catalog],
        outbox: Outbox,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._db = db
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock
        self._new_id = new_id

    async def create(self, effect: Effect, new: NewProposal) -> Proposal:
        """Store a proposal with its full report: VALIDATED if it has no error, else DRAFT.

        Raises:
            ConfigIdInvalid: the id cannot be a file's stem.
            ConfigExists, ConfigIdCollision: a config has the id, or one that folds alike.
            ProposalOpen: the id is proposed already.
            FieldInvalid: the content is too large, or a text is too long.
        """
        content = _checked(new)
        catalog = await asyncio.to_thread(self._catalog)
        report = await asyncio.to_thread(validate, new.config_id, new.content, catalog.surroundings)
        return await self._db.write(self._create, effect, new, content, report, catalog)

    def _create(
        self,
        connection: sa.Connection,
        effect: Effect,
        new: NewProposal,
        content: bytes,
        report: Report,
        catalog: Catalog,
    ) -> Proposal:
        stored = effect.begin(connection)
        if stored is not None:
            return proposal_from_bytes(stored)
        refuse_taken_id(new.config_id, catalog)
        now = self._clock.now()
        proposal = Proposal(
            proposal_id=self._new_id(),
            config_id=new.config_id,
            state=State.VALIDATED if report.valid else State.DRAFT,
            content=new.content,
            file_content=content,
            content_digest=sha256_hex(content),
            opportunity=new.opportunity,
            templates=new.templates,
            drafted_by=new.drafted_by,
            report=report,
            revision=1,
            created_at=now,
            updated_at=now,
        )
        rows.insert(connection, proposal)
        self._outbox.append(
            connection,
            kind="proposal.created",
            actor=effect.actor,
            subject=ProposalName(proposal.proposal_id).name,
            payload={
                "config_id": proposal.config_id,
                "content_digest": proposal.content_digest,
                "state": proposal.state.value,
                "skill_run": effect.grant.skill_run,
            },
        )
        effect.finish(connection, proposal_to_bytes(proposal))
        return proposal

    async def reject(self, effect: Effect, proposal_id: str, etag: str, comment: str) -> Proposal:
        """Turn a proposal down; its history stays.

        Raises:
            ProposalUnknown: there is none.
            EtagMismatch: it is not the version that the decider saw.
            ProposalState: it is in production, or turned down already.
            FieldInvalid: the comment is too long.
        """
        if len(comment) > MAX_COMMENT_CHARACTERS:
            raise FieldInvalid.at("comment", f"at most {MAX_COMMENT_CHARACTERS} characters")
        return await self._db.write(self._reject, effect, proposal_id, etag, comment)

    def _reject(
        self, connection: sa.Connection, effect: Effect, proposal_id: str, etag: str, comment: str
    ) -> Proposal:
        stored = effect.begin(connection)
        if stored is not None:
            return proposal_from_bytes(stored)
        before = rows.get(connection, proposal_id, for_update=True)
        check_version(before, etag)
        check_transition(before, State.REJECTED)
        after = before.moved(State.REJECTED, self._clock.now(), comment=comment)
        rows.update(connection, after)
        self._outbox.append(
            connection,
            kind="proposal.rejected",
            actor=effect.actor,
            subject=ProposalName(proposal_id).name,
            # The comment is a person's text: its digest says which one it was.
            payload={"config_id": after.config_id, "comment_sha256": sha256_hex(comment.encode())},
        )
        effect.finish(connection, proposal_to_bytes(after))
        return after

    async def get(self, proposal_id: str) -> Proposal:
        """One proposal. Raises ProposalUnknown."""
        return await self._db.read(rows.get, proposal_id)

    async def page(self, limit: int, before: str | None, state: State | None) -> list[Proposal]:
        """At most `limit` proposals, newest first, older than the id `before`."""

        def read(connection: sa.Connection) -> list[Proposal]:
            return rows.page(connection, limit, before=before, state=state)

        return await self._db.read(read)

    async def diff(self, proposal_id: str, config_id: str) -> tuple[str, str]:
        """Unified diff from a config ("" means the nearest) to a proposal, and the config's id.

        Raises:
            ProposalUnknown: there is no such proposal.
            ConfigUnknown: production does not have the config, or it cannot be read.
        """
        proposal = await self.get(proposal_id)
        catalog = await asyncio.to_thread(self._catalog)
        other = config_id or proposal.report.nearest_config
        if not config_id and other not in catalog.contents:
            report = await asyncio.to_thread(
                validate, proposal.config_id, proposal.content, catalog.surroundings
            )
            other = report.nearest_config
        if other not in catalog.contents:
            raise ConfigUnknown(f"Production has no readable interception config {other!r}.")
        text = await asyncio.to_thread(
            unified_diff, catalog.contents[other], proposal.content, other, proposal.config_id
        )
        return text, other


def _checked(new: NewProposal) -> bytes:
    """The file's bytes of a proposal whose fields can be stored."""
    for finding in id_findings(new.config_id):
        raise ConfigIdInvalid.at("config_id", finding.message)
    if len(new.drafted_by) > MAX_DRAFTED_BY_CHARACTERS:
        raise FieldInvalid.at("drafted_by", f"at most {MAX_DRAFTED_BY_CHARACTERS} characters")
    if len(new.templates) > MAX_TEMPLATES:
        raise FieldInvalid.at("templates", f"at most {MAX_TEMPLATES}")
    try:
        canonical_json(new.content)
        content = file_bytes(new.content)
    except ValueError as error:
        raise FieldInvalid.at(
            "content", "holds what no JSON file can: NaN, infinity, lone surrogates"
        ) from error
    if len(content) > MAX_CONTENT_BYTES:
        raise FieldInvalid.at("content", f"{len(content)} bytes; at most {MAX_CONTENT_BYTES}")
    return content


def refuse_taken_id(config_id: str, catalog: Catalog) -> None:
    """Raises ConfigExists or ConfigIdCollision where a config has the id, or one that folds alike."""
    if config_id in catalog.surroundings.production:
        raise ConfigExists(f"Production has a config {config_id!r} already; propose a new id.")
    path = catalog.taken.get(fold(config_id))
    if path is not None:
        raise ConfigIdCollision(
            f"{config_id!r} collides with {path}; choose another id.", metadata={"path": path}
        )


def check_version(proposal: Proposal, etag: str) -> None:
    """Raises EtagMismatch where the proposal is not the version that the caller saw."""
    if proposal.etag != etag:
        raise EtagMismatch("The proposal has changed since it was read; read it again.")


def check_transition(proposal: Proposal, to: State) -> None:
    """Raises ProposalState where the proposal cannot go there."""
    if to not in TRANSITIONS[proposal.state]:
        raise ProposalState(
            f"The proposal is {proposal.state.value} and cannot become {to.value}.",
            metadata={"state": proposal.state.value},
        )

"""Proposals in SQL. Every function runs inside the caller's transaction and commits nothing."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from nightshift_kit.canonical import canonical_json
from nightshift_kit.errors import EtagMismatch

from ..errors import ProposalOpen, ProposalUnknown
from ..records import OPEN_STATES, Proposal, State, report_from_json, report_to_json
from .tables import proposals


def _values(proposal: Proposal) -> dict[str, Any]:
    return {
        "proposal_id": proposal.proposal_id,
        "config_id": proposal.config_id,
        "state": proposal.state.value,
        "content": canonical_json(proposal.content).decode(),
        "file_content": proposal.file_content,
        "content_digest": proposal.content_digest,
        "opportunity": proposal.opportunity,
        "templates": json.dumps(list(proposal.templates), ensure_ascii=False),
        "drafted_by": proposal.drafted_by,
        "report": canonical_json(report_to_json(proposal.report)).decode(),
        "revision": proposal.revision,
        "created_at": proposal.created_at,
        "updated_at": proposal.updated_at,
        "comment": proposal.comment,
        "promoted_etag": proposal.promoted_etag,
    }


def _record(row: sa.Row[Any]) -> Proposal:
    values = dict(row._mapping)
    return Proposal(
        **{
            **values,
            "state": State(values["state"]),
            "content": json.loads(values["content"]),
            "file_content": bytes(values["file_content"]),
            "templates": tuple(json.loads(values["templates"])),
            "report": report_from_json(json.loads(values["report"])),
        }
    )


def insert(connection: sa.Connection, proposal: Proposal) -> None:
    """Store a new proposal.

    Raises:
        ProposalOpen: another open proposal has the id.
    """
    taken = connection.execute(
        sa.select(proposals.c.proposal_id).where(
            proposals.c.config_id == proposal.config_id,
            proposals.c.state.in_([state.value for state in OPEN_STATES]),
        )
    ).scalar_one_or_none()
    if taken is None:
        try:
            with connection.begin_nested():
                connection.execute(proposals.insert().values(_values(proposal)))
        except sa.exc.IntegrityError as error:
            # The index refuses what another process stored between our look and our insert.
            raise _is_open(proposal.config_id, "") from error
        return
    raise _is_open(proposal.config_id, taken)


def _is_open(config_id: str, proposal_id: str) -> ProposalOpen:
    return ProposalOpen(
        f"{config_id!r} is proposed already; reject that proposal first or choose another id.",
        metadata={"proposal": f"proposals/{proposal_id}"} if proposal_id else None,
    )


def get(connection: sa.Connection, proposal_id: str, *, for_update: bool = False) -> Proposal:
    """One proposal.

    Args:
        connection: The caller's.
        proposal_id: Its id.
        for_update: Hold the row until the transaction ends.

    Raises:
        ProposalUnknown: there is none.
    """
    query = sa.select(proposals).where(proposals.c.proposal_id == proposal_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise ProposalUnknown("There is no such proposal.", metadata={"proposal": f"proposals/{proposal_id}"})
    return _record(row)


def page(
    connection: sa.Connection, limit: int, *, before: str | None = None, state: State | None = None
) -> list[Proposal]:
    """At most `limit` proposals, newest first, older than the id `before`."""
    query = sa.select(proposals).order_by(proposals.c.proposal_id.desc()).limit(limit)
    if before is not None:
        query = query.where(proposals.c.proposal_id < before)
    if state is not None:
        query = query.where(proposals.c.state == state.value)
    return [_record(row) for row in connection.execute(query)]


def update(connection: sa.Connection, proposal: Proposal) -> None:
    """Store a changed proposal, whose revision is one more than the stored one.

    Raises:
        EtagMismatch: it has been changed by somebody else in between.
        ProposalOpen: it becomes open again while another open proposal has the id.
    """
    try:
        with connection.begin_nested():
            done = connection.execute(
                proposals.update()
                .where(
                    proposals.c.proposal_id == proposal.proposal_id,
                    proposals.c.revision == proposal.revision - 1,
                )
                .values(
                    state=proposal.state.value,
                    revision=proposal.revision,
                    updated_at=proposal.updated_at,
                    comment=proposal.comment,
                    promoted_etag=proposal.promoted_etag,
                )
            )
    except sa.exc.IntegrityError as error:
        raise _is_open(proposal.config_id, "") from error
    if done.rowcount != 1:
        raise EtagMismatch("The proposal has been changed in between; read it again.")


def restore(connection: sa.Connection, before: Proposal, *, instead_of: Proposal) -> None:
    """Undo an update: the same revision, and so the same etag, as before.

    Raises:
        EtagMismatch: the proposal is no longer what the update made of it.
    """
    done = connection.execute(
        proposals.update()
        .where(proposals.c.proposal_id == before.proposal_id, proposals.c.revision == instead_of.revision)
        .values(
            state=before.state.value,
            revision=before.revision,
            updated_at=before.updated_at,
            comment=before.comment,
            promoted_etag=before.promoted_etag,
        )
    )
    if done.rowcount != 1:
        raise EtagMismatch("The proposal has been changed in between.")

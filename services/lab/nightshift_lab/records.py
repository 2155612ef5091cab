"""What the lab stores, as values: proposals, promotions, their states."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

from nightshift_kit.canonical import canonical_json, digest_json

from .validation.report import Finding, Report, Severity
from .wording import Json


class State(Enum):
    """State of a proposal; changed by transitions only.

    DRAFT ──▶ REJECTED ◀── VALIDATED ◀──▶ PROMOTED: promotion goes right, its rollback left.
    """

    DRAFT = "DRAFT"
    VALIDATED = "VALIDATED"
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"


#: States in which a proposal keeps its id from others.
OPEN_STATES = (State.DRAFT, State.VALIDATED)

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.DRAFT: frozenset({State.REJECTED}),
    State.VALIDATED: frozenset({State.PROMOTED, State.REJECTED}),
    State.PROMOTED: frozenset({State.VALIDATED}),
    State.REJECTED: frozenset(),
}


class Kind(Enum):
    """What a promotion did."""

    PROMOTE = "PROMOTE"
    ROLLBACK = "ROLLBACK"
    TRANSLATE = "TRANSLATE"


@dataclass(frozen=True)
class Proposal:
    """A config that somebody may promote.

    Attributes:
        proposal_id: UUIDv7.
        content: The config.
        file_content: The bytes that promotion writes; `content_digest` is their SHA-256 (hex).
        templates: Config ids.
        revision: From 1, one more with every change; the etag is made of it.
        promoted_etag: Etag of the version that was last promoted, "" before the first promotion.
    """

    proposal_id: str
    config_id: str
    state: State
    content: Mapping[str, Json]
    file_content: bytes
    content_digest: str
    opportunity: str
    templates: tuple[str, ...]
    drafted_by: str
    report: Report
    revision: int
    created_at: dt.datetime
    updated_at: dt.datetime
    comment: str = ""
    promoted_etag: str = ""

    @property
    def etag(self) -> str:
        """Changes with every change of the proposal."""
        return digest_json([self.proposal_id, self.revision, self.state.value, self.content_digest])[:32]

    def moved(
        self, state: State, at: dt.datetime, *, comment: str | None = None, promoted_etag: str | None = None
    ) -> Self:
        """The proposal in another state.

        Raises:
            ValueError: the transition does not exist.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no transition from {self.state.value} to {state.value}")
        return replace(
            self,
            state=state,
            revision=self.revision + 1,
            updated_at=at,
            comment=self.comment if comment is None else comment,
            promoted_etag=self.promoted_etag if promoted_etag is None else promoted_etag,
        )


@dataclass(frozen=True)
class Promotion:
    """One change of production's folder. Rollbacks and translations are promotions, too.

    Attributes:
        promotion_id: UUIDv7.
        proposal_id: Proposal that it is about, of a rollback or a translation as well; "" for a config that
            people wrote.
        previous_digest, digest: SHA-256 (hex) before and after, "" where there was no file.
        previous_content: Bytes before; None where there was no file or they are no longer kept.
        content: Bytes after; None where there is no file or they are no longer kept.
        rolls_back, rolled_back_by: Promotion ids, "" for none.
        actor: Who commanded it.
        intent_id: Of the file effect.
        jti: Of the grant.
    """

    promotion_id: str
    kind: Kind
    proposal_id: str
    config_id: str
    path: str
    previous_digest: str
    previous_content: bytes | None
    digest: str
    content: bytes | None
    rolls_back: str
    rolled_back_by: str
    created_at: dt.datetime
    actor: str
    intent_id: str = ""
    jti: str = ""

    @property
    def moves_proposal(self) -> bool:
        """Whether the config comes or goes with it; what only changes a file leaves its proposal as it is."""
        return bool(self.proposal_id) and not (self.previous_digest and self.digest)


@dataclass(frozen=True)
class ConfigReport:
    """What validation found in one config of production.

    Attributes:
        digest: SHA-256 (hex) of the file, "" where it could not be read.
        basis: Digest of everything that the report depends on.
        missing: (field, languages) of name, description and category.
    """

    config_id: str
    path: str
    digest: str
    basis: str
    findings: tuple[Finding, ...]
    missing: tuple[tuple[str, tuple[str, ...]], ...]
    validated_at: dt.datetime

    @property
    def valid(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


@dataclass(frozen=True)
class KeptText:
    """One drafted text; `problem` says why it was refused, "" if it was not."""

    field: str
    language: str
    basis: str
    text: str
    problem: str


def report_to_json(report: Report) -> dict[str, Any]:
    """JSON form of a report."""
    return {
        "findings": [[f.level, f.severity.value, f.field, f.reason, f.message] for f in report.findings],
        "levels": list(report.levels),
        "nearest_config": report.nearest_config,
        "nearest_similarity": report.nearest_similarity,
    }


def report_from_json(value: Mapping[str, Any]) -> Report:
    """Inverse of report_to_json."""
    return Report(
        findings=tuple(
            Finding(level, Severity(severity), field, reason, message)
            for level, severity, field, reason, message in value["findings"]
        ),
        nearest_config=value["nearest_config"],
        nearest_similarity=float(value["nearest_similarity"]),
        levels=tuple(value["levels"]),
    )


def proposal_to_bytes(proposal: Proposal) -> bytes:
    """A proposal as the stored answer of the call that changed it."""
    return canonical_json(
        {
            "proposal_id": proposal.proposal_id,
            "config_id": proposal.config_id,
            "state": proposal.state.value,
            "content": proposal.content,
            "file_content": proposal.file_content.decode(),
            "content_digest": proposal.content_digest,
            "opportunity": proposal.opportunity,
            "templates": list(proposal.templates),
            "drafted_by": proposal.drafted_by,
            "report": report_to_json(proposal.report),
            "revision": proposal.revision,
            "created_at": proposal.created_at.isoformat(),
            "updated_at": proposal.updated_at.isoformat(),
            "comment": proposal.comment,
            "promoted_etag": proposal.promoted_etag,
        }
    )


def proposal_from_bytes(data: bytes) -> Proposal:
    """Inverse of proposal_to_bytes."""
    value = json.loads(data)
    return Proposal(
        **{
            **value,
            "state": State(value["state"]),
            "file_content": value["file_content"].encode(),
            "templates": tuple(value["templates"]),
            "report": report_from_json(value["report"]),
            "created_at": dt.datetime.fromisoformat(value["created_at"]),
            "updated_at": dt.datetime.fromisoformat(value["updated_at"]),
        }
    )


def promotion_to_bytes(promotion: Promotion) -> bytes:
    """A promotion, without the files' bytes, as the stored answer of the call that made it."""
    return canonical_json(
        {
            "promotion_id": promotion.promotion_id,
            "kind": promotion.kind.value,
            "proposal_id": promotion.proposal_id,
            "config_id": promotion.config_id,
            "path": promotion.path,
            "previous_digest": promotion.previous_digest,
            "digest": promotion.digest,
            "rolls_back": promotion.rolls_back,
            "rolled_back_by": promotion.rolled_back_by,
            "created_at": promotion.created_at.isoformat(),
            "actor": promotion.actor,
        }
    )


def promotion_from_bytes(data: bytes) -> Promotion:
    """Inverse of promotion_to_bytes; the files' bytes are None."""
    value = json.loads(data)
    return Promotion(
        **{
            **value,
            "kind": Kind(value["kind"]),
            "created_at": dt.datetime.fromisoformat(value["created_at"]),
            "previous_content": None,
            "content": None,
        }
    )

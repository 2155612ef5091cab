"""Records to messages."""

from __future__ import annotations

import datetime as dt

from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.lab.v1 import lab_service_pb2 as service_pb
from nightshift.lab.v1 import resources_pb2 as pb

from ..catalog import ConfigFile
from ..drafting import DraftResult
from ..records import Kind, Promotion, Proposal, State
from ..resources import ConfigName, PromotionName, ProposalName
from ..validation.report import Report, Severity
from .values import to_struct

STATES = {
    State.DRAFT: pb.PROPOSAL_STATE_DRAFT,
    State.VALIDATED: pb.PROPOSAL_STATE_VALIDATED,
    State.PROMOTED: pb.PROPOSAL_STATE_PROMOTED,
    State.REJECTED: pb.PROPOSAL_STATE_REJECTED,
}
_KINDS = {Kind.PROMOTE: pb.PROMOTION_KIND_PROMOTE, Kind.ROLLBACK: pb.PROMOTION_KIND_ROLLBACK}
_SEVERITIES = {Severity.ERROR: pb.SEVERITY_ERROR, Severity.WARNING: pb.SEVERITY_WARNING}


def _time(instant: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def _config_name(config_id: str) -> str:
    return ConfigName(config_id).name if config_id else ""


def _promotion_name(promotion_id: str) -> str:
    return PromotionName(promotion_id).name if promotion_id else ""


def report(found: Report) -> pb.ValidationReport:
    """A validation report."""
    return pb.ValidationReport(
        valid=found.valid,
        findings=[
            pb.Finding(
                level=finding.level,
                severity=_SEVERITIES[finding.severity],
                field=finding.field,
                reason=finding.reason,
                message=finding.message,
            )
            for finding in found.findings
        ],
        levels=found.levels,
        nearest_config=_config_name(found.nearest_config),
        nearest_similarity=found.nearest_similarity,
    )


def config(file: ConfigFile, promoted: bool) -> pb.Config:
    """A config of production; `promoted` where Nightshift put these very bytes there."""
    return pb.Config(
        name=ConfigName(file.config_id).name,
        origin=pb.CONFIG_ORIGIN_PROMOTED if promoted else pb.CONFIG_ORIGIN_PRODUCTION,
        content=None if file.content is None else to_struct(file.content),
        digest=file.digest,
        path=file.path,
        problem=file.problem,
    )


def draft(made: DraftResult) -> service_pb.DraftProposalResponse:
    """A draft."""
    return service_pb.DraftProposalResponse(
        config_id=made.config_id,
        content=to_struct(made.content),
        templates=[_config_name(template) for template in made.templates],
        drafted_by=made.drafted_by,
        report=report(made.report),
        diff=made.diff,
    )


def proposal(stored: Proposal) -> pb.Proposal:
    """A proposal."""
    return pb.Proposal(
        name=ProposalName(stored.proposal_id).name,
        config_id=stored.config_id,
        state=STATES[stored.state],
        content=to_struct(stored.content),
        content_digest=stored.content_digest,
        opportunity=stored.opportunity,
        templates=[_config_name(template) for template in stored.templates],
        drafted_by=stored.drafted_by,
        report=report(stored.report),
        etag=stored.etag,
        create_time=_time(stored.created_at),
        update_time=_time(stored.updated_at),
        comment=stored.comment,
    )


def promotion(stored: Promotion) -> pb.Promotion:
    """A promotion."""
    return pb.Promotion(
        name=PromotionName(stored.promotion_id).name,
        kind=_KINDS[stored.kind],
        proposal=ProposalName(stored.proposal_id).name if stored.kind is Kind.PROMOTE else "",
        config_id=stored.config_id,
        path=stored.path,
        previous_digest=stored.previous_digest,
        digest=stored.digest,
        rolls_back=_promotion_name(stored.rolls_back),
        rolled_back_by=_promotion_name(stored.rolled_back_by),
        create_time=_time(stored.created_at),
        actor=stored.actor,
    )

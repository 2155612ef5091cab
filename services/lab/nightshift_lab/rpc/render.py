"""Records to messages."""

from __future__ import annotations

import datetime as dt

from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.lab.v1 import lab_service_pb2 as service_pb
from nightshift.lab.v1 import resources_pb2 as pb

from ..catalog import ConfigFile
from ..drafting import DraftResult
from ..records import ConfigReport, Kind, Promotion, Proposal, State
from ..reports import LabState, Validated, missing
from ..resources import ConfigName, PromotionName, ProposalName
from ..translation.drafting import TranslationDraft
from ..validation.report import Finding, Report, Severity
from .values import to_struct

STATES = {
    State.DRAFT: pb.PROPOSAL_STATE_DRAFT,
    State.VALIDATED: pb.PROPOSAL_STATE_VALIDATED,
    State.PROMOTED: pb.PROPOSAL_STATE_PROMOTED,
    State.REJECTED: pb.PROPOSAL_STATE_REJECTED,
}
_KINDS = {
    Kind.PROMOTE: pb.PROMOTION_KIND_PROMOTE,
    Kind.ROLLBACK: pb.PROMOTION_KIND_ROLLBACK,
    Kind.TRANSLATE: pb.PROMOTION_KIND_TRANSLATE,
}
_SEVERITIES = {Severity.ERROR: pb.SEVERITY_ERROR, Severity.WARNING: pb.SEVERITY_WARNING}


def _time(instant: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def _config_name(config_id: str) -> str:
    return ConfigName(config_id).name if config_id else ""


def _promotion_name(promotion_id: str) -> str:
    return PromotionName(promotion_id).name if promotion_id else ""


def _finding(found: Finding) -> pb.Finding:
    return pb.Finding(
        level=found.level,
        severity=_SEVERITIES[found.severity],
        field=found.field,
        reason=found.reason,
        message=found.message,
    )


def _missing(found: tuple[tuple[str, tuple[str, ...]], ...]) -> list[pb.MissingLanguages]:
    return [pb.MissingLanguages(field=field, languages=languages) for field, languages in found]


def report(found: Report) -> pb.ValidationReport:
    """A validation report."""
    return pb.ValidationReport(
        valid=found.valid,
        findings=[_finding(finding) for finding in found.findings],
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
        missing=_missing(missing(file)),
    )


def config_report(stored: ConfigReport) -> pb.ConfigReport:
    """A report on a config of production."""
    return pb.ConfigReport(
        name=ConfigName(stored.config_id).name,
        path=stored.path,
        digest=stored.digest,
        valid=stored.valid,
        findings=[_finding(finding) for finding in stored.findings],
        missing=_missing(stored.missing),
        validate_time=_time(stored.validated_at),
    )


def validated(done: Validated) -> service_pb.ValidateConfigsResponse:
    """What a validation of everything did."""
    return service_pb.ValidateConfigsResponse(
        config_count=done.configs,
        validated_count=done.validated,
        dropped_count=done.dropped,
        invalid_count=done.invalid,
        gap_config_count=done.with_gaps,
    )


def state(found: LabState, model: str) -> service_pb.LabState:
    """Production in numbers."""
    return service_pb.LabState(
        config_count=found.configs,
        pending_validation_count=found.pending_validation,
        validate_time=None if found.validated_at is None else _time(found.validated_at),
        gap_config_count=found.with_gaps,
        missing_text_count=found.missing_texts,
        llm_model=model,
    )


def translations(made: TranslationDraft) -> service_pb.DraftTranslationsResponse:
    """A draft of translations."""
    return service_pb.DraftTranslationsResponse(
        name=ConfigName(made.config_id).name,
        base_digest=made.base_digest,
        translations=[
            pb.Translation(field=one.field, language=one.language, text=one.text) for one in made.translations
        ],
        content_digest=made.content_digest,
        diff=made.diff,
        drafted_by=made.drafted_by,
        refused=[
            service_pb.RefusedTranslation(field=field, language=language, reason=reason)
            for field, language, reason in made.refused
        ],
        cost_usd=made.cost_usd,
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

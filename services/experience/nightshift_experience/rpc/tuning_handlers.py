"""Auto-tune over the wire."""

from __future__ import annotations

from typing import Any

import structlog

from nightshift.experience.v1 import profiles_pb2, resources_pb2
from nightshift.experience.v1 import tuning_pb2 as pb
from nightshift_experience.profiles.advice import Confidence, CurrentSettings
from nightshift_experience.profiles.tuning import Outcome, Tuned, TuningSettings
from nightshift_experience.profiles.tuning_service import TuningService
from nightshift_experience.resources import parse_project, parse_tuning, tuning_name
from nightshift_experience.rpc import render_profiles
from nightshift_experience.rpc.convert import TUNED_FIELDS, run_settings
from nightshift_experience.rpc.render import timestamp
from nightshift_kit.errors import EnumUnknown, FieldInvalid, NightshiftError
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call

_log = structlog.get_logger(__name__)
_MOST_RUNS = 100_000
_LONGEST_ERROR = 200


class TuningHandlers:
    """Handlers of auto-tune."""

    tuning: TuningService

    async def GetTunedSettings(self, request: pb.GetTunedSettingsRequest, context: Any) -> pb.TunedSettings:
        """See the proto: whatever happens, the run has settings to go on with."""
        try:
            project, now = parse_project(request.parent), _current(request.settings)
            tuned = await self.tuning.tuned(
                project, now, explicit=_fields(request), skip=request.skip_auto_tune
            )
            return _tuned(request.settings, now, tuned)
        except NightshiftError as error:
            reason = error.reason
        except Exception as error:  # noqa: BLE001 - a run goes on with its originals whatever is wrong here
            # Without the stack: rendering it may take longer than the run can wait.
            _log.error("tuning_failed", error=f"{type(error).__name__}: {str(error)[:_LONGEST_ERROR]}")
            reason = "INTERNAL"
        return pb.TunedSettings(settings=request.settings, original_settings=request.settings, reason=reason)

    async def GetTuning(self, request: pb.GetTuningRequest, context: Any) -> pb.Tuning:
        """See the proto."""
        project = parse_tuning(request.name)
        return _tuning(project, await self.tuning.get(project))

    async def UpdateTuning(self, request: pb.UpdateTuningRequest, context: Any) -> pb.Tuning:
        """See the proto."""
        project = parse_tuning(request.name)
        changes = _changes(request, is_global=project == "")
        after = await self.tuning.update(current_call().effect(), project, _version(request.etag), changes)
        return _tuning(project, after)

    async def ListTuningOutcomes(
        self, request: pb.ListTuningOutcomesRequest, context: Any
    ) -> pb.ListTuningOutcomesResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        digest = query_digest(method="ListTuningOutcomes", parent=request.parent)
        position = decode_token(request.page_token, digest, (str, str, str))
        found = await self.tuning.outcomes(project)
        if position:
            found = [one for one in found if (one.field, one.original, one.tuned) > position]
        last = found[size - 1] if len(found) > size else None
        return pb.ListTuningOutcomesResponse(
            tuning_outcomes=[_outcome(one) for one in found[:size]],
            next_page_token=encode_token((last.field, last.original, last.tuned), digest) if last else "",
        )


def _current(message: resources_pb2.RunSettings) -> CurrentSettings:
    told = run_settings(message, "settings")
    return CurrentSettings(told.mode, told.strategy, told.max_rounds, told.max_cost_usd)


def _fields(request: pb.GetTunedSettingsRequest) -> frozenset[str]:
    for field in request.explicit_fields:
        if field not in TUNED_FIELDS:
            raise FieldInvalid.at("explicit_fields", f"are some of {', '.join(TUNED_FIELDS)}")
    return frozenset(request.explicit_fields)


def _tuned(originals: resources_pb2.RunSettings, now: CurrentSettings, tuned: Tuned) -> pb.TunedSettings:
    message = pb.TunedSettings(
        settings=originals,
        original_settings=originals,
        auto_tuned=bool(tuned.changes),
        reason=tuned.reason,
    )
    # What was not changed stays as it was written, its case included.
    for field, before, taken, why in tuned.changes:
        setattr(message.settings, field, getattr(tuned.settings, field))
        message.tuned_fields.add(field=field, original_value=before, tuned_value=taken, explanation=why)
    for field, advised, why_not in tuned.declined:
        message.untuned_fields.add(field=field, recommended_value=advised, reason=why_not)
    return message


def _changes(request: pb.UpdateTuningRequest, *, is_global: bool) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if request.HasField("enabled"):
        changes["enabled"] = request.enabled
    if request.HasField("apply_safely"):
        changes["apply_safely"] = request.apply_safely
    if request.HasField("min_runs_for_recommendations"):
        if not 1 <= request.min_runs_for_recommendations <= _MOST_RUNS:
            raise FieldInvalid.at("min_runs_for_recommendations", f"is from 1 to {_MOST_RUNS}")
        changes["min_runs"] = request.min_runs_for_recommendations
    if request.confidence_threshold not in profiles_pb2.Confidence.values():
        raise EnumUnknown.at("confidence_threshold", f"{request.confidence_threshold} is no confidence")
    if request.confidence_threshold:
        changes["threshold"] = Confidence(request.confidence_threshold)
    if not changes:
        raise FieldInvalid.at("enabled", "nothing is to be changed")
    if is_global and set(changes) != {"enabled"}:
        raise FieldInvalid.at("enabled", "is all that the global switch has")
    return changes


def _version(etag: str) -> int:
    if not (etag.isascii() and etag.isdigit() and len(etag) < 19):
        raise FieldInvalid.at("etag", "is the one that GetTuning gave")
    return int(etag)


def _tuning(project: str, settings: TuningSettings) -> pb.Tuning:
    message = pb.Tuning(name=tuning_name(project), enabled=settings.enabled, etag=str(settings.version))
    if project:
        message.apply_safely = settings.apply_safely
        message.min_runs_for_recommendations = settings.min_runs
        message.confidence_threshold = profiles_pb2.Confidence.ValueType(settings.threshold)
    if settings.update_us is not None:
        message.update_time.CopyFrom(timestamp(settings.update_us))
    return message


def _outcome(one: Outcome) -> pb.TuningOutcome:
    return pb.TuningOutcome(
        field=one.field,
        original_value=one.original,
        tuned_value=one.tuned,
        state=pb.TuningState.ValueType(one.state),
        tuned=render_profiles.group(one.runs),
        baseline=render_profiles.group(one.baseline),
        better_probability=one.evidence.better,
        worse_probability=one.evidence.worse,
    )

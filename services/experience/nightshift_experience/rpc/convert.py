"""From requests to what the core takes; everything that is wrong with a run is found here."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import resources_pb2 as pb
from nightshift_experience.errors import (
    NonFinite,
    PromptTooLarge,
    SourceReserved,
    TimeOrder,
    TimestampFuture,
    ValueNegative,
)
from nightshift_experience.resources import RunName
from nightshift_experience.runs import Orchestration, RunRecord, is_valid_id, prompt_digest, run_id_ms
from nightshift_experience.store.merging import IMPORT_SOURCES
from nightshift_kit.errors import (
    EnumRequired,
    EnumUnknown,
    FieldInvalid,
    FieldRequired,
    IdInvalid,
    NightshiftError,
)

TEXT_LIMIT_BYTES = 1024 * 1024
MOST_RUNS_A_MESSAGE = 1000
_DEFAULT_SOURCE = "live"
_MOST_ENTRIES = 64
_FUTURE_US = timedelta(hours=24) // timedelta(microseconds=1)
_SKEW_US = 5_000_000
# google.protobuf.Timestamp reaches from year 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_LONGEST_SECONDS = 315_576_000_000
_OUTCOMES = frozenset(pb.RunOutcome.values())
TUNED_FIELDS = ("mode", "strategy", "max_rounds", "max_cost_usd")
_KEPT_WHY = 1000
_QA_STATUSES = frozenset(pb.QaStatus.values())
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*")


def run_record(run: pb.Run, project: str, now: datetime, field: str = "run") -> RunRecord:
    """The record of a run that a platform told. Raises the errors that RecordRun's comment names."""
    run_id = _run_id(run.name, project, field)
    source = _id(run.source, field, "source") or _DEFAULT_SOURCE
    if source in IMPORT_SOURCES:
        raise SourceReserved.at(f"{field}.source", "belongs to an importer; take another name")
    if run.outcome not in _OUTCOMES:
        raise EnumUnknown.at(f"{field}.outcome", f"{run.outcome} is no outcome")
    if run.outcome == pb.RUN_OUTCOME_UNSPECIFIED:
        raise EnumRequired.at(f"{field}.outcome", "is required")
    prompt = _text(run.prompt, field, "prompt")
    record = RunRecord(
        run_id=run_id,
        source=source,
        revision=_id(run.revision, field, "revision"),
        start_us=0,
        outcome=int(run.outcome),
        device=_id(run.device, field, "device"),
        language=_language(run.language, field, "language"),
        prompt=prompt or None,
        prompt_digest=prompt_digest(prompt) if prompt.strip() else "",
        transformed_prompt=_text(run.transformed_prompt, field, "transformed_prompt") or None,
        interception_config=_id(run.interception_config, field, "interception_config"),
        output_config=_id(run.output_config, field, "output_config"),
        seed=run.seed if run.HasField("seed") else None,
        cost_usd=_cost(run, field),
        duration_us=_duration_us(run, field),
        safety_level=_id(run.safety_level, field, "safety_level"),
    )
    if run.HasField("settings") or run.qa_status or run.HasField("rounds") or run.tuned_fields:
        record.orchestration = _orchestration(run, field)
    if run.media_types or run.models:
        record.media_types, record.models = _lists(run, field)
    _add_times(record, run, now, field)
    return record


def _run_id(name: str, project: str, field: str) -> str:
    # Nearly every name of a stream has this form; the parser explains the others.
    prefix = f"projects/{project}/runs/"
    if name.startswith(prefix) and is_valid_id(name[len(prefix) :]):
        return name[len(prefix) :]
    parsed = RunName.parse(name, f"{field}.name")
    if parsed.project != project:
        raise IdInvalid.at(f"{field}.name", "belongs to another project than parent")
    return parsed.run


def _add_times(record: RunRecord, run: pb.Run, now: datetime, field: str) -> None:
    now_us = int(now.timestamp() * 1_000_000)
    if run.HasField("start_time"):
        record.start_us = instant_us(run.start_time, f"{field}.start_time")
    else:
        ms = run_id_ms(record.run_id)
        if ms is None:
            raise FieldRequired.at(f"{field}.start_time", "is required where the run id has no milliseconds")
        record.start_us = ms * 1000
    if record.start_us > now_us + _FUTURE_US:
        raise _future(f"{field}.start_time")
    if run.HasField("end_time"):
        record.end_us = instant_us(run.end_time, f"{field}.end_time")
        if record.end_us < record.start_us:
            raise TimeOrder.at(f"{field}.end_time", "lies before start_time")
        if record.end_us > now_us + _FUTURE_US:
            raise _future(f"{field}.end_time")
    if max(record.start_us, record.end_us or 0) > now_us + _SKEW_US:
        record.flags.append("clock_skew")


def _future(field: str) -> NightshiftError:
    return TimestampFuture.at(field, "lies more than 24 hours ahead")


def instant_us(stamp: Timestamp, field: str) -> int:
    """Microseconds since 1970 UTC. Raises FieldInvalid outside of the years 1 to 9999."""
    if not (_FIRST_SECOND <= stamp.seconds <= _LAST_SECOND and 0 <= stamp.nanos < 1_000_000_000):
        raise FieldInvalid.at(field, "is no instant of the years 1 to 9999")
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


class Windowed(Protocol):
    """A request for what began in a window."""

    @property
    def start_time(self) -> Timestamp:
        """From here on."""
        ...

    @property
    def end_time(self) -> Timestamp:
        """Before here."""
        ...

    def HasField(self, field: Any, /) -> bool:
        """Whether a bound is told."""
        ...


def window_us(request: Windowed) -> tuple[int | None, int | None]:
    """[start, end) in microseconds since 1970 UTC, None without a bound. Raises FieldInvalid, TimeOrder."""
    start = instant_us(request.start_time, "start_time") if request.HasField("start_time") else None
    end = instant_us(request.end_time, "end_time") if request.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise TimeOrder.at("end_time", "lies before start_time")
    return start, end


def feedback_kind(kind: int, field: str) -> int:
    """The kind. Raises EnumRequired, EnumUnknown."""
    if kind == pb.FEEDBACK_KIND_UNSPECIFIED:
        raise EnumRequired.at(field, "is required")
    if kind not in pb.FeedbackKind.values():
        raise EnumUnknown.at(field, f"{kind} is no kind of feedback")
    return kind


def feedback_time_us(feedback: pb.Feedback, now: datetime, field: str) -> int | None:
    """When the signal was given, None if it does not say. Raises FieldInvalid, TimestampFuture."""
    if not feedback.HasField("feedback_time"):
        return None
    when_us = instant_us(feedback.feedback_time, field)
    if when_us > int(now.timestamp() * 1_000_000) + _FUTURE_US:
        raise _future(field)
    return when_us


def feedback_value(feedback: pb.Feedback, field: str) -> float | None:
    """The value, None where there is none. Raises NonFinite, ValueNegative, FieldInvalid, FieldRequired."""
    needs_value = feedback.kind in (pb.FEEDBACK_KIND_RATING, pb.FEEDBACK_KIND_DWELL)
    if not feedback.HasField("value"):
        if needs_value:
            raise FieldRequired.at(field, "is required for a rating and for dwell")
        return None
    value = feedback.value
    if not math.isfinite(value):
        raise NonFinite.at(field, "must be a finite number")
    if feedback.kind == pb.FEEDBACK_KIND_DWELL and value < 0:
        raise ValueNegative.at(field, "must not be negative")
    if feedback.kind == pb.FEEDBACK_KIND_RATING and not 0 <= value <= 1:
        raise FieldInvalid.at(field, "a rating is from 0 to 1")
    return value


# Field and part come apart: thousands of runs a second are right, and need no name put together.
def _id(value: str, field: str, part: str) -> str:
    if not value or (len(value) <= 200 and value.isascii() and value.isprintable()):
        return value
    if not is_valid_id(value.replace("/", "_")):
        raise IdInvalid.at(f"{field}.{part}", "must have at most 200 characters and no controls")
    return value


def _text(value: str, field: str, part: str) -> str:
    if len(value) * 4 > TEXT_LIMIT_BYTES and len(value.encode()) > TEXT_LIMIT_BYTES:
        raise PromptTooLarge.at(f"{field}.{part}", f"is larger than {TEXT_LIMIT_BYTES} bytes of UTF-8")
    if "\0" in value:
        raise FieldInvalid.at(f"{field}.{part}", "holds a NUL character")
    return value


def _language(value: str, field: str, part: str) -> str:
    if value and not (_LANGUAGE.fullmatch(value) and len(value) <= 35):
        raise FieldInvalid.at(f"{field}.{part}", 'must be a BCP 47 tag like "de"')
    return value.lower() if "-" not in value else value


def _cost(run: pb.Run, field: str) -> float | None:
    if not run.HasField("cost_usd"):
        return None
    if not math.isfinite(run.cost_usd):
        raise NonFinite.at(f"{field}.cost_usd", "must be a finite number")
    if run.cost_usd < 0:
        raise ValueNegative.at(f"{field}.cost_usd", "must not be negative")
    return run.cost_usd


def _duration_us(run: pb.Run, field: str) -> int | None:
    if not run.HasField("duration"):
        return None
    span: Duration = run.duration
    if span.seconds < 0 or span.nanos < 0:
        raise ValueNegative.at(f"{field}.duration", "must not be negative")
    if span.seconds > _LONGEST_SECONDS or span.nanos >= 1_000_000_000:
        raise FieldInvalid.at(f"{field}.duration", "is no span of at most 10,000 years")
    return span.seconds * 1_000_000 + span.nanos // 1000


def _orchestration(run: pb.Run, field: str) -> Orchestration | None:
    """How it was made, None where nothing of it is told."""
    if run.qa_status not in _QA_STATUSES:
        raise EnumUnknown.at(f"{field}.qa_status", f"{run.qa_status} is no verdict")
    if run.rounds < 0:
        raise ValueNegative.at(f"{field}.rounds", "must not be negative")
    told = run_settings(run.settings, f"{field}.settings")
    told.rounds = run.rounds if run.HasField("rounds") else None
    told.qa_status = int(run.qa_status)
    told.tuned = _tuned(run, field)
    return None if told == Orchestration() else told


def _tuned(run: pb.Run, field: str) -> list[list[str]]:
    if len(run.tuned_fields) > len(TUNED_FIELDS):
        raise FieldInvalid.at(f"{field}.tuned_fields", f"has more than {len(TUNED_FIELDS)} entries")
    found = []
    for one in run.tuned_fields:
        if one.field not in TUNED_FIELDS:
            raise FieldInvalid.at(f"{field}.tuned_fields.field", f"is one of {', '.join(TUNED_FIELDS)}")
        before = _id(one.original_value, field, "tuned_fields.original_value")
        taken = _id(one.tuned_value, field, "tuned_fields.tuned_value")
        why = _text(one.explanation, field, "tuned_fields.explanation")[:_KEPT_WHY]
        found.append([one.field, before, taken, why])
    return found


def run_settings(settings: pb.RunSettings, field: str) -> Orchestration:
    """Settings of a run. Raises IdInvalid, FieldInvalid, NonFinite, ValueNegative."""
    if settings.HasField("max_rounds") and settings.max_rounds < 1:
        raise FieldInvalid.at(f"{field}.max_rounds", "must be at least 1")
    limit_usd = settings.max_cost_usd
    if not math.isfinite(limit_usd):
        raise NonFinite.at(f"{field}.max_cost_usd", "must be a finite number")
    if settings.HasField("max_cost_usd") and limit_usd <= 0:
        raise ValueNegative.at(f"{field}.max_cost_usd", "must be above 0")
    return Orchestration(
        mode=_id(settings.mode, field, "mode").strip().lower(),
        strategy=_id(settings.strategy, field, "strategy").strip(),
        max_rounds=settings.max_rounds if settings.HasField("max_rounds") else None,
        max_cost_usd=limit_usd if settings.HasField("max_cost_usd") else None,
    )


def _lists(run: pb.Run, field: str) -> tuple[list[str], dict[str, str]]:
    if len(run.media_types) > _MOST_ENTRIES:
        raise FieldInvalid.at(f"{field}.media_types", f"has more than {_MOST_ENTRIES} entries")
    if len(run.models) > _MOST_ENTRIES:
        raise FieldInvalid.at(f"{field}.models", f"has more than {_MOST_ENTRIES} entries")
    media = [_id(value, field, "media_types") for value in run.media_types]
    models = {
        _id(key, field, "models"): _id(value, field, "models") for key, value in sorted(run.models.items())
    }
    return media, models

"""Records as the plane wants them, from protos or from plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2, resources_pb2
from nightshift_client.errors import RecordRefused

RequestT = TypeVar("RequestT", bound=Message)

# The plane reads messages of at most 4 MiB; a larger one would be refused for ever.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024 - 64 * 1024


def run_request(
    run: resources_pb2.Run | Mapping[str, Any], *, project: str
) -> experience_service_pb2.RecordRunRequest:
    """The request that records a run.

    Args:
        run: The proto, or its fields by name. ``run_id`` may stand for ``name``; instants may be datetimes,
            Unix seconds or RFC 3339; spans timedeltas or seconds; ``outcome`` and ``qa_status`` may be short
            ("succeeded"); ``settings`` may be a dictionary.
            ``source`` defaults to "live" and ``start_time`` to now.
        project: Project that the run belongs to unless its name says otherwise.

    Raises:
        RecordRefused: RECORD_INVALID for what cannot be put into the proto, RECORD_TOO_LARGE for what is
            over 4 MiB.
    """
    message = resources_pb2.Run()
    if isinstance(run, resources_pb2.Run):
        message.CopyFrom(run)
    else:
        fields = dict(run)
        run_id = fields.pop("run_id", None)
        if run_id is not None:
            fields.setdefault("name", f"projects/{project}/runs/{run_id}")
        _fill(message, fields)
    if not message.name:
        raise RecordRefused("a run needs a run_id (or a name)", reason="RECORD_INVALID")
    if not message.source:
        message.source = "live"
    if not message.HasField("start_time"):
        message.start_time.FromDatetime(datetime.now(UTC))
    return _bounded(
        experience_service_pb2.RecordRunRequest(parent=_parent(message.name, project), run=message)
    )


def feedback_request(
    run_id: str, kind: str | int, value: float | None, time: datetime | None, *, project: str
) -> experience_service_pb2.RecordFeedbackRequest:
    """The request that records a signal about a run.

    Args:
        run_id: The platform's run id, or a full resource name.
        kind: One of "favorite", "unfavorite", "export", "regenerate", "delete", "rating", "dwell", or the
            enum's number.
        value: 0 to 1 for a rating, seconds for a dwell.
        time: When it was given; None means now.
        project: Project that the run belongs to unless ``run_id`` is a full name.

    Raises:
        RecordRefused: RECORD_INVALID for what cannot be put into the proto.
    """
    message = resources_pb2.Feedback()
    fields: dict[str, Any] = {
        "run": run_id if run_id.startswith("projects/") else f"projects/{project}/runs/{run_id}",
        "kind": kind,
        "feedback_time": time or datetime.now(UTC),
    }
    if value is not None:
        fields["value"] = value
    _fill(message, fields)
    return _bounded(
        experience_service_pb2.RecordFeedbackRequest(parent=_parent(message.run, project), feedback=message)
    )


def _bounded(request: RequestT) -> RequestT:
    if request.ByteSize() > MAX_MESSAGE_BYTES:
        raise RecordRefused("the record is larger than 4 MiB", reason="RECORD_TOO_LARGE")
    return request


def _parent(name: str, project: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) == 4 and parts[0] == "projects" else f"projects/{project}"


def _fill(message: Any, fields: Mapping[str, Any]) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for name, value in fields.items():
        field = known.get(name)
        if field is None:
            raise RecordRefused(f"{message.DESCRIPTOR.name} has no field {name!r}", reason="RECORD_INVALID")
        if value is None:
            continue
        try:
            _set(message, field, value)
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            # The value is a user's text, perhaps: it does not belong into an error.
            raise RecordRefused(
                f"{name}: a {type(value).__name__} that does not fit ({type(error).__name__})",
                reason="RECORD_INVALID",
            ) from None


def _set(message: Any, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
        getattr(message, field.name).CopyFrom(_timestamp(value))
    elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
        getattr(message, field.name).CopyFrom(_duration(value))
    elif field.message_type is not None and isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    elif field.message_type is not None and not field.is_repeated and isinstance(value, Mapping):
        _fill(getattr(message, field.name), value)
    elif isinstance(value, Mapping):
        getattr(message, field.name).update({str(key): str(entry) for key, entry in value.items()})
    elif field.is_repeated and field.message_type is not None and not isinstance(value, str | Mapping):
        for entry in value:
            if isinstance(entry, Mapping):
                _fill(getattr(message, field.name).add(), entry)
            else:
                getattr(message, field.name).add().CopyFrom(entry)
    elif field.is_repeated:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError("expected a list")
        getattr(message, field.name).extend(value)
    elif field.enum_type is not None and isinstance(value, str):
        setattr(message, field.name, _enum(field.enum_type, value))
    else:
        setattr(message, field.name, value)


def _enum(enum_type: EnumDescriptor, value: str) -> int:
    values = enum_type.values_by_name
    # RUN_OUTCOME_UNSPECIFIED tells the prefix that every value of the enum carries.
    prefix = enum_type.values[0].name.removesuffix("UNSPECIFIED")
    wanted = value.upper() if value.upper() in values else prefix + value.upper()
    if wanted not in values:
        raise ValueError("unknown value")
    return int(values[wanted].number)


def _timestamp(value: Any) -> Timestamp:
    timestamp = Timestamp()
    if isinstance(value, Timestamp):
        timestamp.CopyFrom(value)
    elif isinstance(value, datetime):
        # A naive datetime is local time, as everywhere in Python.
        timestamp.FromDatetime(value.astimezone(UTC))
    elif isinstance(value, str):
        timestamp.FromJsonString(value)
    else:
        timestamp.FromNanoseconds(round(float(value) * 1e6) * 1000)
    return timestamp


def _duration(value: Any) -> Duration:
    duration = Duration()
    if isinstance(value, Duration):
        duration.CopyFrom(value)
    else:
        duration.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=float(value)))
    return duration

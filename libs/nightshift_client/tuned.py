"""Settings that a run should take, as the plane answers, or the originals where it does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nightshift_client.errors import RecordRefused
from nightshift_client.line import Answer

_FIELDS = ("mode", "strategy", "max_rounds", "max_cost_usd")


@dataclass(frozen=True, slots=True)
class TunedSettings:
    """What to run with; true if anything was tuned.

    `settings` is a new dictionary. `tuned_fields` says what was changed and why, as `record_run` takes it.
    `reason` says why nothing was looked at: of the plane's, or PLANE_AWAY.
    """

    settings: dict[str, Any]
    tuned_fields: list[dict[str, str]] = field(default_factory=list)
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.tuned_fields)


def tuned_request(
    settings: Mapping[str, Any], explicit: Collection[str], skip: bool, *, project: str
) -> bytes:
    """The serialised request.

    Raises:
        RecordRefused: RECORD_INVALID for values that are no settings.
    """
    from nightshift.experience.v1 import resources_pb2, tuning_pb2

    try:
        message = tuning_pb2.GetTunedSettingsRequest(
            parent=f"projects/{project}",
            settings=resources_pb2.RunSettings(
                **{name: settings[name] for name in _FIELDS if settings.get(name) is not None}
            ),
            explicit_fields=[name for name in explicit if name in _FIELDS],
            skip_auto_tune=skip,
        )
    except (TypeError, ValueError) as error:
        raise RecordRefused("values that are no settings", reason="RECORD_INVALID") from error
    return message.SerializeToString()


def tuned_settings(settings: Mapping[str, Any], answer: Answer | None) -> TunedSettings:
    """What the answer says; the originals where there is none."""
    from google.protobuf.message import DecodeError

    from nightshift.experience.v1 import tuning_pb2

    originals = dict(settings)
    if answer is None or not answer.ok:
        return TunedSettings(originals, reason=(answer.reason if answer is not None else "") or "PLANE_AWAY")
    try:
        message = tuning_pb2.TunedSettings.FromString(answer.body)
    except DecodeError:
        return TunedSettings(originals, reason="PLANE_AWAY")
    told = [
        {
            "field": one.field,
            "original_value": one.original_value,
            "tuned_value": one.tuned_value,
            "explanation": one.explanation,
        }
        for one in message.tuned_fields
        if one.field in _FIELDS
    ]
    taken = {one["field"]: getattr(message.settings, one["field"]) for one in told}
    return TunedSettings({**originals, **taken}, told, message.reason)

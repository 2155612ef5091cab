"""The entities of a record, whatever recorder wrote them, and how the run ended.

`current_state` is never looked at: recorders leave it at stage 0 in finished runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from nightshift_experience.runs import Outcome

_NUMBERED = re.compile(r"(\d+)_(.+)")
_CODE = {"p5", "tonejs"}
_BY_EXTENSION = {
    "png": "image",
    "jpg": "image",
    "jpeg": "image",
    "webp": "image",
    "gif": "image",
    "mp3": "audio",
    "wav": "audio",
    "ogg": "audio",
    "flac": "audio",
    "mp4": "video",
    "webm": "video",
    "js": "code",
    "glb": "3d",
}
SAFETY_BLOCKED = "safety_blocked"


@dataclass(slots=True)
class Entity:
    """One step of a run."""

    sequence: float
    kind: str
    filename: str = ""
    timestamp: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    is_media: bool = False

    @property
    def is_error(self) -> bool:
        """Whether the step ended in an error."""
        return self.kind == "error"

    @property
    def media_type(self) -> str:
        """What kind of media it is: "image", "audio", "code", …; "" if it does not tell."""
        if self.kind in _CODE:
            return "code"
        if self.kind.startswith("output_"):
            return self.kind.removeprefix("output_").partition("_")[0]
        extension = self.filename.rpartition(".")[2].lower() or text(self.metadata.get("format")).lower()
        return _BY_EXTENSION.get(extension, "")


def text(value: Any) -> str:
    """`value` if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_entities(document: dict[str, Any]) -> list[Entity]:
    """Entities in sequence order; those of equal or no sequence as they stand in the record."""
    raw = document.get("entities")
    if isinstance(raw, dict):
        found = [
            _from_key(key, mapping(value))
            for key, value in raw.items()
            if mapping(value).get("available") is True
        ]
    elif isinstance(raw, list):
        canvas = document.get("type") == "canvas_workflow"
        found = [
            _from_item(item, position, canvas) for position, item in enumerate(raw) if isinstance(item, dict)
        ]
    else:
        found = []
    found.sort(key=lambda entity: entity.sequence)
    return found


def _from_item(item: dict[str, Any], position: int, canvas: bool) -> Entity:
    kind = text(item.get("type"))
    node = text(item.get("node_type"))
    sequence = item.get("sequence")
    if not isinstance(sequence, (int, float)) or isinstance(sequence, bool):
        sequence = position + 1
    is_media = kind.startswith("output_") or kind in _CODE or ((canvas or not kind) and node == "generation")
    return Entity(
        sequence=sequence,
        kind=kind or node,
        filename=text(item.get("filename")),
        timestamp=text(item.get("timestamp")),
        metadata=mapping(item.get("metadata")),
        is_media=is_media,
    )


def _from_key(key: str, value: dict[str, Any]) -> Entity:
    match = _NUMBERED.fullmatch(key)
    kind = match.group(2) if match else key
    extension = {"text": "txt", "json": "json"}.get(text(value.get("type")), "")
    return Entity(
        sequence=int(match.group(1)) if match else 0,
        kind=kind,
        filename=f"{key}.{extension}" if extension else "",
        timestamp=text(value.get("timestamp")),
        metadata=value,
        is_media=kind.startswith("output_") or kind in _CODE,
    )


def deciding(entities: list[Entity]) -> Entity | None:
    """The last media or error entity, which tells how the run ended."""
    for entity in reversed(entities):
        if entity.is_media or entity.is_error:
            return entity
    return None


def outcome(last: Entity | None, error_type: str) -> Outcome:
    """How a run with this deciding entity ended; `error_type` is that of the error it may be."""
    if last is None:
        return Outcome.INCOMPLETE
    if last.is_media:
        return Outcome.SUCCEEDED
    return Outcome.BLOCKED if error_type == SAFETY_BLOCKED else Outcome.FAILED


def last_media(entities: list[Entity]) -> Entity | None:
    """The last media entity."""
    return next((entity for entity in reversed(entities) if entity.is_media), None)

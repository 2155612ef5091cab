"""What no plug-in is told, though it is part of an answer that it may read: what people typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

# Message → fields that are taken out of it, wherever in an answer it stands.
WITHHELD: Final[Mapping[str, tuple[str, ...]]] = {
    "nightshift.experience.v1.Opportunity": ("example_prompts",),
    "nightshift.lab.v1.Proposal": ("comment",),
    "nightshift.monitor.v1.Incident": ("acknowledge_comment", "resolve_comment"),
}


def withhold(message: Message) -> None:
    """Takes what people typed out of an answer, in place."""
    for name in WITHHELD.get(message.DESCRIPTOR.full_name, ()):
        message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            # Maps of ours have scalars or Struct's values, never messages that are named above.
            continue
        for inner in value if field.is_repeated else (value,):
            withhold(inner)

"""Plans: what exactly a skill would do, and the digest to which a person's approval is bound."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field

from nightshift_kit.canonical import digest_json, digest_message, message_to_dict


class Reversibility(StrEnum):
    """How an effect can be taken back; the names of the contract's enum without its prefix."""

    REBUILDABLE = "REBUILDABLE"
    REVERSIBLE = "REVERSIBLE"
    IRREVERSIBLE = "IRREVERSIBLE"


def request_class(method: str) -> type[Message]:
    """The request class of a full method ("/package.Service/Method").

    Raises:
        KeyError: if no loaded contract has the method.
    """
    found = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
    return message_factory.GetMessageClass(found.input_type)


class PlannedCall(BaseModel):
    """One call that a plan makes: method, request in protobuf JSON, and the digest of that request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    arguments: dict[str, Any]
    arguments_digest: str

    @classmethod
    def of(cls, method: str, request: Message) -> Self:
        """A call of a method with a request."""
        return cls(
            method=method,
            arguments=message_to_dict(request),
            arguments_digest=digest_message(request),
        )

    def request(self) -> Message:
        """The request, ready to send."""
        return json_format.ParseDict(self.arguments, request_class(self.method)())


class Plan(BaseModel):
    """What a skill would do now. Binding: skill, subject, calls, base_versions, limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    skill: str
    subject: str
    summary: str
    calls: tuple[PlannedCall, ...]
    base_versions: dict[str, str] = Field(default_factory=dict)
    limits: dict[str, str] = Field(default_factory=dict)
    diff: str = ""
    cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    vram_bytes: int = Field(default=0, ge=0)
    duration_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    reversibility: Reversibility = Reversibility.REVERSIBLE
    evidence: tuple[str, ...] = ()
    reasoning: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256, hex, over the canonical JSON of the binding fields alone."""
        return digest_json(
            {
                "skill": self.skill,
                "subject": self.subject,
                "calls": [
                    {"method": call.method, "arguments_digest": call.arguments_digest} for call in self.calls
                ],
                "base_versions": self.base_versions,
                "limits": self.limits,
            }
        )

    def repeat_until_zero(self, index: int) -> str:
        """Answer field that call `index` is repeated on until it is 0; "" for a single call."""
        return self.limits.get(repeat_key(index), "")

    def to_json(self) -> str:
        """The plan as it is stored."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A stored plan; one with fields that this version does not know is refused (ValidationError)."""
        return cls.model_validate_json(text)


def repeat_key(index: int) -> str:
    """Key in a plan's limits that declares a loop over call `index`. Being a limit, it is binding."""
    return f"calls.{index}.repeat_until_zero"


class NothingToDo(BaseModel):
    """Why a skill would do nothing now."""

    model_config = ConfigDict(frozen=True)

    reason: str


def versions(entries: Mapping[str, str]) -> dict[str, str]:
    """Base versions in the order of their names, so that a plan reads the same each time."""
    return dict(sorted(entries.items()))

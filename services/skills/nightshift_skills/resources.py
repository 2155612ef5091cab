"""Resource names of the skills service: parsed and formatted here, nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from nightshift_kit.errors import IdInvalid

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of the form "collection/id"."""

    id: str
    collection: ClassVar[str]

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.collection}/{self.id}"

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Parses a full resource name that stood in a request's field.

        Raises:
            IdInvalid: if it is not of the form "collection/id" with a plain id.
        """
        prefix, _, identifier = name.partition("/")
        if prefix != cls.collection or not _SEGMENT.fullmatch(identifier):
            raise IdInvalid.at(field, f"expected the form {cls.collection}/ID")
        return cls(identifier)


class SkillName(_Name):
    """skills/{skill}."""

    __slots__ = ()
    collection = "skills"


class SkillRunName(_Name):
    """skillRuns/{skill_run}."""

    __slots__ = ()
    collection = "skillRuns"


class ApprovalName(_Name):
    """approvals/{approval}."""

    __slots__ = ()
    collection = "approvals"


class StandingApprovalName(_Name):
    """standingApprovals/{standing_approval}."""

    __slots__ = ()
    collection = "standingApprovals"


class TokenName(_Name):
    """tokens/{token}."""

    __slots__ = ()
    collection = "tokens"


class PreemptionName(_Name):
    """preemptions/{preemption}."""

    __slots__ = ()
    collection = "preemptions"

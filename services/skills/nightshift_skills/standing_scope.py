"""What a standing approval covers, and in which point a plan goes beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nightshift_skills.plans import Plan


class Bound(BaseModel):
    """A bound on one argument, at a path with dots; an argument that is missing is out of bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$", max_length=256)
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    maximum: float | None = Field(default=None, allow_inf_nan=False)
    allowed: tuple[str, ...] = Field(default=(), max_length=100)

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """Why a call's arguments do not fit; "" if they do."""
        value: Any = arguments
        for part in self.path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, (Mapping, list)):
            return f"{self.path} is not there"
        if self.allowed and str(value) not in self.allowed:
            return f"{self.path} is none of the allowed values"
        if self.minimum is None and self.maximum is None:
            return ""
        try:
            # 64-bit integers are text in protobuf JSON.
            number = float(value)
        except ValueError:
            return f"{self.path} is no number"
        if self.minimum is not None and not number >= self.minimum:
            return f"{self.path} is below {self.minimum:g}"
        if self.maximum is not None and not number <= self.maximum:
            return f"{self.path} is above {self.maximum:g}"
        return ""


class Scope(BaseModel):
    """What a standing approval covers; the contract's StandingScope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subjects: tuple[str, ...] = Field(default=(), max_length=100)
    methods: tuple[str, ...] = Field(default=(), max_length=100)
    bounds: tuple[Bound, ...] = Field(default=(), max_length=100)
    max_cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_vram_bytes: int = Field(default=0, ge=0, le=2**53)

    def problem(self, plan: Plan) -> str:
        """In which point a plan goes beyond it; "" if it is covered."""
        if self.subjects and not any(_fits(pattern, plan.subject) for pattern in self.subjects):
            return "its subject is not covered"
        if not plan.calls:
            return "it has no call"
        if plan.cost_usd > self.max_cost_usd:
            return f"it may cost {plan.cost_usd:.2f} US dollars, more than {self.max_cost_usd:.2f}"
        if plan.vram_bytes > self.max_vram_bytes:
            return "it takes more GPU memory than is covered"
        for call in plan.calls:
            if self.methods and call.method not in self.methods:
                return f"{call.method} is not covered"
            for bound in self.bounds:
                if problem := bound.problem(call.arguments):
                    return problem
        return ""


def _fits(pattern: str, subject: str) -> bool:
    return subject.startswith(pattern[:-1]) if pattern.endswith("*") else subject == pattern

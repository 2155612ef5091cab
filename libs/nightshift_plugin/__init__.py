"""What the author of a plug-in skill needs: all that the sandbox has of ours, standard library only.

    from nightshift_plugin import Call, Context, Nothing, Plan

    def plan(context: Context) -> Plan | Nothing:
        configs = context.read("/nightshift.lab.v1.LabService/ListConfigs", {})
        if not configs.get("configs"):
            return Nothing("Production has no config.")
        return Plan(subject="configs/all", summary="…", calls=[Call("/nightshift.…/Method", {...})])

A plug-in plans. It never acts: skills shows the plan to a person and, once approved, makes its calls itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Context", "Nothing", "Plan", "ReadFailed"]


class ReadFailed(Exception):
    """A read was refused, or the asked service is away.

    Attributes:
        reason: As the service said ("NOT_FOUND", "SERVICE_UNAVAILABLE", …).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True)
class Call:
    """One call that the plan makes: a method of the manifest's `methods`, its request in protobuf JSON."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        subject: What it is about; the skill rests on it after a run.
        summary: In one sentence; shown as the plug-in's words.
        calls: In order, from 1 to 20.
        base_versions: Resource → version that the plan rests on; binding.
        evidence: Numbers that speak for it.
        reasoning: Why; shown last, as untrusted.
        cost_usd, vram_bytes, duration_s: What it will take.
    """

    subject: str
    summary: str
    calls: Sequence[Call]
    base_versions: Mapping[str, str] = field(default_factory=dict)
    evidence: Sequence[str] = ()
    reasoning: str = ""
    cost_usd: float = 0.0
    vram_bytes: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True)
class Nothing:
    """There is nothing to do, and why."""

    reason: str


@dataclass(frozen=True)
class Context:
    """What a plan may rest on.

    Attributes:
        parameters: As the manifest declares them, checked.
        now: UTC, ISO 8601.
        project: Whose experience is looked after ("projects/…").
        about: Subject of an approved plan that is made again, "" for a new one.
    """

    parameters: Mapping[str, Any]
    now: str
    project: str
    about: str
    ask: Callable[[str, Mapping[str, Any]], dict[str, Any]] = field(repr=False)

    def read(self, method: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks a service through skills; the answer is protobuf JSON with proto field names.

        Args:
            method: One of the manifest's `reads` ("/package.Service/Method").
            arguments: The request in protobuf JSON.

        Raises:
            ReadFailed: the service refused, or is away.
        """
        return self.ask(method, arguments or {})

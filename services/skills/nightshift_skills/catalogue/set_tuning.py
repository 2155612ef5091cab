"""Says what auto-tune may change: in one project, or everywhere by the global switch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nightshift.experience.v1 import profiles_pb2, tuning_pb2
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/UpdateTuning"


class TuningParameters(Parameters):
    """What is to be changed; what is absent stays. `everywhere` means the switch above all projects."""

    project: str = Field(default="", pattern=r"^$|^(projects/)?[a-z0-9][a-z0-9._-]{0,62}$")
    everywhere: bool = False
    enabled: bool | None = None
    apply_safely: bool | None = None
    min_runs: int | None = Field(default=None, ge=1, le=100_000)
    confidence: Literal["", "low", "medium", "high"] = ""


async def plan(context: PlanContext, parameters: TuningParameters) -> Plan | NothingToDo:
    """One change, on the version that is read now."""
    project = parameters.project or context.limits.project
    name = "tuning" if parameters.everywhere else f"projects/{project.removeprefix('projects/')}/tuning"
    before = await context.experience.get_tuning(name)
    request = tuning_pb2.UpdateTuningRequest(name=name, etag=before.etag)
    changes = []
    wanted = {
        "enabled": parameters.enabled,
        "apply_safely": parameters.apply_safely,
        "min_runs_for_recommendations": parameters.min_runs,
    }
    for field, value in wanted.items():
        if value is not None and value != getattr(before, field):
            setattr(request, field, value)
            changes.append(f"{field}: {getattr(before, field)} → {value}")
    if parameters.confidence:
        confidence = profiles_pb2.Confidence.Value(f"CONFIDENCE_{parameters.confidence.upper()}")
        if confidence != before.confidence_threshold:
            request.confidence_threshold = confidence
            changes.append(f"confidence_threshold: {parameters.confidence}")
    if not changes:
        return NothingToDo(reason=f"{name} is so already.")
    return Plan(
        skill="skills/set_tuning",
        subject=name,
        summary=f"Change {name}: {', '.join(changes)}.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions={name: before.etag},
        reversibility=Reversibility.REVERSIBLE,
        evidence=("Runs ask for tuned settings themselves and may always pass their own.",),
    )


SKILL = Skill(
    id="set_tuning",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Says what auto-tune may change for runs: in one project, or everywhere.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=TuningParameters,
)

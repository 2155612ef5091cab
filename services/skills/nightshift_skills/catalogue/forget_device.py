"""Forgets a device: all that experience knows of it."""

from __future__ import annotations

from pydantic import Field

from nightshift.experience.v1 import forgetting_pb2
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/ForgetDevice"


class ForgetParameters(Parameters):
    """`device`: any of its names; `project` where it is not the plane's own."""

    device: str = Field(min_length=1, max_length=200)
    project: str = ""


async def plan(context: PlanContext, parameters: ForgetParameters) -> Plan | NothingToDo:
    """Counts what would go. What is not known is forgotten, too: its exports may still come."""
    project = parameters.project or context.limits.project
    known = await context.experience.get_footprint(project, parameters.device)
    request = forgetting_pb2.ForgetDeviceRequest(parent=project, device=parameters.device)
    return Plan(
        skill="skills/forget_device",
        subject=project,
        summary=f"Forget a device: {known.run_count} runs and {known.session_count} sessions. "
        "What it did until now is taken no more. This cannot be undone.",
        calls=(PlannedCall.of(METHOD, request),),
        reversibility=Reversibility.IRREVERSIBLE,
        evidence=(f"Device {parameters.device}.",),
    )


SKILL = Skill(
    id="forget_device",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Forgets a device: its runs leave the store, the index and the files.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=ForgetParameters,
    call_timeout_s=600,
)

"""Writes a validated proposal into production's folder."""

from __future__ import annotations

from pydantic import Field

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility, versions
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/PromoteProposal"
# Limit of a plan that arms the rollback of its promotion: for how many seconds.
ARMED_LIMIT = "rollback_on_guardrail.armed_s"


class PromoteParameters(Parameters):
    """`path` below the platform's root; "" means production's folder. The lab refuses any other."""

    proposal: str = Field(pattern=r"^proposals/[^/]+$")
    path: str = ""
    # Arms the one rollback of this promotion, should a guardrail fall within so many days.
    rollback_on_guardrail: bool = False
    armed_days: float = Field(default=14.0, gt=0, le=90, allow_inf_nan=False)


async def plan(context: PlanContext, parameters: PromoteParameters) -> Plan | NothingToDo:
    """Promotes one proposal as it is now."""
    proposal = await context.lab.get_proposal(parameters.proposal)
    diff = await context.lab.diff_proposal(parameters.proposal)
    request = lab_pb.PromoteProposalRequest(
        name=proposal.name,
        etag=proposal.etag,
        content_digest=proposal.content_digest,
        path=parameters.path,
    )
    where = parameters.path or "production's folder"
    armed = parameters.rollback_on_guardrail
    days = f"{parameters.armed_days:g}"
    return Plan(
        skill="skills/promote_config",
        subject=proposal.name,
        summary=f"Write config {proposal.config_id} into {where}."
        + (f" Its rollback is armed for {days} days, should a guardrail fall." if armed else ""),
        calls=(PlannedCall.of(METHOD, request),),
        base_versions=versions({proposal.name: proposal.etag, "content": proposal.content_digest}),
        limits={ARMED_LIMIT: f"{parameters.armed_days * 86_400:.0f}"} if armed else {},
        diff=diff.diff,
        reversibility=Reversibility.REVERSIBLE,
        evidence=(
            f"Validation: {'passed' if proposal.report.valid else 'failed'}, "
            f"{len(proposal.report.findings)} findings.",
        ),
    )


SKILL = Skill(
    id="promote_config",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Writes a validated proposal into production's folder, atomically and reversibly.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=PromoteParameters,
)

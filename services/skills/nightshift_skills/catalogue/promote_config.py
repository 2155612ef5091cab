"""Writes a validated proposal into production's folder."""

from __future__ import annotations

from pydantic import Field

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility, versions
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/PromoteProposal"


class PromoteParameters(Parameters):
    """`path` below the platform's root; "" means production's folder. The lab refuses any other."""

    proposal: str = Field(pattern=r"^proposals/[^/]+$")
    path: str = ""


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
    return Plan(
        skill="skills/promote_config",
        subject=proposal.name,
        summary=f"Write config {proposal.config_id} into {where}.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions=versions({proposal.name: proposal.etag, "content": proposal.content_digest}),
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

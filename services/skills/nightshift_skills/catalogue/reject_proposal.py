"""Turns a proposal down."""

from __future__ import annotations

from pydantic import Field

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/RejectProposal"


class RejectParameters(Parameters):
    """`comment` says why."""

    proposal: str = Field(pattern=r"^proposals/[^/]+$")
    comment: str = ""


async def plan(context: PlanContext, parameters: RejectParameters) -> Plan | NothingToDo:
    """Rejects one proposal as it is now."""
    proposal = await context.lab.get_proposal(parameters.proposal)
    request = lab_pb.RejectProposalRequest(name=proposal.name, etag=proposal.etag, comment=parameters.comment)
    return Plan(
        skill="skills/reject_proposal",
        subject=proposal.name,
        summary=f"Turn down the proposal for config {proposal.config_id}.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions={proposal.name: proposal.etag},
        reversibility=Reversibility.IRREVERSIBLE,
    )


SKILL = Skill(
    id="reject_proposal",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Turns a proposal down; its history stays.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=RejectParameters,
)

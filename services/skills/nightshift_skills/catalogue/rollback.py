"""Takes a promotion back; a rollback is itself a promotion and can be taken back."""

from __future__ import annotations

from pydantic import Field

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/RollbackPromotion"


class RollbackParameters(Parameters):
    """Format: "promotions/{promotion}"."""

    promotion: str = Field(pattern=r"^promotions/[^/]+$")


async def plan(context: PlanContext, parameters: RollbackParameters) -> Plan | NothingToDo:
    """Restores what one promotion replaced."""
    promotion = await context.lab.get_promotion(parameters.promotion)
    # What the promotion left behind is what must lie there now: anything else is drift, and the lab says so.
    request = lab_pb.RollbackPromotionRequest(name=promotion.name, current_digest=promotion.digest)
    before = promotion.previous_digest[:12] or "no file"
    return Plan(
        skill="skills/rollback",
        subject=promotion.name,
        summary=f"Put {promotion.path} back to what it was before {promotion.name} ({before}).",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions={promotion.path or promotion.name: promotion.digest},
        reversibility=Reversibility.REVERSIBLE,
    )


SKILL = Skill(
    id="rollback",
    tier=Tier.MANUAL,
    on_purpose=True,
    description="Takes a promotion back.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=RollbackParameters,
)

"""Lets a skill act without asking, within limits and until further notice."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from nightshift.skills.v1 import autonomy_service_pb2 as autonomy_pb
from nightshift.skills.v1 import standing_approvals_pb2 as types
from nightshift_kit.grants import Tier
from nightshift_skills.errors import NotReady
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill
from nightshift_skills.standing_scope import Bound, Scope

METHOD = "/nightshift.skills.v1.AutonomyService/SetAutonomy"


class AutonomyParameters(Parameters):
    """The skill, what is covered, how often and how long."""

    skill: str = Field(pattern=r"^(skills/)?[a-z][a-z0-9_]*$")
    subjects: tuple[str, ...] = Field(default=(), max_length=100)
    bounds: tuple[Bound, ...] = Field(default=(), max_length=100)
    max_cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_vram_bytes: int = Field(default=0, ge=0, le=2**53)
    max_uses: int = Field(default=10, ge=1, le=1000)
    days: float = Field(default=7.0, gt=0, le=30, allow_inf_nan=False)

    def scope(self) -> Scope:
        """What is covered."""
        return Scope(
            subjects=self.subjects,
            bounds=self.bounds,
            max_cost_usd=self.max_cost_usd,
            max_vram_bytes=self.max_vram_bytes,
        )


async def plan(context: PlanContext, parameters: AutonomyParameters) -> Plan | NothingToDo:
    """A standing approval for one skill; refused while a fact of readiness is missing."""
    if context.delegation is None:
        raise NotReady("Nothing can be delegated here.")
    name = f"skills/{parameters.skill.removeprefix('skills/')}"
    policy_digest = await context.delegation(name)
    request = autonomy_pb.SetAutonomyRequest(
        skill=name,
        scope=scope_message(parameters.scope()),
        max_uses=parameters.max_uses,
        policy_digest=policy_digest,
    )
    request.ttl.FromTimedelta(timedelta(days=parameters.days))
    where = ", ".join(parameters.subjects) or "any subject"
    return Plan(
        skill="skills/set_autonomy",
        subject=name,
        summary=f"Let {name} act on {where} without asking, {parameters.max_uses} times within "
        f"{parameters.days:g} days.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions={"policy": policy_digest},
        limits={"max_uses": str(parameters.max_uses), "days": f"{parameters.days:g}"},
        reversibility=Reversibility.REVERSIBLE,
        evidence=("Any approver ends it in one call: nightshift autonomy manual-only.",),
    )


def scope_message(scope: Scope) -> types.StandingScope:
    """A scope as the contract has it."""
    return types.StandingScope(
        subjects=scope.subjects,
        methods=scope.methods,
        bounds=[
            types.ArgumentBound(
                path=bound.path, minimum=bound.minimum, maximum=bound.maximum, allowed=bound.allowed
            )
            for bound in scope.bounds
        ],
        max_cost_usd=scope.max_cost_usd,
        max_vram_bytes=scope.max_vram_bytes,
    )


SKILL = Skill(
    id="set_autonomy",
    tier=Tier.MANUAL,
    on_purpose=True,
    admin_only=True,
    description="Lets a skill act without asking, within limits, bound to the policy, until it expires.",
    triggers=("command",),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    parameters=AutonomyParameters,
)

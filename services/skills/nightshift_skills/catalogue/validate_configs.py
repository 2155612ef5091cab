"""Validates production's configs, each version once."""

from __future__ import annotations

from collections.abc import Sequence

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/ValidateConfigs"
_DAY_S = 86_400.0


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """One look at all configs; the lab passes over what has not changed."""
    state = await context.lab.get_state()
    if state.pending_validation_count == 0 and not _day_over(state, context.now.timestamp()):
        return NothingToDo(reason="No config has changed since the last validation.")
    return Plan(
        skill="skills/validate_configs",
        subject="configs",
        summary="Validate the configs that are new or changed.",
        calls=(PlannedCall.of(METHOD, lab_pb.ValidateConfigsRequest()),),
        reversibility=Reversibility.REBUILDABLE,
        evidence=(f"{state.pending_validation_count} of {state.config_count} configs wait for validation.",),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """New or changed configs, or a day since the last look."""
    state = facts.lab
    if state is None:
        return (Condition(False, "The lab cannot be asked about the platform's configs."),)
    if state.pending_validation_count:
        return (Condition(True, f"{state.pending_validation_count} configs wait for validation."),)
    if _day_over(state, facts.now.timestamp()):
        return (Condition(True, "The last validation is a day ago."),)
    return (Condition(False, "No config has changed since the last validation."),)


def _day_over(state: lab_pb.LabState, now_s: float) -> bool:
    if not state.HasField("validate_time"):
        return True
    return now_s - state.validate_time.ToNanoseconds() / 1e9 >= _DAY_S


SKILL = Skill(
    id="validate_configs",
    tier=Tier.AUTO,
    description="Validates production's configs and tells which languages they lack.",
    triggers=("idle", "interval", "command"),
    cooldown_s=60,
    methods=(METHOD,),
    plan=plan,
    due=due,
    call_timeout_s=120,
)

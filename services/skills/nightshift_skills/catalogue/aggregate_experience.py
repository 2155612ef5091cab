"""Recounts the statistics of experience from its runs."""

from __future__ import annotations

from collections.abc import Sequence

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/Aggregate"


class AggregateParameters(Parameters):
    """`full` recounts everything instead of going on from the watermark."""

    full: bool = False


async def plan(context: PlanContext, parameters: AggregateParameters) -> Plan | NothingToDo:
    """One recount from the watermark on, or of everything."""
    project = context.limits.project
    state = await context.experience.get_state(project)
    pending = state.pending_aggregation_count
    if state.run_count == 0:
        return NothingToDo(reason="There are no runs yet.")
    if not parameters.full and pending == 0 and not _interval_over(state, context.now.timestamp(), context):
        return NothingToDo(reason="No run is new since the last aggregation.")
    return Plan(
        skill="skills/aggregate_experience",
        subject=project,
        summary="Recount the statistics of all runs." if parameters.full else "Count the new runs.",
        calls=(PlannedCall.of(METHOD, experience_pb.AggregateRequest(parent=project, full=parameters.full)),),
        reversibility=Reversibility.REBUILDABLE,
        evidence=(f"{pending} runs wait for aggregation.",),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """New runs, or a day since the last time."""
    if facts.state is None:
        return (Condition(False, "Experience cannot be asked."),)
    pending = facts.state.pending_aggregation_count
    if pending:
        return (Condition(True, f"{pending} runs wait for aggregation."),)
    if facts.state.run_count and _interval_over(facts.state, facts.now.timestamp(), facts):
        return (Condition(True, "The last aggregation is a day ago."),)
    return (Condition(False, "No run is new since the last aggregation."),)


def _interval_over(state: experience_pb.ExperienceState, now_s: float, holder: PlanContext | Facts) -> bool:
    if not state.HasField("aggregate_time"):
        return True
    return now_s - state.aggregate_time.ToNanoseconds() / 1e9 >= holder.limits.aggregate_interval_s


SKILL = Skill(
    id="aggregate_experience",
    tier=Tier.AUTO,
    description="Recounts the statistics of experience from its runs.",
    triggers=("idle", "new_data", "interval", "command"),
    cooldown_s=60,
    methods=(METHOD,),
    plan=plan,
    parameters=AggregateParameters,
    due=due,
    call_timeout_s=600,
)

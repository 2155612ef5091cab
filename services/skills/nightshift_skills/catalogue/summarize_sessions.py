"""Puts runs into sessions and tells each day in words."""

from __future__ import annotations

from collections.abc import Sequence

from nightshift.experience.v1 import sessions_pb2 as sessions_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/SummarizeSessions"


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """One pass from the watermark on."""
    project = context.limits.project
    state = await context.experience.get_state(project)
    waiting = state.pending_session_count
    if waiting == 0:
        return NothingToDo(reason="Every run is in its session.")
    return Plan(
        skill="skills/summarize_sessions",
        subject=project,
        summary="Put new runs into sessions, say what these were after, and tell their days in words.",
        calls=(PlannedCall.of(METHOD, sessions_pb.SummarizeSessionsRequest(parent=project)),),
        reversibility=Reversibility.REBUILDABLE,
        evidence=(f"{waiting} runs wait.",),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """New or changed runs."""
    if facts.state is None:
        return (Condition(False, "Experience cannot be asked."),)
    waiting = facts.state.pending_session_count
    return (Condition(waiting > 0, f"{waiting} runs wait to be put into sessions."),)


SKILL = Skill(
    id="summarize_sessions",
    tier=Tier.AUTO,
    description="Puts runs into sessions, says what users were after in them, and tells each day in words.",
    triggers=("idle", "new_data", "command"),
    cooldown_s=60,
    methods=(METHOD,),
    plan=plan,
    due=due,
    call_timeout_s=600,
)

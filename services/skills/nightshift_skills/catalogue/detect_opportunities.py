"""Looks for themes without a config and for weak configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/DetectOpportunities"


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """One look at all embedded prompts."""
    project = context.limits.project
    state = await context.experience.get_state(project)
    if state.embedded_count == 0:
        return NothingToDo(reason="No prompt is embedded yet.")
    return Plan(
        skill="skills/detect_opportunities",
        subject=project,
        summary="Look for themes without a config and for weak configs.",
        calls=(PlannedCall.of(METHOD, experience_pb.DetectOpportunitiesRequest(parent=project)),),
        reversibility=Reversibility.REBUILDABLE,
        evidence=(f"{state.pending_detection_count} runs are new since the last look.",),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """Everything embedded, and enough new runs since the last look."""
    state = facts.state
    if state is None:
        return (Condition(False, "Experience cannot be asked."),)
    waiting, new, least = (
        state.pending_embedding_count,
        state.pending_detection_count,
        facts.limits.detect_min_new_runs,
    )
    return (
        Condition(state.embedded_count > 0, f"{state.embedded_count} prompts are embedded."),
        Condition(waiting == 0, f"{waiting} prompts wait for embedding."),
        Condition(new >= least, f"{new} runs are new since the last look; {least} are needed."),
    )


def without_examples(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without example prompts: users' words stay in experience."""
    return {
        "opportunities": [
            {key: value for key, value in opportunity.items() if key != "example_prompts"}
            for opportunity in answer.get("opportunities", [])
        ]
    }


SKILL = Skill(
    id="detect_opportunities",
    tier=Tier.AUTO,
    description="Looks for themes that no config fits, and for configs that do clearly worse than others.",
    triggers=("idle", "new_data", "command"),
    cooldown_s=600,
    methods=(METHOD,),
    plan=plan,
    due=due,
    call_timeout_s=600,
    shown_answer=without_examples,
)

"""Embeds the production prompts that wait, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility, repeat_key
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.experience.v1.ExperienceService/EmbedPending"


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """Batches until none waits."""
    project = context.limits.project
    state = await context.experience.get_state(project)
    if state.pending_embedding_count == 0:
        return NothingToDo(reason="No prompt waits for embedding.")
    request = experience_pb.EmbedPendingRequest(parent=project, limit=context.limits.embed_batch)
    return Plan(
        skill="skills/build_embeddings",
        subject=project,
        summary="Embed the production prompts that wait.",
        calls=(PlannedCall.of(METHOD, request),),
        limits={repeat_key(0): "remaining_count"},
        reversibility=Reversibility.REBUILDABLE,
        evidence=(f"{state.pending_embedding_count} prompts wait for embedding.",),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """Prompts wait."""
    if facts.state is None:
        return (Condition(False, "Experience cannot be asked."),)
    pending = facts.state.pending_embedding_count
    return (Condition(pending > 0, f"{pending} prompts wait for embedding."),)


SKILL = Skill(
    id="build_embeddings",
    tier=Tier.AUTO,
    description="Embeds the production prompts that wait, so that search finds neighbours in meaning.",
    triggers=("idle", "new_data", "command"),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    due=due,
    call_timeout_s=120,
)

"""Unloads models that nobody uses while the GPU is nearly full."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_skills.errors import Upstream
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.trainer.v1.TrainerService/UnloadIdleModel"
SUBJECT = "gpuHost"
UNCONFIGURED = "GPU_HOST_UNCONFIGURED"

# The trainer takes no more names in one call.
_MOST_MODELS = 100
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class CleanupParameters(Parameters):
    """Limits of this run in percent of the GPU's memory; left out: those of the settings."""

    above_percent: _Percent | None = None
    target_percent: _Percent | None = None


async def plan(context: PlanContext, parameters: CleanupParameters) -> Plan | NothingToDo:
    """As many calls as models may go; each unloads the idle one that was used longest ago, if still needed.

    Binding are the names of the models and the target. Who uses what, and how much is free, changes every
    moment: the trainer looks just before each unload.
    """
    above = context.limits.vram_high_percent if parameters.above_percent is None else parameters.above_percent
    target = (
        min(context.limits.vram_target_percent, above)
        if parameters.target_percent is None
        else parameters.target_percent
    )
    try:
        host = await context.trainer.get_gpu_host()
    except Upstream as error:
        if error.reason == UNCONFIGURED:
            return NothingToDo(reason=error.message)
        raise
    used_percent = 100 * (host.total_bytes - host.free_bytes) / host.total_bytes if host.total_bytes else 0.0
    filled = f"{used_percent:.0f} % of the GPU's {gibibytes(host.total_bytes)} are in use"
    if used_percent <= above:
        return NothingToDo(reason=f"{filled}; models are unloaded above {above:g} %.")
    candidates = [model for model in host.models if model.unloadable][:_MOST_MODELS]
    if not candidates:
        return NothingToDo(reason=f"{filled}, and no model is loaded that can be unloaded.")
    if all(model.in_use for model in candidates):
        return NothingToDo(reason=f"{filled}, and every model that can be unloaded is in use.")
    request = trainer_pb.UnloadIdleModelRequest(
        # By name: the order of last use is a reading.
        models=sorted((model.model for model in candidates), key=lambda ref: (ref.backend, ref.model)),
        target_used_bytes=int(host.total_bytes * target / 100),
    )
    return Plan(
        skill="skills/cleanup_vram",
        subject=SUBJECT,
        summary=f"Unload models that nobody uses, oldest use first, until at most {target:g} % of the GPU's "
        "memory is in use.",
        calls=(PlannedCall.of(METHOD, request),) * len(candidates),
        limits={"models": str(len(candidates)), "target_percent": f"{target:g}"},
        reversibility=Reversibility.REBUILDABLE,
        evidence=(
            f"{filled}.",
            *(_in_words(model) for model in candidates),
            *_left_alone(host),
        ),
    )


def due(facts: Facts) -> Sequence[Condition]:
    """Always: planning looks at the GPU."""
    return (Condition(True, f"The GPU is looked at; above {facts.limits.vram_high_percent:g} % it counts."),)


def gibibytes(size_bytes: int) -> str:
    """For people."""
    return f"{size_bytes / 2**30:.1f} GiB"


def _in_words(model: trainer_types.LoadedModel) -> str:
    words = f"{model.model.model} ({model.model.backend}): {gibibytes(model.vram_bytes)}"
    if model.in_use:
        return f"{words}, in use: spared as long as it is."
    if not model.use_known:
        return f"{words}; its backend lets requests end before it unloads."
    if not model.HasField("last_used_time"):
        return f"{words}, idle."
    last = model.last_used_time.ToDatetime(tzinfo=dt.UTC)
    return f"{words}, idle, last used {last:%Y-%m-%d %H:%M} UTC."


def _left_alone(host: trainer_types.GpuHost) -> list[str]:
    told = [
        f"{model.model.model} ({model.model.backend}) stays: its backend cannot unload."
        for model in host.models
        if not model.unloadable
    ]
    if host.foreign_bytes:
        told.append(f"{gibibytes(host.foreign_bytes)} belong to processes of others, which are left alone.")
    return told + [f"{problem.source} could not be asked: {problem.message}" for problem in host.problems]


SKILL = Skill(
    id="cleanup_vram",
    tier=Tier.CONFIRM,
    description="Unloads models that nobody uses while the GPU is nearly full.",
    triggers=("idle", "command"),
    cooldown_s=300,
    methods=(METHOD,),
    plan=plan,
    parameters=CleanupParameters,
    due=due,
    call_timeout_s=90,
    # Each look asks the GPU service for all its models, and while nobody is there little changes on it.
    look_again_s=300,
)

"""Loads the models of a workshop before it begins."""

from __future__ import annotations

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_skills.catalogue.cleanup_vram import SUBJECT, UNCONFIGURED, gibibytes
from nightshift_skills.errors import Upstream
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.trainer.v1.TrainerService/LoadModel"


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """The settings' models that are not loaded, in their order, as long as they fit beside the reserve."""
    try:
        host = await context.trainer.get_gpu_host()
    except Upstream as error:
        if error.reason == UNCONFIGURED:
            return NothingToDo(reason=error.message)
        raise
    if not host.preload_models:
        return NothingToDo(reason="No models are named for preloading: set [[trainer.preload_models]].")
    wanted: list[trainer_types.PreloadModel] = []
    left_out: list[str] = []
    room = host.free_bytes - host.reserve_bytes
    for model in host.preload_models:
        if model.loaded:
            continue
        problem = _why_not(model, host, room)
        if problem:
            left_out.append(problem)
        else:
            wanted.append(model)
            room -= model.vram_bytes
    if not wanted:
        return NothingToDo(reason=" ".join(left_out) or "All models for preloading are loaded already.")
    return Plan(
        skill="skills/preload_models",
        subject=SUBJECT,
        summary=f"Load {', '.join(model.model.model for model in wanted)} into the GPU's free memory.",
        calls=tuple(
            PlannedCall.of(
                METHOD, trainer_pb.LoadModelRequest(model=model.model, vram_bytes=model.vram_bytes)
            )
            for model in wanted
        ),
        limits={"reserve_bytes": str(host.reserve_bytes)},
        vram_bytes=sum(model.vram_bytes for model in wanted),
        reversibility=Reversibility.REVERSIBLE,
        evidence=(
            f"{gibibytes(host.free_bytes)} are free; {gibibytes(host.reserve_bytes)} of them stay free.",
            *(f"{model.model.model}: {gibibytes(model.vram_bytes)}." for model in wanted),
            *left_out,
        ),
    )


def _why_not(model: trainer_types.PreloadModel, host: trainer_types.GpuHost, room: int) -> str:
    """Why a model is not loaded, in words; "" where it can be."""
    name = f"{model.model.model} ({model.model.backend})"
    for problem in host.problems:
        if problem.source == model.model.backend:
            return f"{name}: {problem.message}"
    if not model.installed:
        return f"{name} is not installed."
    if model.vram_bytes <= 0:
        return f"{name}: nobody tells how much memory it takes; set its vram_bytes."
    if model.vram_bytes > room:
        return (
            f"{name} needs {gibibytes(model.vram_bytes)} and does not fit: {gibibytes(max(0, room))} are "
            f"left beside the reserve of {gibibytes(host.reserve_bytes)}."
        )
    return ""


SKILL = Skill(
    id="preload_models",
    tier=Tier.CONFIRM,
    description="Loads the models of a workshop before it begins.",
    triggers=("cron", "command"),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    call_timeout_s=330,
)

"""Trains a LoRA adapter; makes room for users and goes on after quiet until it is done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.canonical import digest_message
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility, versions
from nightshift_skills.skill import Parameters, PlanContext, Skill

CREATE = "/nightshift.trainer.v1.TrainerService/CreateTrainingJob"
RESUME = "/nightshift.trainer.v1.TrainerService/ResumeTrainingJob"

# What a start is worth: the worker loads the model, makes some steps and keeps each of them, so that whatever
# window follows goes on from there. The whole training may be longer than any window.
LEAST_USEFUL_S = 120.0

_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class TrainParameters(Parameters):
    """As nightshift.trainer.v1.TrainingSpec; what is left out comes from the preset."""

    base_model: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    preset: str = ""
    adapter_id: str = ""
    lora_rank: _Count = 0
    lora_alpha: _Count = 0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    quantization: Literal["", "nf4", "none"] = ""
    batch_size: _Count = 0
    gradient_accumulation: _Count = 0
    max_steps: _Count = 0
    epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_length: _Count = 0
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None
    device: Literal["", "auto", "cpu", "cuda"] = ""

    def spec(self) -> trainer_types.TrainingSpec:
        """The spec, without digests."""
        return trainer_types.TrainingSpec(**self.model_dump(exclude_none=True, exclude_defaults=True))


async def plan(context: PlanContext, parameters: TrainParameters) -> Plan | NothingToDo:
    """One training with every value and digest filled in by the trainer."""
    estimate = await context.trainer.estimate(parameters.spec())
    spec = estimate.spec
    if not estimate.fits:
        return NothingToDo(reason=f"The training does not fit: {estimate.detail}")
    parts = ", ".join(
        f"{name} {size_bytes / 2**20:.0f} MiB"
        for name, size_bytes in sorted(estimate.memory_parts_bytes.items())
        if size_bytes
    )
    return Plan(
        skill="skills/train_adapter",
        # The whole spec is the subject: a denied training rests, one with other values may be asked for at
        # once.
        subject=f"trainings/{digest_message(spec)[:16]}",
        summary=f"Train a LoRA adapter for {spec.base_model} on {spec.dataset}: {estimate.total_steps} steps "
        "on idle time, stopped for users and resumed after quiet.",
        calls=(PlannedCall.of(CREATE, trainer_pb.CreateTrainingJobRequest(spec=spec)),),
        base_versions=versions({"dataset": spec.dataset_digest, "base_model": spec.base_model_digest}),
        limits={"total_steps": str(estimate.total_steps), "training_jobs": "1"},
        vram_bytes=estimate.memory_bytes,
        duration_s=estimate.duration.ToTimedelta().total_seconds() if estimate.HasField("duration") else 0.0,
        reversibility=Reversibility.REVERSIBLE,
        evidence=tuple(
            text
            for text in (
                f"{estimate.row_count} rows, {estimate.total_steps} optimiser steps.",
                f"Memory {estimate.memory_bytes / 2**20:.0f} MiB ({parts})." if parts else "",
                estimate.detail,
            )
            if text
        ),
    )


SKILL = Skill(
    id="train_adapter",
    tier=Tier.CONFIRM,
    description="Trains a LoRA adapter on idle time; stops for users and goes on after quiet.",
    triggers=("command",),
    cooldown_s=0,
    methods=(CREATE, RESUME),
    plan=plan,
    parameters=TrainParameters,
    call_timeout_s=60,
    follows_job=True,
    least_useful_s=LEAST_USEFUL_S,
)

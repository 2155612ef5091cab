"""Settings of the trainer: section [trainer] of settings.toml, NIGHTSHIFT_TRAINER_* in the environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nightshift_kit.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """What an operator may set."""

    # "auto" takes unsloth on CUDA where its import works, else trl.
    backend: Literal["auto", "trl", "unsloth"] = "auto"
    # More threads train faster on a CPU, and add up in another order: resuming is exact for one setting only.
    cpu_threads: int = Field(default=1, ge=1, le=256)
    # Share of the GPU that training may take, and what must stay free beside it. 0 means all.
    vram_budget_bytes: int = Field(default=0, ge=0)
    vram_reserve_bytes: int = Field(default=1024**3, ge=0)
    # Points of the progress stream that are kept for each job.
    kept_points: int = Field(default=200_000, ge=1000)
    keep_alive_s: float = Field(default=10.0, gt=0)
    # How long the process that workers are forked from outlives the last open job; it holds about 500 MB.
    keep_warm_s: float = Field(default=0.0, ge=0)
    # How long a stop waits for the end of a micro-step before the worker leaves from where it is.
    stop_grace_s: float = Field(default=0.15, ge=0, le=0.5)
    # Module of workers that are started from nothing; tests put faults into one of their own.
    worker_module: str = "nightshift_trainer.worker"
    # "fork" from a warm parent on a CPU, or always "spawn".
    cpu_start: Literal["fork", "spawn"] = "fork"

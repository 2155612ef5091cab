"""Settings of the trainer: section [trainer] of settings.toml, NIGHTSHIFT_TRAINER_* in the environment."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nightshift_kit.settings import ServiceSettings


class PreloadDeclaration(BaseModel):
    """A model to load before a workshop: a table ``[[trainer.preload_models]]`` of settings.toml.

    Attributes:
        backend: Only Ollama loads on request.
        model: As Ollama calls it, tag included ("qwen3:4b").
        vram_bytes: What it takes; 0: estimated from the size of its file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["ollama"] = "ollama"
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,250}:[A-Za-z0-9._-]{1,40}$")
    vram_bytes: int = Field(default=0, ge=0)


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
    # How long a stop waits, for the end of a micro-step and of what is being written, before the worker
    # leaves from where it is.
    stop_grace_s: float = Field(default=0.1, ge=0, le=0.5)
    # Module of workers that are started from nothing; tests put faults into one of their own.
    worker_module: str = "nightshift_trainer.worker"
    # "fork" from a warm parent on a CPU, or always "spawn".
    cpu_start: Literal["fork", "spawn"] = "fork"
    # Base URLs of the platform's GPU service and of Ollama, which tell what is loaded on the GPU; "" where
    # there is none.
    gpu_service_url: str = ""
    ollama_url: str = ""
    # How long their readings, their unloading and their loading may take.
    gpu_host_timeout_s: float = Field(default=3.0, gt=0, le=30)
    unload_timeout_s: float = Field(default=60.0, gt=0, le=600)
    load_timeout_s: float = Field(default=300.0, gt=0, le=3600)
    # How long memory may take to be given back after an unload was answered.
    unload_settle_s: float = Field(default=3.0, ge=0, le=60)
    # Models that preload_models loads, in this order, and how long Ollama keeps them without use.
    preload_models: tuple[PreloadDeclaration, ...] = Field(default=(), max_length=100)
    preload_keep_s: int = Field(default=14_400, ge=1, le=604_800)

    @field_validator("gpu_service_url", "ollama_url")
    @classmethod
    def _is_base_url(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http://… or https://…")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("expected a base URL, without query, fragment or user")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _preloads_fit(self) -> Self:
        names = [one.model for one in self.preload_models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"preload_models names twice: {', '.join(twice)}")
        if names and not self.ollama_url:
            raise ValueError("preload_models needs ollama_url")
        return self

"""The platform's GPU service: memory and models from its health, and its unload routes.

Its unload routes ignore whether a model is in use and evict at once: who calls them has looked before.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nightshift_trainer.errors import UnloadRefused
from nightshift_trainer.gpu_host.http import HostHttp
from nightshift_trainer.gpu_host.models import Form, HostModel, HostProcess, ModelRef, Reading, in_order

SOURCE: Final = "gpu_service"
_MIB = 2**20

# Backends with an unload route. Those that hold a whole pipeline take no model's name.
BY_MODEL: Final = frozenset({"diffusers", "text", "llm"})
WHOLE: Final = frozenset({"heartmula", "stable_audio"})

# A petabyte of video memory is an error of somebody's unit.
Megabytes = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]
# Unix time in seconds, up to the year 9999.
Seconds = Annotated[float, Field(ge=0, le=253_402_300_799.0, allow_inf_nan=False)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Model(_Answer):
    backend: Name
    model: Name
    vram_mb: Megabytes
    # Not optional: a model of which this is not told is nobody's to unload.
    in_use: bool | Annotated[int, Field(ge=0, le=1_000_000)]
    last_used: Seconds | Annotated[str, Field(max_length=40)] | None = None
    priority: Annotated[str, Field(max_length=100)] | int = ""


class _Process(_Answer):
    pid: Annotated[int, Field(ge=0, le=2**53)]
    vram_mb: Megabytes
    foreign: bool = True


class Health(_Answer):
    """`/api/health/vram`, in its older and its newer form."""

    total_mb: Megabytes
    free_mb: Megabytes | None = None
    nvml_free_mb: Megabytes | None = None
    foreign_vram_mb: Megabytes = 0.0
    loaded_models: Annotated[list[_Model], Field(max_length=1000)]
    gpu_processes: Annotated[list[_Process], Field(max_length=10_000)] = []
    eviction_in_progress: bool

    @model_validator(mode="after")
    def _free_fits(self) -> Health:
        if self.nvml_free_mb is None and self.free_mb is None:
            raise ValueError("neither free_mb nor nvml_free_mb is there")
        if self.known_free_mb > self.total_mb:
            raise ValueError("more is free than there is")
        return self

    @property
    def known_free_mb(self) -> float:
        """What is free on the whole card: NVML knows of other processes, too."""
        known = self.free_mb if self.nvml_free_mb is None else self.nvml_free_mb
        return 0.0 if known is None else known


class _Unloaded(_Answer):
    success: bool = True


class GpuService:
    """The GPU service's routes that the trainer uses."""

    def __init__(self, http: HostHttp, *, read_timeout_s: float, unload_timeout_s: float) -> None:
        self._http = http
        self._read_timeout_s = read_timeout_s
        self._unload_timeout_s = unload_timeout_s

    async def read(self) -> Reading:
        """Memory and models now. Raises GpuHostUnavailable, GpuHostInvalid."""
        health = await self._http.get("/api/health/vram", Health, timeout_s=self._read_timeout_s)
        return Reading(
            form=Form.OLD if health.nvml_free_mb is None else Form.NEW,
            total_bytes=_bytes(health.total_mb),
            free_bytes=_bytes(health.known_free_mb),
            foreign_bytes=_bytes(health.foreign_vram_mb),
            eviction_in_progress=health.eviction_in_progress,
            models=in_order([_host_model(model) for model in health.loaded_models]),
            processes=[
                HostProcess(process.pid, _bytes(process.vram_mb), process.foreign)
                for process in health.gpu_processes
            ],
        )

    async def unload(self, ref: ModelRef) -> None:
        """Evicts a model at once, in use or not.

        Raises GpuHostUnavailable (it may have happened), GpuHostInvalid, UnloadRefused.
        """
        wish = {"model_id": ref.model} if ref.backend in BY_MODEL else {}
        answer = await self._http.post(
            f"/api/{ref.backend}/unload", wish, _Unloaded, timeout_s=self._unload_timeout_s
        )
        if not answer.success:
            raise UnloadRefused(
                f"{SOURCE} did not unload {ref}.", metadata={"backend": ref.backend, "model": ref.model}
            )


def _host_model(model: _Model) -> HostModel:
    last_used_s = _unix_s(model.last_used)
    return HostModel(
        ref=ModelRef(model.backend, model.model),
        vram_bytes=_bytes(model.vram_mb),
        in_use=int(model.in_use),
        use_known=True,
        last_used_s=last_used_s,
        priority=str(model.priority),
        unloadable=model.backend in BY_MODEL | WHOLE,
        whole_backend=model.backend in WHOLE,
        mark=str(model.last_used),
    )


def _unix_s(last_used: float | str | None) -> float | None:
    if not isinstance(last_used, str):
        return last_used
    try:
        moment = dt.datetime.fromisoformat(last_used)
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _bytes(megabytes: float) -> int:
    return round(megabytes * _MIB)

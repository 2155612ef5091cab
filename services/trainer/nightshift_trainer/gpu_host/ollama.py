"""Ollama: loaded and installed models, loading and unloading by an empty prompt and `keep_alive`.

It does not tell whether a model is in use. It need not: a model that is told to go goes when the requests
on it have ended (docs.ollama.com, "How do I keep a model loaded in memory").
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from nightshift_trainer.gpu_host.http import HostHttp
from nightshift_trainer.gpu_host.models import HostModel, ModelRef

SOURCE: Final = "ollama"
BACKEND: Final = "ollama"

# Beside its weights a loaded model holds its context and its runtime: 4.5 GB for the 4.3 GB of qwen3:4b Q8,
# more for long contexts. An operator who knows better says so in the settings.
_OVER_FILE = 1.2

_Bytes = Annotated[int, Field(ge=0, le=2**53)]
_Name = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Running(_Answer):
    name: _Name
    size_vram: _Bytes = 0
    expires_at: Annotated[str, Field(max_length=60)] = ""


class _Ps(_Answer):
    models: Annotated[list[_Running], Field(max_length=1000)] | None = None


class _Tag(_Answer):
    name: _Name
    size: _Bytes = 0


class _Tags(_Answer):
    models: Annotated[list[_Tag], Field(max_length=10_000)] | None = None


class _Done(_Answer):
    done: bool = True


class Ollama:
    """Ollama's routes that the trainer uses."""

    def __init__(
        self,
        http: HostHttp,
        *,
        read_timeout_s: float,
        unload_timeout_s: float,
        load_timeout_s: float,
        keep_alive_s: int,
    ) -> None:
        self._http = http
        self._read_timeout_s = read_timeout_s
        self._unload_timeout_s = unload_timeout_s
        self._load_timeout_s = load_timeout_s
        self._keep_alive_s = keep_alive_s

    async def running(self) -> list[HostModel]:
        """Loaded models. Raises GpuHostUnavailable, GpuHostInvalid."""
        answer = await self._http.get("/api/ps", _Ps, timeout_s=self._read_timeout_s)
        return [
            HostModel(
                ref=ModelRef(BACKEND, one.name),
                vram_bytes=one.size_vram,
                in_use=0,
                use_known=False,
                last_used_s=None,
                priority="",
                unloadable=True,
                whole_backend=False,
                # Each use moves it on.
                mark=one.expires_at,
            )
            for one in answer.models or ()
        ]

    async def installed(self) -> dict[str, int]:
        """Installed models, and what each is estimated to hold once loaded, in bytes. Raises as `running`."""
        answer = await self._http.get("/api/tags", _Tags, timeout_s=self._read_timeout_s)
        return {one.name: round(one.size * _OVER_FILE) for one in answer.models or ()}

    async def unload(self, ref: ModelRef) -> None:
        """Lets a model go once nothing runs on it. Raises GpuHostUnavailable, GpuHostInvalid."""
        await self._generate(ref, 0, self._unload_timeout_s)

    async def load(self, ref: ModelRef) -> None:
        """Loads a model, or lets a loaded one stay longer. Raises GpuHostUnavailable, GpuHostInvalid."""
        await self._generate(ref, self._keep_alive_s, self._load_timeout_s)

    async def _generate(self, ref: ModelRef, keep_alive_s: int, timeout_s: float) -> None:
        wish = {"model": ref.model, "prompt": "", "keep_alive": keep_alive_s, "stream": False}
        await self._http.post("/api/generate", wish, _Done, timeout_s=timeout_s)

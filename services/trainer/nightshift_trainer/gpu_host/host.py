"""One reading of the GPU from everybody who knows something of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_trainer.config import PreloadDeclaration
from nightshift_trainer.errors import GpuHostUnconfigured
from nightshift_trainer.gpu import Gpus
from nightshift_trainer.gpu_host import ollama as llm
from nightshift_trainer.gpu_host.gpu_service import GpuService
from nightshift_trainer.gpu_host.models import (
    Form,
    HostModel,
    ModelRef,
    Preload,
    Problem,
    Reading,
    in_order,
)
from nightshift_trainer.gpu_host.ollama import Ollama


class GpuHost:
    """The GPU service, where there is one, else NVML; and Ollama, where there is one."""

    def __init__(
        self,
        *,
        gpu_service: GpuService | None,
        ollama: Ollama | None,
        gpus: Gpus,
        clock: Clock,
        preload: Sequence[PreloadDeclaration],
    ) -> None:
        self._gpu_service = gpu_service
        self._ollama = ollama
        self._gpus = gpus
        self._clock = clock
        self._preload = preload

    async def read(self, *, preloads: bool = False) -> Reading:
        """Memory and models now.

        Args:
            preloads: Whether to look after the models of the settings, too.

        Raises:
            GpuHostUnconfigured: neither settings nor NVML know of a GPU.
            GpuHostUnavailable, GpuHostInvalid: the GPU service does not tell. Where only Ollama does not,
                that is among `problems`.
        """
        memory, running, installed = await asyncio.gather(
            self._memory(), self._running(), self._installed(wanted=preloads)
        )
        problems = [found for found in (running, installed) if isinstance(found, Problem)]
        models: Sequence[HostModel] = () if isinstance(running, Problem) else running
        return dataclasses.replace(
            memory,
            models=in_order([*memory.models, *models]),
            problems=list(dict.fromkeys(problems)),
            preloads=self._preloads(
                {model.ref for model in models}, {} if isinstance(installed, Problem) else installed
            )
            if preloads
            else (),
            read_time=self._clock.now(),
        )

    async def unload(self, ref: ModelRef) -> None:
        """Has a model unloaded, in use or not. Raises as the backends' own, and GpuHostUnconfigured."""
        if ref.backend == llm.BACKEND:
            await self._need_ollama().unload(ref)
        elif self._gpu_service is not None:
            await self._gpu_service.unload(ref)
        else:
            raise _unconfigured("gpu_service_url")

    async def load(self, ref: ModelRef) -> None:
        """Has a model loaded. Raises GpuHostUnavailable, GpuHostInvalid, GpuHostUnconfigured."""
        await self._need_ollama().load(ref)

    def declared(self, ref: ModelRef) -> bool:
        """Whether the settings name a model for preloading."""
        return any((one.backend, one.model) == (ref.backend, ref.model) for one in self._preload)

    async def _memory(self) -> Reading:
        if self._gpu_service is not None:
            return await self._gpu_service.read()
        memory = await asyncio.to_thread(self._gpus.memory)
        if memory is None:
            raise _unconfigured("gpu_service_url")
        return Reading(
            form=Form.NVML,
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            foreign_bytes=0,
            eviction_in_progress=False,
            models=(),
        )

    async def _running(self) -> Sequence[HostModel] | Problem:
        if self._ollama is None:
            return ()
        try:
            return await self._ollama.running()
        except NightshiftError as error:
            return Problem(llm.SOURCE, error.reason, error.message)

    async def _installed(self, *, wanted: bool) -> dict[str, int] | Problem:
        if self._ollama is None or not wanted or not self._preload:
            return {}
        try:
            return await self._ollama.installed()
        except NightshiftError as error:
            return Problem(llm.SOURCE, error.reason, error.message)

    def _preloads(self, loaded: set[ModelRef], installed: dict[str, int]) -> list[Preload]:
        made = []
        for one in self._preload:
            ref = ModelRef(one.backend, one.model)
            made.append(
                Preload(
                    ref=ref,
                    vram_bytes=one.vram_bytes or installed.get(one.model, 0),
                    loaded=ref in loaded,
                    installed=one.model in installed,
                )
            )
        return made

    def _need_ollama(self) -> Ollama:
        if self._ollama is None:
            raise _unconfigured("ollama_url")
        return self._ollama


def _unconfigured(key: str) -> GpuHostUnconfigured:
    advice = " or let NVML find a GPU" if key == "gpu_service_url" else ""
    return GpuHostUnconfigured(
        f"Nobody tells what is on the GPU: set [trainer] {key}{advice}.",
        metadata={"setting": f"trainer.{key}"},
    )

"""What callers may ask of the GPU host: its readings, and its effects, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.storage import Database
from nightshift_trainer.config import TrainerSettings
from nightshift_trainer.gpu import Gpus
from nightshift_trainer.gpu_host import gpu_service, ollama
from nightshift_trainer.gpu_host.effects import HostEffects, Loaded, Unloaded
from nightshift_trainer.gpu_host.host import GpuHost
from nightshift_trainer.gpu_host.http import HostHttp, new_http_client
from nightshift_trainer.gpu_host.models import Reading


class GpuHostService:
    """Reads and acts.

    Attributes:
        effects: What needs a grant.
        reserve_bytes: Memory that stays free beside what is preloaded.
    """

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        gpus: Gpus,
        encode_unloaded: Callable[[Unloaded], bytes],
        encode_loaded: Callable[[Loaded], bytes],
    ) -> None:
        self._client = new_http_client()
        self.reserve_bytes = settings.vram_reserve_bytes
        self._host = GpuHost(
            gpu_service=self._gpu_service(settings),
            ollama=self._ollama(settings),
            gpus=gpus,
            clock=clock,
            preload=settings.preload_models,
        )
        self.effects = HostEffects(
            db=db,
            outbox=outbox,
            clock=clock,
            host=self._host,
            encode_unloaded=encode_unloaded,
            encode_loaded=encode_loaded,
            reserve_bytes=self.reserve_bytes,
            settle_s=settings.unload_settle_s,
        )

    async def read(self) -> Reading:
        """The GPU now, with the models of the settings. Raises as GpuHost.read."""
        return await self._host.read(preloads=True)

    async def close(self) -> None:
        """Ends what goes on, and the connections."""
        await self.effects.close()
        await self._client.aclose()

    def _gpu_service(self, settings: TrainerSettings) -> gpu_service.GpuService | None:
        if not settings.gpu_service_url:
            return None
        return gpu_service.GpuService(
            HostHttp(self._client, settings.gpu_service_url, gpu_service.SOURCE),
            read_timeout_s=settings.gpu_host_timeout_s,
            unload_timeout_s=settings.unload_timeout_s,
        )

    def _ollama(self, settings: TrainerSettings) -> ollama.Ollama | None:
        if not settings.ollama_url:
            return None
        return ollama.Ollama(
            HostHttp(self._client, settings.ollama_url, ollama.SOURCE),
            read_timeout_s=settings.gpu_host_timeout_s,
            unload_timeout_s=settings.unload_timeout_s,
            load_timeout_s=settings.load_timeout_s,
            keep_alive_s=settings.preload_keep_s,
        )

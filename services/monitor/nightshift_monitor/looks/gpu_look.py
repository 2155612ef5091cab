"""GPUs through NVML, or honestly none and why."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.observations import Gpu, GpuProcess, GpuReading, ProbeState, Seen

# What NVML answers for a process whose memory it may not tell (seen from inside a container).
_NOT_AVAILABLE = 2**64 - 1


class NvmlReader:
    """Reads all GPUs in one thread of its own.

    NVML calls block, and a driver that hangs blocks for ever: a reading that does not come in time is given
    up, and none is begun before it ends, so that at most one thread is ever lost.
    """

    def __init__(self, nvml: ModuleType | None, *, timeout_s: float = 5.0) -> None:
        """``nvml`` is the module ``pynvml``, or None where it is not installed."""
        self._nvml: Any = nvml
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nvml")
        self._pending: Future[GpuReading] | None = None
        self._initialised = False

    async def read(self) -> GpuReading:
        """All GPUs now; an empty reading with the reason where NVML tells of none."""
        if self._nvml is None:
            return GpuReading((), "the package nvidia-ml-py is not installed")
        if self._pending is None or self._pending.done():
            self._pending = self._executor.submit(self._read)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(asyncio.wrap_future(self._pending))
        except TimeoutError:
            return GpuReading((), f"NVML did not answer within {self._timeout_s:g} s")

    def close(self) -> None:
        """Ends the thread unless it hangs in the driver."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> GpuReading:
        nvml = self._nvml
        try:
            if not self._initialised:
                nvml.nvmlInit()
                self._initialised = True
            count = nvml.nvmlDeviceGetCount()
            gpus = tuple(self._gpu(index) for index in range(count))
        except nvml.NVMLError as error:
            # A driver that was reloaded or a GPU that fell off the bus needs a new start of the library.
            self._initialised = False
            return GpuReading((), f"NVML: {error}")
        return GpuReading(gpus, "" if gpus else "NVML finds no GPU")

    def _gpu(self, index: int) -> Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        return Gpu(
            index=index,
            display_name=name.decode() if isinstance(name, bytes) else str(name),
            total_bytes=int(memory.total),
            used_bytes=int(memory.used),
            utilization_percent=self._utilization(handle),
            processes=self._processes(handle),
        )

    def _utilization(self, handle: object) -> int:
        nvml = self._nvml
        try:
            return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except nvml.NVMLError:
            # A card divided by MIG tells no utilisation as a whole.
            return 0

    def _processes(self, handle: object) -> tuple[GpuProcess, ...]:
        nvml = self._nvml
        used: dict[int, int] = {}
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                processes = ask(handle)
            except nvml.NVMLError:
                continue
            for process in processes:
                held = process.usedGpuMemory
                known = 0 if held is None or held == _NOT_AVAILABLE else int(held)
                used[int(process.pid)] = max(known, used.get(int(process.pid), 0))
        return tuple(GpuProcess(pid, held) for pid, held in sorted(used.items()))


class GpuLook:
    """UP where NVML tells of a GPU, UNKNOWN otherwise: no GPU is never a failure."""

    def __init__(self, reader: NvmlReader) -> None:
        self._reader = reader

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """Looks at all GPUs of the host."""
        del probe
        reading = await self._reader.read()
        if not reading.gpus:
            return Seen(ProbeState.UNKNOWN, reading.detail)
        parts = (
            f"{gpu.display_name}: {gpu.used_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB used, "
            f"{gpu.utilization_percent} %"
            for gpu in reading.gpus
        )
        return Seen(ProbeState.UP, "; ".join(parts))


def load_nvml() -> ModuleType | None:
    """The module ``pynvml``, or None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    module: ModuleType = pynvml
    return module

"""GPUs through NVML, or honestly none and why."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.observations import Gpu, GpuProcess, GpuReading, ProbeState, Seen

# What NVML answers for a process whose memory it may not tell (seen from inside a container).
_NOT_AVAILABLE = 2**64 - 1
# NVML_ERROR_GPU_IS_LOST and NVML_ERROR_RESET_REQUIRED of nvml.h.
_GONE = frozenset({15, 16})


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
            # A library that is not there answers at once: this is a driver that hangs.
            return GpuReading((), f"NVML did not answer within {self._timeout_s:g} s", failed=True)

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
            # A driver that was reloaded needs a new start of the library.
            self._restart()
            return GpuReading((), f"NVML: {error}", failed=self._is_gone(error))
        failed = any(gpu.failed for gpu in gpus)
        if failed:
            # So does a GPU that fell off the bus, should it come back.
            self._restart()
        return GpuReading(gpus, "" if gpus else "NVML finds no GPU", failed)

    def _restart(self) -> None:
        """Begins anew with the next reading; each start is paired with an end, for NVML counts them."""
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _gpu(self, index: int) -> Gpu:
        nvml = self._nvml
        name = ""
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(nvml.nvmlDeviceGetName(handle))
            missing: list[str] = []
            total_bytes, used_bytes = self._memory(handle, missing)
            return Gpu(
                index=index,
                display_name=name,
                total_bytes=total_bytes,
                used_bytes=used_bytes,
                utilization_percent=self._utilization(handle, missing),
                processes=self._processes(handle, missing),
                mig=self._mig(handle),
                detail="; ".join(missing),
            )
        except nvml.NVMLError as error:
            if not self._is_gone(error):
                raise
            # The others go on: one lost GPU must not hide them.
            return Gpu(index, name, 0, 0, 0, (), detail=str(error), failed=True)

    def _memory(self, handle: object, missing: list[str]) -> tuple[int, int]:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            self._note(error, "memory", missing)
            return 0, 0
        return int(memory.total), int(memory.used)

    def _utilization(self, handle: object, missing: list[str]) -> int:
        nvml = self._nvml
        try:
            return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except nvml.NVMLError as error:
            # A card divided by MIG tells no utilisation as a whole.
            self._note(error, "utilisation", missing)
            return 0

    def _processes(self, handle: object, missing: list[str]) -> tuple[GpuProcess, ...]:
        nvml = self._nvml
        used: dict[int, int] = {}
        kinds: dict[int, list[str]] = {}
        for kind, ask in (
            ("compute", nvml.nvmlDeviceGetComputeRunningProcesses),
            ("graphics", nvml.nvmlDeviceGetGraphicsRunningProcesses),
        ):
            try:
                processes = ask(handle)
            except nvml.NVMLError as error:
                self._note(error, f"{kind} processes", missing)
                continue
            for process in processes:
                pid, held = int(process.pid), process.usedGpuMemory
                known = 0 if held is None or held == _NOT_AVAILABLE else int(held)
                used[pid] = max(known, used.get(pid, 0))
                if kind not in kinds.setdefault(pid, []):
                    kinds[pid].append(kind)
        return tuple(GpuProcess(pid, held, ",".join(kinds[pid])) for pid, held in sorted(used.items()))

    def _mig(self, handle: object) -> bool:
        nvml = self._nvml
        try:
            current, _ = nvml.nvmlDeviceGetMigMode(handle)
        except nvml.NVMLError:
            # Most cards cannot be divided at all, which is nothing to tell of.
            return False
        return bool(current)

    def _note(self, error: Any, what: str, missing: list[str]) -> None:
        if self._is_gone(error):
            raise error
        missing.append(f"{what}: {error}")

    def _is_gone(self, error: Any) -> bool:
        """Whether the GPU was there and is not any more."""
        return getattr(error, "value", None) in _GONE


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _line(gpu: Gpu) -> str:
    name = gpu.display_name or f"GPU {gpu.index}"
    if gpu.failed:
        return f"{name}: {gpu.detail}"
    used, total = gpu.used_bytes / 2**30, gpu.total_bytes / 2**30
    return f"{name}: {used:.1f} of {total:.1f} GiB used, {gpu.utilization_percent} %"


class GpuLook:
    """UP where NVML tells of GPUs, DOWN where one is lost or NVML hangs, UNKNOWN otherwise.

    That there is no GPU is never a failure.
    """

    def __init__(self, reader: NvmlReader) -> None:
        self._reader = reader

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """Looks at all GPUs of the host."""
        del probe
        reading = await self._reader.read()
        if not reading.gpus:
            return Seen(ProbeState.DOWN if reading.failed else ProbeState.UNKNOWN, reading.detail)
        state = ProbeState.DOWN if reading.failed else ProbeState.UP
        return Seen(state, "; ".join(map(_line, reading.gpus)))


def load_nvml() -> ModuleType | None:
    """The module ``pynvml``, or None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    module: ModuleType = pynvml
    return module

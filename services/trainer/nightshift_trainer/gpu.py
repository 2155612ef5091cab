"""What NVML says about GPUs. Without NVML there are none, and that is said, not guessed.

NVML observes only; it makes no CUDA context, so the service's process never holds a GPU.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class GpuMemory:
    """Memory of one GPU in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


class Gpus(Protocol):
    """What the trainer asks about GPUs."""

    def memory(self) -> GpuMemory | None:
        """The first GPU, or None where there is none."""
        ...

    def holds(self, pid: int) -> bool:
        """Whether a process holds memory of a GPU."""
        ...


class NoGpus:
    """A machine without GPUs."""

    def memory(self) -> GpuMemory | None:
        """None."""
        return None

    def holds(self, pid: int) -> bool:
        """No."""
        return False


class NvmlGpus:
    """GPUs as NVML sees them."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def memory(self) -> GpuMemory | None:
        """The first GPU."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            name = self._nvml.nvmlDeviceGetName(handle)
        except self._nvml.NVMLError:
            return None
        return GpuMemory(
            name if isinstance(name, str) else name.decode(), int(memory.total), int(memory.free)
        )

    def holds(self, pid: int) -> bool:
        """Whether NVML lists the process on any GPU."""
        with contextlib.suppress(self._nvml.NVMLError):
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                if any(one.pid == pid for one in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)):
                    return True
        return False


def find_gpus() -> Gpus:
    """NVML where it is installed and finds a driver, else none."""
    try:
        import pynvml
    except ImportError:
        return NoGpus()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NoGpus()
    return NvmlGpus(pynvml)


def wait_released(gpus: Gpus, pid: int, timeout_s: float) -> float | None:
    """Waits until NVML no longer lists a process; the seconds that took, or None where it still does."""
    begin = time.monotonic()
    while gpus.holds(pid):
        if time.monotonic() - begin > timeout_s:
            return None
        time.sleep(0.02)
    return time.monotonic() - begin

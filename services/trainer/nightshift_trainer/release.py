"""Whether GPU memory is back after a stop, as NVML sees it (T5 of a pre-emption)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nightshift_kit.rpc.stop import Release
from nightshift_trainer.gpu import Gpus

# The target's p99 is 3 s; what is not back by then is told as not back.
TIMEOUT_S = 3.0
_LOOK_EACH_S = 0.02
_MIB = 1024 * 1024


class ReleaseCheck:
    """Looks until NVML lists no worker of ours and the reserve is free.

    Args:
        gpus: What NVML says.
        pids: Workers of late, dead or alive. NVML names processes as the machine's first process sees them.
        reserve_bytes: What must be free on the GPU.
        boottime_ns: The clock that stops are measured by.
        timeout_s: How long it is looked.
    """

    def __init__(
        self,
        gpus: Gpus,
        pids: Callable[[], tuple[int, ...]],
        reserve_bytes: int,
        boottime_ns: Callable[[], int],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._gpus = gpus
        self._pids = pids
        self._reserve_bytes = reserve_bytes
        self._boottime_ns = boottime_ns
        self._timeout_s = timeout_s

    async def __call__(self) -> Release:
        """When the memory was back, or why that cannot be told. On any loop; NVML is asked in a thread."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Release:
        until_s = time.monotonic() + self._timeout_s
        while True:
            memory = self._gpus.memory()
            if memory is None:
                return Release(0, "There is no GPU here: NVML finds none.")
            holding = [pid for pid in self._pids() if self._gpus.holds(pid)]
            free_mib = memory.free_bytes // _MIB
            if not holding and memory.free_bytes >= self._reserve_bytes:
                return Release(
                    self._boottime_ns(), f"NVML lists no process of ours; {free_mib} MiB are free."
                )
            if time.monotonic() >= until_s:
                break
            time.sleep(_LOOK_EACH_S)
        if holding:
            listed = ", ".join(map(str, holding))
            return Release(0, f"NVML still lists worker {listed} after {self._timeout_s:.0f} s.")
        return Release(
            0,
            f"NVML lists no process of ours, but {free_mib} MiB are free, less than the reserve of "
            f"{self._reserve_bytes // _MIB} MiB: others hold the memory.",
        )

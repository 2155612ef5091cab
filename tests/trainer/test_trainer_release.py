"""T5: when NVML says that GPU memory is back, and when nobody can say so."""

from __future__ import annotations

from nightshift_kit.clock import SystemClock
from nightshift_trainer.gpu import GpuMemory, NoGpus
from nightshift_trainer.release import ReleaseCheck

MIB = 1024 * 1024


class Gpus:
    """What NVML would say, look by look."""

    def __init__(self, *, held_looks: int = 0, free_mib: int = 4096) -> None:
        self.held_looks = held_looks
        self.free_mib = free_mib
        self.looks = 0

    def memory(self) -> GpuMemory | None:
        return GpuMemory("test", 8192 * MIB, self.free_mib * MIB)

    def holds(self, pid: int) -> bool:
        self.looks += 1
        return pid == 4711 and self.looks <= self.held_looks


def check(gpus: Gpus | NoGpus, *pids: int, timeout_s: float = 5.0) -> ReleaseCheck:
    return ReleaseCheck(gpus, lambda: pids, 1024 * MIB, SystemClock().boottime_ns, timeout_s=timeout_s)


async def test_memory_is_back_when_no_worker_is_listed_and_the_reserve_is_free() -> None:
    before_ns = SystemClock().boottime_ns()
    gpus = Gpus(held_looks=3)
    release = await check(gpus, 4711)()
    assert release.boottime_ns > before_ns
    assert gpus.looks == 4
    assert "4096 MiB are free" in release.detail


async def test_without_a_gpu_that_is_said_and_no_time_is_made_up() -> None:
    release = await check(NoGpus(), 4711)()
    assert release.boottime_ns == 0
    assert "no GPU" in release.detail


async def test_a_worker_that_stays_listed_is_named() -> None:
    release = await check(Gpus(held_looks=10**6), 4711, 4712, timeout_s=0.1)()
    assert release.boottime_ns == 0
    assert "worker 4711 " in release.detail


async def test_memory_that_others_hold_is_not_ours_to_give_back() -> None:
    release = await check(Gpus(free_mib=100), 4711, timeout_s=0.1)()
    assert release.boottime_ns == 0
    assert "others hold the memory" in release.detail

"""Witnesses of use, and NVML through a stand-in of its module."""

from __future__ import annotations

import asyncio
import os
import threading
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift_kit.clock import FakeClock, SystemClock
from nightshift_monitor.looks.gpu_look import NvmlReader, load_nvml
from nightshift_monitor.looks.http_look import new_http_client
from nightshift_monitor.witnesses import ComfyUiWitness, ExportsWitness, GpuServiceWitness, newest_mtime_ns
from tests.monitor.conftest import MakeMonitor, PlatformStandIn
from tests.monitor.test_monitor_wire import codes, until


async def test_the_gpu_service_speaks_against_idleness_only_while_a_model_is_in_use(
    platform: PlatformStandIn,
) -> None:
    async with new_http_client() as client:
        witness = GpuServiceWitness(client, platform.url)
        assert (await witness.ask()).in_use is None
        platform.answer("/api/health/vram", {"loaded_models": [{"model": "a", "in_use": False}]})
        assert (await witness.ask()).in_use is False
        platform.answer(
            "/api/health/vram", {"loaded_models": [{"model": "a", "in_use": 0}, {"model": "b", "in_use": 2}]}
        )
        assert (await witness.ask()).in_use is True
        platform.answer("/api/health/vram", {"loaded_models": "all"})
        assert (await witness.ask()).in_use is None
        platform.answer("/api/health/vram", {}, status=500)
        assert (await witness.ask()).in_use is None


async def test_comfyui_speaks_against_idleness_while_work_runs_or_waits(platform: PlatformStandIn) -> None:
    async with new_http_client() as client:
        witness = ComfyUiWitness(client, platform.url)
        for running, pending, in_use in (([], [], False), ([1], [], True), ([], [1], True)):
            platform.answer("/queue", {"queue_running": running, "queue_pending": pending})
            assert (await witness.ask()).in_use is in_use
        assert (await ComfyUiWitness(client, "http://127.0.0.1:1").ask()).in_use is None


def write(path: Path, mtime: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    for each in (path, *path.parents[:3]):
        os.utime(each, (mtime, mtime))


def test_the_newest_export_is_found_three_folders_down_and_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "2026-03-01" / "dev" / "run_1" / "metadata.json", 1_000)
    write(tmp_path / "2026-02-01" / "dev" / "run_0" / "metadata.json", 9_000)
    (tmp_path / "2026-03-01" / "loop").symlink_to(tmp_path)
    os.utime(tmp_path / "2026-03-01" / "loop", (500, 500), follow_symlinks=False)
    assert newest_mtime_ns(str(tmp_path), ("2026-03-01", "2026-02-28")) == 1_000 * 10**9
    late = tmp_path / "2026-03-01" / "dev" / "run_1" / "metadata.json"
    os.utime(late, (2_000, 2_000))
    assert newest_mtime_ns(str(tmp_path), ("2026-03-01",)) == 2_000 * 10**9
    assert newest_mtime_ns(str(tmp_path), ("2026-05-05",)) is None
    with pytest.raises(FileNotFoundError):
        newest_mtime_ns(str(tmp_path / "gone"), ("2026-03-01",))


async def test_exports_count_in_the_platforms_zone_and_the_future_counts_from_when_it_is_seen(
    tmp_path: Path,
) -> None:
    # 23:30 UTC on the 1st is the 2nd in Berlin.
    clock = FakeClock(datetime(2026, 3, 1, 23, 30, tzinfo=UTC))
    witness = ExportsWitness(str(tmp_path), "Europe/Berlin", clock)
    assert (await witness.ask()).newest_ns is None
    now = clock.now().timestamp()
    write(tmp_path / "2026-03-02" / "dev" / "run_1" / "metadata.json", now - 40)
    seen = await witness.ask()
    assert seen.newest_ns == clock.boottime_ns() - 40 * 10**9
    write(tmp_path / "2026-03-02" / "dev" / "run_1" / "metadata.json", now + 5_000)
    future = (await witness.ask()).newest_ns
    assert future == clock.boottime_ns()
    clock.advance(300)
    assert (await witness.ask()).newest_ns == future
    missing = await ExportsWitness(str(tmp_path / "gone"), "UTC", clock).ask()
    assert missing.newest_ns is None
    assert "not counted" in missing.detail


async def test_a_fresh_export_and_a_busy_gpu_keep_a_quiet_machine_from_being_idle(
    make_monitor: MakeMonitor, platform: PlatformStandIn, tmp_path: Path
) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    platform.answer("/api/health/vram", {"loaded_models": []})
    async with (
        new_http_client() as client,
        make_monitor(
            quiet_s=0.5,
            platform_url=platform.url,
            corroborate_interval_s=0.05,
            uses=[GpuServiceWitness(client, platform.url)],
            exports=ExportsWitness(str(exports), "UTC", SystemClock()),
        ) as monitor,
    ):
        stub = monitor.stub()
        await until(stub, True)
        platform.answer("/api/health/vram", {"loaded_models": [{"in_use": True}]})
        assert codes(await until(stub, False)) == {"GPU_IN_USE"}
        platform.answer("/api/health/vram", {"loaded_models": []})
        await until(stub, True)
        run = exports / datetime.now(UTC).date().isoformat() / "dev" / "run_1"
        run.mkdir(parents=True)
        assert codes(await until(stub, False)) == {"EXPORTS_WRITTEN"}
        await until(stub, True)


def nvml_stand_in(**behaviour: Any) -> Any:
    """A module with the functions of pynvml that the reader calls."""

    class NVMLError(Exception):
        pass

    module = types.ModuleType("pynvml")
    process = types.SimpleNamespace
    defaults: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetMigMode": lambda handle: [0, 0],
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=96 * 2**30, used=22 * 2**30),
        "nvmlDeviceGetName": lambda handle: b"Card",
        "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=37),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            process(pid=7, usedGpuMemory=5),
            process(pid=8, usedGpuMemory=None),
            process(pid=9, usedGpuMemory=2**64 - 1),
        ],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: [process(pid=7, usedGpuMemory=9)],
    }
    for name, value in {**defaults, **behaviour}.items():
        setattr(module, name, value)
    return module


async def test_gpus_are_shown_with_processes_and_memory(make_monitor: MakeMonitor) -> None:
    async with make_monitor(nvml=nvml_stand_in()) as monitor:
        answer = await monitor.stub().ListGpus(messages.ListGpusRequest())
        assert answer.detail == ""
        gpu = answer.gpus[0]
        assert (gpu.display_name, gpu.total_bytes, gpu.utilization_percent) == ("Card", 96 * 2**30, 37)
        assert [(process.pid, process.used_bytes) for process in gpu.processes] == [(7, 9), (8, 0), (9, 0)]


async def test_a_driver_without_library_or_card_is_said_and_tried_again(make_monitor: MakeMonitor) -> None:
    module = nvml_stand_in()
    broken = True

    def init() -> None:
        if broken:
            raise module.NVMLError("NVML Shared Library Not Found")

    module.nvmlInit = init
    reader = NvmlReader(module)
    reading = await reader.read()
    assert reading.gpus == ()
    assert "Not Found" in reading.detail
    broken = False
    assert len((await reader.read()).gpus) == 1
    module.nvmlDeviceGetCount = lambda: 0
    assert (await reader.read()).detail == "NVML finds no GPU"
    reader.close()


async def test_a_driver_that_hangs_is_given_up_and_costs_one_thread() -> None:
    release = threading.Event()
    calls = []

    def hang() -> int:
        calls.append(1)
        release.wait(20)
        return 0

    reader = NvmlReader(nvml_stand_in(nvmlDeviceGetCount=hang), timeout_s=0.1)
    for _ in range(3):
        assert "did not answer" in (await reader.read()).detail
    assert len(calls) == 1
    release.set()
    await asyncio.sleep(0.1)
    assert (await reader.read()).detail == "NVML finds no GPU"
    reader.close()


async def test_the_real_library_tells_of_gpus_or_honestly_of_none() -> None:
    reader = NvmlReader(load_nvml())
    reading = await reader.read()
    assert bool(reading.gpus) != bool(reading.detail)
    reader.close()

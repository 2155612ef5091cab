"""GPUs through the real binding, on an NVML of our own: a C library that answers as a file tells it to.

The binding loads ``libnvidia-ml.so.1`` by its name, so the monitor runs as a process of its own whose loader
finds ours first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import monitor_service_pb2_grpc
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import sync_channel
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from tests.monitor.test_monitor_process import environment
from tests.support.programs import require

GIB = 2**30
TWO_CARDS = f"""\
gpus 2
name 0 NVIDIA RTX PRO 6000 Blackwell
memory 0 {96 * GIB} {22 * GIB}
utilization 0 37
mig 0 0
compute 0 4242 {20 * GIB}
compute 0 77 -
graphics 0 4242 {GIB}
graphics 0 9 {GIB}
name 1 Old Card
memory 1 {8 * GIB} 0
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with our libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    subprocess.run(
        [
            require("cc"),
            *("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *("-Wl,-soname,libnvidia-ml.so.1", "-o", str(folder / "libnvidia-ml.so.1")),
            str(Path(__file__).with_name("fake_nvml.c")),
        ],
        check=True,
    )
    return folder


@dataclass
class Host:
    """A monitor process on a host whose GPUs the tests make up."""

    state: Path
    stub: Any

    def tell(self, text: str) -> None:
        """From now on NVML answers so."""
        fresh = self.state.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.state)

    def gpus(self) -> messages.ListGpusResponse:
        answer: messages.ListGpusResponse = self.stub.ListGpus(messages.ListGpusRequest(), timeout=10)
        return answer

    def probe(self) -> resources.ProbeResult:
        answer: resources.ProbeResult = self.stub.RunProbe(
            messages.RunProbeRequest(name="probes/gpu"), timeout=10
        )
        return answer


@pytest.fixture(scope="module")
def host(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    home, base, state = folder / "home", find_free_base(), folder / "state"
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    state.write_text(TWO_CARDS)
    process = subprocess.Popen(
        [sys.executable, "-m", "nightshift_monitor"],
        env=environment(
            home,
            base,
            NIGHTSHIFT_MONITOR_PLANE_PROBES="false",
            NIGHTSHIFT_MONITOR_GPU_TIMEOUT_S="0.5",
            NIGHTSHIFT_MONITOR_GPU_WATCH_INTERVAL_S="0.1",
            LD_LIBRARY_PATH=str(library),
            FAKE_NVML=str(state),
        ),
        stderr=subprocess.DEVNULL,
    )
    try:
        with sync_channel(
            "monitor", settings, f"person/{os.getuid()}", address=f"127.0.0.1:{base + 1}"
        ) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            yield Host(state, monitor_service_pb2_grpc.MonitorServiceStub(channel))
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait(15)


def test_names_memory_utilisation_and_processes(host: Host) -> None:
    host.tell(TWO_CARDS)
    first, second = host.gpus().gpus
    assert (first.index, first.display_name) == (0, "NVIDIA RTX PRO 6000 Blackwell")
    assert (first.total_bytes, first.used_bytes, first.utilization_percent) == (96 * GIB, 22 * GIB, 37)
    assert [(one.pid, one.used_bytes, one.kind) for one in first.processes] == [
        (9, GIB, "graphics"),
        # NVML may not say how much a process of another container holds.
        (77, 0, "compute"),
        (4242, 20 * GIB, "compute,graphics"),
    ]
    assert (first.detail, first.mig, first.failed) == ("", False, False)
    # The old card tells no utilisation, which is said and not taken for idle.
    assert second.detail == "utilisation: Not Supported"
    assert not second.processes
    probe = host.probe()
    assert probe.state == resources.PROBE_STATE_UP
    assert "22.0 of 96.0 GiB used, 37 %" in probe.detail


def test_many_processes_fit(host: Host) -> None:
    many = "".join(f"compute 1 {1000 + number} {number}\n" for number in range(300))
    host.tell(TWO_CARDS + many)
    assert len(host.gpus().gpus[1].processes) == 300


def test_a_divided_card_says_so(host: Host) -> None:
    host.tell(
        f"gpus 1\nname 0 H100\nmemory 0 {80 * GIB} {GIB}\nmig 0 1\n"
        "error nvmlDeviceGetUtilizationRates 0 3\nerror nvmlDeviceGetGraphicsRunningProcesses 0 4\n"
    )
    (card,) = host.gpus().gpus
    assert card.mig
    assert card.used_bytes == GIB
    assert card.detail == "utilisation: Not Supported; graphics processes: Insufficient Permissions"


@pytest.mark.parametrize(
    ("function", "code"),
    [("nvmlDeviceGetHandleByIndex", 15), ("nvmlDeviceGetMemoryInfo", 15), ("nvmlDeviceGetName", 16)],
)
def test_a_lost_gpu_is_named_hides_no_other_and_may_come_back(host: Host, function: str, code: int) -> None:
    host.tell(TWO_CARDS + f"error {function} 0 {code}\n")
    first, second = host.gpus().gpus
    assert first.failed
    assert first.total_bytes == 0
    assert first.detail == {15: "GPU is lost", 16: "GPU requires restart"}[code]
    assert not second.failed
    assert second.total_bytes == 8 * GIB
    probe = host.probe()
    assert probe.state == resources.PROBE_STATE_DOWN
    assert first.detail in probe.detail
    host.tell(TWO_CARDS)
    assert not host.gpus().gpus[0].failed
    assert host.probe().state == resources.PROBE_STATE_UP


def test_a_driver_that_is_not_loaded_is_no_failure(host: Host) -> None:
    host.tell("gpus 0\n")
    assert host.gpus().detail == "NVML finds no GPU"
    host.tell(TWO_CARDS + "error nvmlDeviceGetCount -1 9\nerror nvmlInitWithFlags -1 9\n")
    for _ in range(2):
        answer = host.gpus()
        assert not answer.gpus
        assert answer.detail == "NVML: Driver Not Loaded"
    assert host.probe().state == resources.PROBE_STATE_UNKNOWN
    host.tell(TWO_CARDS)
    assert len(host.gpus().gpus) == 2


def test_a_driver_that_hangs_holds_up_nothing_and_is_seen(host: Host) -> None:
    host.tell(TWO_CARDS + "hang nvmlDeviceGetMemoryInfo\n")
    began = time.monotonic()
    answer = host.gpus()
    assert not answer.gpus
    assert "did not answer within 0.5 s" in answer.detail
    assert host.probe().state == resources.PROBE_STATE_DOWN
    # Whatever needs no GPU is served meanwhile, at once.
    host.stub.GetIdleness(messages.GetIdlenessRequest(), timeout=5)
    assert time.monotonic() - began < 5
    host.tell(TWO_CARDS)
    deadline = time.monotonic() + 10
    while len(host.gpus().gpus) != 2:
        assert time.monotonic() < deadline
    assert host.probe().state == resources.PROBE_STATE_UP


def test_a_watcher_hears_of_each_change(host: Host) -> None:
    host.tell(TWO_CARDS)
    watching = host.stub.WatchGpus(messages.WatchGpusRequest(), timeout=20)
    first = next(watching)
    assert [gpu.used_bytes for gpu in first.gpus] == [22 * GIB, 0]
    host.tell(TWO_CARDS.replace(f"{8 * GIB} 0", f"{8 * GIB} {GIB}") + f"compute 1 5 {GIB}\n")
    second = next(watching)
    assert second.seq > first.seq
    assert [gpu.used_bytes for gpu in second.gpus] == [22 * GIB, GIB]
    assert [process.pid for process in second.gpus[1].processes] == [5]
    host.tell(TWO_CARDS + "error nvmlDeviceGetHandleByIndex 1 15\n")
    assert next(watching).gpus[1].failed
    resumed = host.stub.WatchGpus(messages.WatchGpusRequest(after_seq=second.seq), timeout=20)
    assert next(resumed).gpus[1].failed
    watching.cancel()
    resumed.cancel()

"""The daemon log and the gauges: for tools that read files, and for Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift_kit.clock import SystemClock
from nightshift_monitor.daemon_log import DaemonLog, LineFile
from nightshift_monitor.gauges import MonitorGauges
from tests.monitor.conftest import MakeMonitor, PlatformStandIn
from tests.monitor.test_monitor_incidents import FAST, opened
from tests.monitor.test_monitor_witnesses import nvml_stand_in


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


async def wait_for(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_status_idleness_and_incidents_are_written_one_object_a_line(
    make_monitor: MakeMonitor, platform: PlatformStandIn, tmp_path: Path
) -> None:
    path = tmp_path / "status.jsonl"
    async with make_monitor(platform_url=platform.url, quiet_s=0.2, nvml=nvml_stand_in(), **FAST) as monitor:
        log = DaemonLog(LineFile(path, max_bytes=10**6, files=2), clock=SystemClock(), interval_s=0.1)
        monitor.core.incidents.listen(log.note_incident)
        writing = asyncio.create_task(log.run(lambda: monitor.core.newest, monitor.core.watch))

        def seen(**wanted: Any) -> bool:
            return any(wanted.items() <= line.items() for line in lines(path))

        await wait_for(lambda: seen(event="idleness", idle=True, reasons=[]))
        await monitor.stub().RecordActivity(messages.RecordActivityRequest(), timeout=5)
        await wait_for(lambda: seen(event="idleness", idle=False, reasons=["ACTIVITY"]))
        platform.answers.pop("/api/settings/safety-level")
        incident = await opened(monitor)
        ada = monitor.stub("person/ada")
        await ada.AcknowledgeIncident(
            messages.AcknowledgeIncidentRequest(name=incident.name, comment="private words"), timeout=5
        )
        await wait_for(lambda: seen(event="status", incidents=1, idle=False, platform_up=False))
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        told = [line for line in lines(path) if line["event"] == "incident"]
        assert {line["incident"] for line in told} == {incident.name}
        assert [line["state"] for line in told if line["worst"] == "DOWN"][:2] == ["OPEN", "ACKNOWLEDGED"]
    status = next(line for line in lines(path) if line["event"] == "status")
    assert set(status["probes"]) == {"disk-home", "gpu", "platform"}
    assert status["gpus"][0]["name"] == "Card"
    assert all(line["time"].endswith("Z") for line in lines(path))
    assert "private" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_files_are_rotated_by_size_and_bounded_in_number(tmp_path: Path) -> None:
    path = tmp_path / "status.jsonl"
    file = LineFile(path, max_bytes=4_096, files=3)
    for number in range(1_000):
        file.append(json.dumps({"number": number, "filling": "x" * 50}).encode())
    file.close()
    kept = sorted(each.name for each in tmp_path.iterdir())
    assert kept == ["status.jsonl", "status.jsonl.1", "status.jsonl.2"]
    assert all(each.stat().st_size <= 4_096 for each in tmp_path.iterdir())
    numbers = [
        line["number"] for name in (".2", ".1", "") for line in lines(path.with_name(path.name + name))
    ]
    assert numbers == list(range(numbers[0], 1_000))


def test_one_file_alone_is_begun_anew(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log", max_bytes=4_096, files=1)
    for number in range(500):
        file.append(json.dumps({"number": number}).encode())
    file.close()
    assert lines(tmp_path / "log")[-1] == {"number": 499}
    assert [each.name for each in tmp_path.iterdir()] == ["log"]


@given(st.lists(st.binary(max_size=300).filter(lambda line: b"\n" not in line)), st.binary(max_size=200))
def test_a_torn_last_line_is_cut_off_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, whole: list[bytes], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "log"
    torn = torn.replace(b"\n", b"")
    path.write_bytes(b"".join(line + b"\n" for line in whole) + torn)
    file = LineFile(path, max_bytes=10**6, files=2)
    file.append(b"next")
    file.close()
    assert path.read_bytes() == b"".join(line + b"\n" for line in [*whole, b"next"])


def test_a_torn_line_longer_than_a_chunk_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"whole\n" + b"x" * 200_000)
    LineFile(path, max_bytes=10**6, files=2).close()
    assert path.read_bytes() == b"whole\n"


WRITER = """
import sys
from pathlib import Path
from nightshift_monitor.daemon_log import LineFile
file = LineFile(Path(sys.argv[1]), max_bytes=200_000, files=3)
print("ready", flush=True)
number = 0
while True:
    file.append(b'{"number": %d, "filling": "%s"}' % (number, b"x" * (number % 3_000)))
    number += 1
"""


def test_a_kill_leaves_no_half_line_behind_the_next_start(tmp_path: Path) -> None:
    path, chance = tmp_path / "log", random.Random(3)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        LineFile(path, max_bytes=200_000, files=3).close()
        for each in tmp_path.iterdir():
            assert lines(each) or each.stat().st_size == 0


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LineFile(tmp_path / "log", max_bytes=10**6, files=2)
    file.append(b"whole")
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="did not fit"):
            file.append(b"half")
    file.append(b"after")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"whole\nafter\n"


async def test_the_gauges_show_what_the_status_shows(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    platform.answers.pop("/api/settings/safety-level")
    async with make_monitor(platform_url=platform.url, nvml=nvml_stand_in(), **FAST) as monitor:
        await opened(monitor)
        registry = CollectorRegistry()
        registry.register(MonitorGauges(lambda: monitor.core.newest))
        text = (await asyncio.to_thread(generate_latest, registry)).decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    prefix = "nightshift_monitor_"
    assert found[prefix + 'probe_state{probe="platform",state="down"}'] == "1.0"
    assert found[prefix + 'probe_state{probe="platform",state="up"}'] == "0.0"
    assert float(found[prefix + 'probe_latency_seconds{probe="platform"}']) > 0
    assert found[prefix + "idle"] == "0.0"
    assert found[prefix + "platform_up"] == "0.0"
    assert found[prefix + 'incidents{state="open"}'] == "1.0"
    assert found[prefix + 'incidents{state="acknowledged"}'] == "0.0"
    card = '{gpu="0",name="Card"}'
    assert float(found[prefix + f"gpu_memory_used_bytes{card}"]) == 22 * 2**30
    assert float(found[prefix + f"gpu_memory_total_bytes{card}"]) == 96 * 2**30
    assert found[prefix + f"gpu_utilization_ratio{card}"] == "0.37"
    assert found[prefix + f"gpu_failed{card}"] == "0.0"
    # Too little is known to expect anybody.
    assert prefix + "predicted_busy_timestamp_seconds" not in found

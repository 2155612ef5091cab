"""The monitor as the process that the plane starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import monitor_service_pb2_grpc
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import sync_channel
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from tests.monitor.conftest import PlatformStandIn


def environment(home: Path, base: int, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTSHIFT_")}
    return {**kept, "NIGHTSHIFT_HOME": str(home), "NIGHTSHIFT_PORT_BASE": str(base), **more}


def test_the_process_reads_its_settings_serves_and_ends_on_sigterm(
    tmp_path: Path, platform: PlatformStandIn
) -> None:
    home, base = tmp_path / "home", find_free_base()
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    (home / "settings.toml").write_text(
        f"""
[monitor]
quiet_s = 9999
platform_url = "{platform.url}"

[[monitor.probes]]
name = "scratch"
kind = "disk"
target = "{tmp_path}"
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "nightshift_monitor"],
        env=environment(
            home, base, NIGHTSHIFT_MONITOR_QUIET_S="0.3", NIGHTSHIFT_MONITOR_PLANE_PROBES="false"
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        with sync_channel(
            "monitor", settings, f"person/{os.getuid()}", address=f"127.0.0.1:{base + 1}"
        ) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            stub = monitor_service_pb2_grpc.MonitorServiceStub(channel)
            probes = stub.ListProbes(messages.ListProbesRequest(), timeout=10).probes
            assert [probe.name for probe in probes] == [
                "probes/disk-home",
                "probes/gpu",
                "probes/platform",
                "probes/scratch",
            ]
            deadline = time.monotonic() + 20
            while not stub.GetIdleness(messages.GetIdlenessRequest(), timeout=10).idle:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            watching = stub.WatchStatus(messages.WatchStatusRequest())
            assert next(watching).status.idleness.idle
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            # A watcher must not hold up the end of the service.
            assert time.monotonic() - began < 4
    finally:
        process.kill()
        process.communicate(timeout=15)
    log = [json.loads(line) for line in (home / "logs" / "monitor.jsonl").read_text().splitlines()]
    assert any(line.get("event") == "ready" for line in log)


def test_a_forbidden_url_in_the_settings_keeps_the_process_from_starting(tmp_path: Path) -> None:
    home, base = tmp_path / "home", find_free_base()
    ensure_home(PlaneSettings(home=home, port_base=base))
    done = subprocess.run(
        [sys.executable, "-m", "nightshift_monitor"],
        env=environment(home, base, NIGHTSHIFT_MONITOR_PLATFORM_URL="http://127.0.0.1:1/api/active-users"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "NIGHTSHIFT_MONITOR_PLATFORM_URL" in done.stderr + done.stdout
    assert "never be polled" in done.stderr + done.stdout

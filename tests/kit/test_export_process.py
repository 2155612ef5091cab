"""Export from a service as a process: same values as the metrics page, nothing for children, no late end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to, credential_for
from nightshift_kit.settings import PlaneSettings
from tests.support.collector import Collector, collector_process, labels

ROOT = Path(__file__).parents[2]
PERSON = f"person/{os.getuid()}"
SECRET = "a-secret-of-the-collector"


@dataclass
class Running:
    popen: subprocess.Popen[bytes]
    settings: PlaneSettings
    stub: Any

    def log(self) -> list[dict[str, Any]]:
        path = self.settings.home / "logs" / "monitor.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.asynccontextmanager
async def exporting(home: Path, environment: dict[str, str]) -> AsyncIterator[Running]:
    settings = PlaneSettings(home=home, port_base=find_free_base())
    popen = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.fake_services.exporting"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "NIGHTSHIFT_HOME": str(home),
            "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
            "NIGHTSHIFT_TELEMETRY_SPANS_INTERVAL_S": "0.1",
            "NIGHTSHIFT_TELEMETRY_METRICS_INTERVAL_S": "0.2",
            **environment,
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (home / "credentials" / f"{PERSON}.pem").exists():
            assert popen.poll() is None
            await asyncio.sleep(0.05)
        address = f"127.0.0.1:{settings.port('monitor')}"
        async with channel_to(address, "monitor", credential_for(settings, PERSON)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
            yield Running(popen, settings, pb_grpc.MonitorServiceStub(channel))
    finally:
        popen.terminate()
        assert await asyncio.to_thread(popen.wait, 15) == 0


def page(running: Running) -> dict[Any, float]:
    """The metrics page, without what the export counts of itself."""
    url = f"http://127.0.0.1:{running.settings.metrics_port('monitor')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, labels(sample.labels)): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created") and "telemetry" not in sample.name
    }


async def test_same_values_as_the_metrics_page_and_nothing_for_children(tmp_path: Path) -> None:
    with Collector() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET}",
            "OTEL_BSP_SCHEDULE_DELAY": "soon",
        }
        async with exporting(tmp_path / "home", environment) as running:
            for _ in range(7):
                await running.stub.GetStatus(pb.GetStatusRequest(), timeout=5)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await running.stub.ListProbes(pb.ListProbesRequest(), timeout=5)
            told = (await running.stub.GetProbe(pb.GetProbeRequest(), timeout=20)).name
            assert "NIGHTSHIFT_HOME" in told
            assert "OTEL_" not in told
            assert "NIGHTSHIFT_TELEMETRY" not in told
            assert told.endswith("[]\n"), "the child has a socket of its parent"
            shown = await asyncio.to_thread(page, running)
            assert sum(name == "nightshift_rpc_duration_seconds_count" for name, _ in shown) == 3
            assert any(name == "nightshift_rpc_errors_total" for name, _ in shown)

            def same() -> bool:
                came = collector.metrics("nightshift-monitor")
                return {key: value for key, value in came.items() if "telemetry" not in key[0]} == shown

            await asyncio.to_thread(collector.until, same)
            # Nine calls; the health check leaves no span, and neither do the exports.
            await asyncio.to_thread(collector.until, lambda: len(collector.spans()) == 9)
    assert {one.name.rpartition("/")[2] for one in collector.spans()} == {
        "GetStatus",
        "ListProbes",
        "GetProbe",
    }
    assert {headers["api-key"] for headers in collector.headers} == {SECRET}
    log = (tmp_path / "home" / "logs" / "monitor.jsonl").read_text()
    assert SECRET not in log
    assert log.count("OTEL_BSP_SCHEDULE_DELAY is not usable here") == 1


async def test_a_collector_that_freezes_delays_neither_calls_nor_the_end(tmp_path: Path) -> None:
    with collector_process() as (collector, endpoint):
        environment = {"NIGHTSHIFT_TELEMETRY_OTLP_ENDPOINT": endpoint}
        async with exporting(tmp_path / "home", environment) as running:
            await running.stub.GetStatus(pb.GetStatusRequest(), timeout=5)
            while not any(
                name[0] == "nightshift_telemetry_spans_total" and value
                for name, value in (await asyncio.to_thread(sent, running)).items()
            ):
                await asyncio.sleep(0.05)
            collector.send_signal(signal.SIGSTOP)
            for _ in range(300):
                await running.stub.GetStatus(pb.GetStatusRequest(), timeout=5)
            began_s = time.monotonic()
            running.popen.terminate()
            assert await asyncio.to_thread(running.popen.wait, 15) == 0
            # A second of it for the collector; a plane kills what takes longer than 8 s.
            assert time.monotonic() - began_s < 8
    events = [line["event"] for line in running.log()]
    assert "calls were cut short" not in events
    assert "telemetry export broke" not in events


def sent(running: Running) -> dict[Any, float]:
    url = f"http://127.0.0.1:{running.settings.metrics_port('monitor')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, labels(sample.labels)): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("outcome") == "sent"
    }

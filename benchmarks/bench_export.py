"""Calls a second with the OpenTelemetry export off and on, as ratios of one run.

    python -m benchmarks.bench_export [--seconds 1] [--rounds 10] [--callers 64]

Four monitors, each a process of its own, GetIdleness over mutual TLS: without export; exporting to a
collector (a process, too), with a span of every call and with calls that nobody traces; and with a span of
every call while the collector is frozen (SIGSTOP). The sides take turns; ratios are of medians. CPU time is
the monitor's own, of all its threads: it says the same on a machine that does something else besides.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import load_credential
from nightshift_kit.settings import PlaneSettings
from tests.support.collector import collector_process

TRACED = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)


@dataclass
class Side:
    """One monitor and how it is called."""

    label: str
    settings: PlaneSettings
    process: psutil.Process
    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]

    def cpu_s(self) -> float:
        """CPU time of the monitor until now."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def rate(self, callers: int, seconds: float) -> tuple[float, float, float]:
        """Calls a second, the median latency in ms, the monitor's CPU time for a call in µs."""
        stub: Any = MonitorServiceStub(self.channel)
        latencies: list[float] = []
        began_s, before_s = time.perf_counter(), self.cpu_s()

        async def caller() -> None:
            while (now_s := time.perf_counter()) < began_s + seconds:
                await stub.GetIdleness(pb.GetIdlenessRequest(), timeout=20, metadata=self.metadata)
                latencies.append(time.perf_counter() - now_s)

        await asyncio.gather(*(caller() for _ in range(callers)))
        spent_s = time.perf_counter() - began_s
        cpu_us = (self.cpu_s() - before_s) / len(latencies) * 1e6
        return len(latencies) / spent_s, statistics.median(latencies) * 1e3, cpu_us

    def spans(self) -> str:
        """What became of the spans, as the metrics page has it."""
        url = f"http://127.0.0.1:{self.settings.metrics_port('monitor')}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        told = []
        for line in lines:
            if line.startswith("nightshift_telemetry_spans_total"):
                _, outcome, value = line.split('"')
                told.append(f"{outcome} {float(value.removeprefix('} ')):,.0f}")
        return ", ".join(told)


async def start(
    stack: AsyncExitStack, folder: Path, label: str, endpoint: str, metadata: tuple[tuple[str, str], ...]
) -> Side:
    settings = PlaneSettings(home=folder / label.replace(" ", "_"), port_base=find_free_base())
    environment = {
        **os.environ,
        "NIGHTSHIFT_HOME": str(settings.home),
        "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
        "NIGHTSHIFT_TELEMETRY_OTLP_ENDPOINT": endpoint,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "nightshift_monitor"], env=environment, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    person = f"person/{os.getuid()}"
    while not (settings.home / "credentials" / f"{person}.pem").exists():
        assert process.poll() is None
        await asyncio.sleep(0.05)
    address = f"127.0.0.1:{settings.port('monitor')}"
    channel = channel_to(address, "monitor", load_credential(settings, person))
    stack.push_async_callback(channel.close)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
    return Side(label, settings, psutil.Process(process.pid), channel, metadata)


async def measure(seconds: float, rounds: int, callers: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _, endpoint = stack.enter_context(collector_process())
        frozen, frozen_endpoint = stack.enter_context(collector_process())
        sides = [
            await start(stack, folder, "export off", "", TRACED),
            await start(stack, folder, "on, every call a span", endpoint, TRACED),
            await start(stack, folder, "on, calls nobody traces", endpoint, ()),
            await start(stack, folder, "on, collector frozen", frozen_endpoint, TRACED),
        ]
        frozen.send_signal(signal.SIGSTOP)
        for side in sides:
            await side.rate(callers, 0.5)
        found: dict[str, list[tuple[float, float, float]]] = {side.label: [] for side in sides}
        for number in range(rounds):
            # Whoever goes first in one round goes last in the next.
            for side in sides if number % 2 == 0 else reversed(sides):
                found[side.label].append(await side.rate(callers, seconds))
        print(
            f"{len(os.sched_getaffinity(0))} cores shared by client and servers, "
            f"load {os.getloadavg()[0]:.1f}, {callers} callers, {rounds} rounds of {seconds:.1f} s, medians"
        )
        base = [statistics.median(values) for values in zip(*found["export off"], strict=True)]
        for side in sides:
            rate, p50_ms, cpu_us = (
                statistics.median(values) for values in zip(*found[side.label], strict=True)
            )
            print(
                f"  {side.label:<24} {rate:7.1f} calls/s (x {rate / base[0]:.2f})  p50 {p50_ms:6.2f} ms  "
                f"CPU {cpu_us:5.0f} µs/call (x {cpu_us / base[2]:.2f})  "
                f"{await asyncio.to_thread(side.spans)}".rstrip()
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--callers", type=int, default=64)
    given = parser.parse_args()
    asyncio.run(measure(given.seconds, given.rounds, given.callers))

"""Durable ingest beside the ceiling of a bare echo, in one run.

    python benchmarks/bench_ingest.py [--seconds 5] [--callers 64] [--rounds 3]

Three servers, each a process of its own: a bare grpc.aio echo of the same bytes without TLS, checks or store
(what Python's gRPC can do here at all); the experience service, unary RecordRun over mutual TLS; and the same
service, RecordRuns in batches. The sides take turns, the medians of the rounds are printed. Every
acknowledged run was fsynced before: tests/experience/test_experience_durability.py shows it with strace.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import load_credential
from nightshift_kit.settings import PlaneSettings

PARENT = "projects/bench"
BATCH = 500
ECHO = "/bench.Echo/Echo"


def make_run(number: int) -> resources.Run:
    """A run like those of a season: days of 12 devices and 250 runs, prompts that repeat now and then."""
    ms = 1_770_000_000_000 + number * 37
    day = number // 250
    return resources.Run(
        name=f"{PARENT}/runs/run_{ms}_{number:06x}",
        device=f"{day:08x}-2222-4333-8444-{number % 12:012d}_2026-02-02",
        language="de",
        prompt=f"ein Fuchs unter dem Küchentisch, von oben gesehen, Nummer {number // 3}",
        transformed_prompt=f"Ein Feld aus reifem Gelb, daneben ein Fuchs unterm Tisch {number // 3}. " * 2,
        interception_config=f"config-{number % 14}",
        output_config=f"output-{number % 7}",
        outcome=resources.RUN_OUTCOME_SUCCEEDED,
        seed=number,
        media_types=["image"],
        models={"stage2_interception": "small", "stage4_output": f"output-{number % 7}"},
        safety_level="youth",
    )


async def serve_echo(port: int) -> None:
    """The bare server."""

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def hammer(
    call: Callable[[int], Awaitable[Any]], callers: int, seconds: float, first: int
) -> tuple[float, float, int]:
    """(calls a second, median latency in ms, calls)."""
    stop_at = time.perf_counter() + seconds
    latencies: list[float] = []
    numbers = iter(range(first, 1 << 60))

    async def caller() -> None:
        while time.perf_counter() < stop_at:
            began = time.perf_counter()
            await call(next(numbers))
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - began
    return len(latencies) / elapsed, statistics.median(latencies) * 1000, len(latencies)


async def stream(stub: Any, seconds: float, first: int) -> tuple[float, int]:
    """(runs a second, runs) of one RecordRuns stream; making the messages is not counted."""
    batches: list[pb.RecordRunsRequest] = []
    count = max(8, int(seconds * 15_000 / BATCH))
    for number in range(count):
        begin = first + number * BATCH
        batches.append(pb.RecordRunsRequest(parent=PARENT, runs=map(make_run, range(begin, begin + BATCH))))

    async def messages() -> AsyncIterator[pb.RecordRunsRequest]:
        for batch in batches:
            yield batch

    began = time.perf_counter()
    answer = await stub.RecordRuns(messages(), timeout=600)
    elapsed = time.perf_counter() - began
    assert answer.created_count == count * BATCH, answer
    return count * BATCH / elapsed, count * BATCH


def free_port_base() -> int:
    """A base whose ports for experience are free."""
    for base in range(23000, 60000, 97):
        try:
            for port in (base + 2, base + 12, base + 22, base + 50):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise SystemExit("no free ports")


async def connected(make: Callable[[], grpc.aio.Channel], ready: Callable[[], bool]) -> grpc.aio.Channel:
    """The channel, once the server answers."""
    for _ in range(600):
        if ready():
            channel = make()
            try:
                await asyncio.wait_for(channel.channel_ready(), 1.0)
            except TimeoutError:
                await channel.close()
            else:
                return channel
        await asyncio.sleep(0.05)
    raise SystemExit("a server did not start")


async def measure(arguments: argparse.Namespace, home: Path, base: int) -> None:
    """Take turns and print."""
    settings = PlaneSettings(home=home, port_base=base)
    identity = home / "credentials" / "platform" / "default.pem"
    service = await connected(
        lambda: channel_to(
            f"127.0.0.1:{base + 2}", "experience", load_credential(settings, "platform/default")
        ),
        identity.exists,
    )
    bare = await connected(lambda: grpc.aio.insecure_channel(f"127.0.0.1:{base + 50}"), lambda: True)
    echo: Any = bare.unary_unary(ECHO)
    stub: Any = ExperienceServiceStub(service)

    async def call_echo(number: int) -> None:
        await echo(pb.RecordRunRequest(parent=PARENT, run=make_run(number)).SerializeToString())

    async def call_record(number: int) -> None:
        await stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=make_run(number)), timeout=30)

    await hammer(call_echo, 8, 0.5, 0)
    next_run = 0
    await hammer(call_record, 8, 0.5, next_run)
    next_run += 100_000
    rows: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        rate, latency, _count = await hammer(call_echo, arguments.callers, arguments.seconds, 0)
        rows.setdefault("bare echo, calls/s", []).append(rate)
        rows.setdefault("bare echo, p50 ms", []).append(latency)
        rate, latency, count = await hammer(call_record, arguments.callers, arguments.seconds, next_run)
        next_run += count + arguments.callers
        rows.setdefault("RecordRun durable, calls/s", []).append(rate)
        rows.setdefault("RecordRun durable, p50 ms", []).append(latency)
        rate, count = await stream(stub, arguments.seconds, next_run)
        next_run += count
        rows.setdefault(f"RecordRuns durable, runs/s ({BATCH} a message)", []).append(rate)
    print(
        f"{os.cpu_count()} cores shared by client and servers, load {os.getloadavg()[0]:.1f}, "
        f"{arguments.callers} callers, {arguments.rounds} rounds of {arguments.seconds} s, medians"
    )
    for name, values in rows.items():
        rounds = ", ".join(f"{value:.1f}" for value in values)
        print(f"  {name:45} {statistics.median(values):10.1f}   (rounds {rounds})")
    await service.close()
    await bare.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--echo-port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo_port:
        asyncio.run(serve_echo(arguments.echo_port))
        return
    base = free_port_base()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NIGHTSHIFT_HOME": folder, "NIGHTSHIFT_PORT_BASE": str(base)}
        quiet: dict[str, Any] = {
            "env": environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        parent = ["--parent-pid", str(os.getpid())]
        processes = [
            subprocess.Popen([sys.executable, __file__, "--echo-port", str(base + 50)], **quiet),
            subprocess.Popen([sys.executable, "-m", "nightshift_experience", *parent], **quiet),
        ]
        try:
            asyncio.run(measure(arguments, Path(folder), base))
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


if __name__ == "__main__":
    main()

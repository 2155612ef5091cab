"""Profile, recommendations and tuned settings after histories of several sizes, beside a bare echo.

    python -m benchmarks.bench_profiles [--sizes 1000,10000,100000] [--seconds 2] [--rounds 3]

A service of its own on its own port, the bare echo of bench_ingest beside it. Runs of an orchestrator (two
modes, two strategies, costs that scatter) are streamed in until each size is reached; then the reads and the
echo take turns, one caller each. Auto-tune is off, as it begins. "first" is the read after one more run, when
nothing is kept in memory. The long form is `--sizes 1000,10000,100000,1000000`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bench_ingest
from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import profiles_pb2, tuning_pb2
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import load_credential
from nightshift_kit.settings import PlaneSettings

PARENT = "projects/bench"
SETTINGS = resources.RunSettings(mode="2loop", strategy="baseline", max_rounds=8, max_cost_usd=9.0)


def make_run(number: int) -> resources.Run:
    """A run of an orchestrator, the same for the same number."""
    chance = random.Random(number)
    mode = "3loop" if number % 3 else "2loop"
    run = resources.Run(
        name=f"{PARENT}/runs/r{number}",
        outcome=resources.RUN_OUTCOME_SUCCEEDED,
        settings=resources.RunSettings(
            mode=mode, strategy="fast" if number % 5 else "baseline", max_rounds=8, max_cost_usd=9.0
        ),
        rounds=chance.choice((1, 2, 2, 2, 3, 4)),
        qa_status=resources.QA_STATUS_PASSED if chance.random() < 0.85 else resources.QA_STATUS_FAILED,
        cost_usd=(0.8 if mode == "3loop" else 1.2) * chance.lognormvariate(0, 0.4),
        models={"manager": "m1", "employee": "m2"},
    )
    run.start_time.FromMilliseconds(1_700_000_000_000 + number * 1000)
    run.duration.FromMilliseconds(chance.randrange(60_000, 600_000))
    return run


async def fill(stub: Any, begin: int, end: int) -> float:
    """Stream runs in; runs a second."""

    async def batches() -> AsyncIterator[pb.RecordRunsRequest]:
        for first in range(begin, end, 500):
            numbers = range(first, min(end, first + 500))
            yield pb.RecordRunsRequest(parent=PARENT, runs=map(make_run, numbers))

    began = time.perf_counter()
    answer = await stub.RecordRuns(batches(), timeout=3600)
    assert answer.created_count == end - begin, answer.rejected[:3]
    return (end - begin) / (time.perf_counter() - began)


async def measure(arguments: argparse.Namespace, home: Path, base: int) -> None:
    """Take turns and print."""
    settings = PlaneSettings(home=home, port_base=base)
    identity = home / "credentials" / "platform" / "default.pem"
    service = await bench_ingest.connected(
        lambda: channel_to(
            f"127.0.0.1:{base + 2}", "experience", load_credential(settings, "platform/default")
        ),
        identity.exists,
    )
    bare = await bench_ingest.connected(
        lambda: grpc.aio.insecure_channel(f"127.0.0.1:{base + 50}"), lambda: True
    )
    echo: Any = bare.unary_unary(bench_ingest.ECHO)
    stub: Any = ExperienceServiceStub(service)
    profile = profiles_pb2.GetProfileRequest(name=f"{PARENT}/profile")
    advice = profiles_pb2.ListRecommendationsRequest(parent=PARENT, settings=SETTINGS)
    tuned = tuning_pb2.GetTunedSettingsRequest(parent=PARENT, settings=SETTINGS)
    payload = profile.SerializeToString()

    async def call_echo(_: int) -> None:
        await echo(payload)

    async def call_profile(_: int) -> None:
        await stub.GetProfile(profile, timeout=30)

    async def call_advice(_: int) -> None:
        await stub.ListRecommendations(advice, timeout=30)

    async def call_tuned(_: int) -> None:
        await stub.GetTunedSettings(tuned, timeout=30)

    calls = {"echo": call_echo, "profile": call_profile, "advice": call_advice, "tuned": call_tuned}
    print("| runs | echo ms | GetProfile | ListRecommendations | GetTunedSettings | first | runs/s in |")
    print("|---|---|---|---|---|---|---|")
    stored = 0
    for size in arguments.sizes:
        rate = await fill(stub, stored, size - 1)
        stored = size - 1
        firsts = []
        for _ in range(5):
            await fill(stub, stored, stored + 1)
            stored += 1
            began = time.perf_counter()
            await call_profile(0)
            firsts.append((time.perf_counter() - began) * 1000)
        medians: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                _, median_ms, _ = await bench_ingest.hammer(call, 1, arguments.seconds, 0)
                medians.setdefault(name, []).append(median_ms)
        cells = [f"{statistics.median(medians[name]):.2f}" for name in calls]
        print(
            f"| {size:,} | {' | '.join(cells)} | {statistics.median(firsts):.1f} | {rate:,.0f} |", flush=True
        )
    await service.close()
    await bare.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[1000, 10_000, 100_000]
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    base = bench_ingest.free_port_base()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NIGHTSHIFT_HOME": folder, "NIGHTSHIFT_PORT_BASE": str(base)}
        quiet: dict[str, Any] = {
            "env": environment,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        parent = ["--parent-pid", str(os.getpid())]
        processes = [
            subprocess.Popen([sys.executable, bench_ingest.__file__, "--echo-port", str(base + 50)], **quiet),
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

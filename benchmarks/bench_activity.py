"""ReportActivity at 2,000 a second beside other calls: their latency with the flood and without, interleaved.

    python -m benchmarks.bench_activity [--rate 2000] [--seconds 3] [--rounds 3]

Five services as processes of their own, mutual TLS. Each round measures GetLock at skills' main port and
RenewLease at the lab's control port one after the other, first without reports, then while they are sent.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as skills_grpc
from nightshift_kit.processes import Plane
from nightshift_kit.rpc.channels import channel
from nightshift_kit.rpc.tls import create_credential, ensure_home
from nightshift_kit.settings import PlaneSettings


async def flood(call: Any, rate: float, until_s: float) -> int:
    """Sends reports at a pace; how many were answered."""
    pending: set[asyncio.Task[Any]] = set()
    began_s, sent, done = time.monotonic(), 0, 0
    while (now_s := time.monotonic()) < until_s:
        while sent < (now_s - began_s) * rate and len(pending) < 512:
            task = asyncio.ensure_future(call(pb.ReportActivityRequest(kind="request"), timeout=10))
            pending.add(task)
            task.add_done_callback(pending.discard)
            sent += 1
        await asyncio.sleep(0.002)
        done = sent - len(pending)
    await asyncio.gather(*pending)
    return done


async def latency(call: Any, until_s: float) -> list[float]:
    """Milliseconds of one call after the other, a hundred a second at most."""
    spans = []
    while time.monotonic() < until_s:
        began_s = time.perf_counter()
        await call()
        spans.append((time.perf_counter() - began_s) * 1e3)
        await asyncio.sleep(0.01)
    return spans


async def measure(rate: float, seconds: float, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = PlaneSettings(home=Path(folder) / "home")
        ensure_home(settings)
        create_credential(settings, "person", "bench", "admin")
        create_credential(settings, "platform", "bench")
        plane = Plane(settings, port_base=0)
        await plane.start()
        opened = [
            channel("skills", plane.settings, "person/bench"),
            channel("skills", plane.settings, "platform/bench", control=True),
            channel("lab", plane.settings, "service/skills", control=True),
        ]
        try:
            skills: Any = skills_grpc.SkillsServiceStub(opened[0])
            reports: Any = control_grpc.ControlServiceStub(opened[1])
            stop: Any = control_grpc.StopServiceStub(opened[2])
            fence = (await skills.GetSchedule(pb.GetScheduleRequest(), timeout=20)).fence
            calls = {
                "GetLock": lambda: skills.GetLock(pb.GetLockRequest(), timeout=10),
                "RenewLease": lambda: stop.RenewLease(control_pb.RenewLeaseRequest(fence=fence), timeout=10),
            }
            spans: dict[tuple[str, bool], list[float]] = {(n, b): [] for n in calls for b in (False, True)}
            rates = []
            for _ in range(rounds):
                for flooded in (False, True):
                    until_s = time.monotonic() + seconds
                    sending = flood(reports.ReportActivity, rate if flooded else 0, until_s)
                    found: list[Any] = await asyncio.gather(
                        sending, *(latency(c, until_s) for c in calls.values())
                    )
                    if flooded:
                        rates.append(found[0] / seconds)
                    for name, values in zip(calls, found[1:], strict=True):
                        spans[name, flooded] += values
        finally:
            for one in opened:
                await one.close()
            await plane.stop()
    print(f"reports answered: {statistics.median(rates):,.0f}/s (asked for {rate:,.0f}/s)")
    for name in calls:
        quiet, beside = (sorted(spans[name, flooded]) for flooded in (False, True))
        for label, part in (("median", 0.5), ("p99", 0.99)):
            before, during = quiet[int(part * (len(quiet) - 1))], beside[int(part * (len(beside) - 1))]
            print(
                f"{name:<11}{label:<7} alone {before:7.2f} ms, beside reports {during:7.2f} ms, "
                f"x {during / before:.1f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(measure(given.rate, given.seconds, given.rounds))

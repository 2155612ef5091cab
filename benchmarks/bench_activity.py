"""ReportActivity at 2,000 a second beside other calls: what it costs them, and what any such load would.

    python -m benchmarks.bench_activity [--rate 2000] [--seconds 3] [--rounds 3]

Five services as processes of their own, mutual TLS. Each round measures GetLock at skills' main port and
RenewLease at the lab's control port one after the other: alone, then while reports are sent to skills, then
while as many calls of the same kind are sent to experience's control port instead. What the last two have in
common is a busy machine; what sets them apart is what the reports cost whoever else asks skills. The calls
are sent by a process of their own: in the one that measures they would wait for each other, and that would be
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
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

ARMS = ("alone", "beside reports", "beside others")


async def flood(home: Path, port_base: int) -> None:
    """Sends calls as standard input says, one line each: what, a fence, how many a second, for how long."""
    settings = PlaneSettings(home=home, port_base=port_base)
    opened = [
        channel("skills", settings, "platform/bench", control=True),
        channel("experience", settings, "service/skills", control=True),
    ]
    control: Any = control_grpc.ControlServiceStub(opened[0])
    stop: Any = control_grpc.StopServiceStub(opened[1])
    fence = 0
    calls = {
        "reports": lambda: control.ReportActivity(pb.ReportActivityRequest(kind="request"), timeout=10),
        "others": lambda: stop.RenewLease(control_pb.RenewLeaseRequest(fence=fence), timeout=10),
    }
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, told, rate, seconds = line.split()
            fence = int(told)
            sent = await _send(calls[what], float(rate), time.monotonic() + float(seconds))
            print(sent / float(seconds), flush=True)
    finally:
        for one in opened:
            await one.close()


async def _send(call: Any, rate: float, until_s: float) -> int:
    """Sends calls at a pace; how many were answered in time."""
    pending: set[asyncio.Task[Any]] = set()
    began_s, sent, done = time.monotonic(), 0, 0
    while (now_s := time.monotonic()) < until_s:
        while sent < (now_s - began_s) * rate and len(pending) < 256:
            task = asyncio.ensure_future(call())
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
            channel("lab", plane.settings, "service/skills", control=True),
        ]
        pipe = asyncio.subprocess.PIPE
        place = f"{settings.home}:{plane.settings.port_base}"
        arguments = ("-m", "benchmarks.bench_activity", "--flood", place)
        sender = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
        assert sender.stdin is not None
        assert sender.stdout is not None
        try:
            skills: Any = skills_grpc.SkillsServiceStub(opened[0])
            stop: Any = control_grpc.StopServiceStub(opened[1])
            fence = (await skills.GetSchedule(pb.GetScheduleRequest(), timeout=20)).fence
            calls = {
                "GetLock": lambda: skills.GetLock(pb.GetLockRequest(), timeout=10),
                "RenewLease": lambda: stop.RenewLease(control_pb.RenewLeaseRequest(fence=fence), timeout=10),
            }
            spans: dict[tuple[str, str], list[float]] = {(n, arm): [] for n in calls for arm in ARMS}
            rates: dict[str, list[float]] = {arm: [] for arm in ARMS[1:]}
            # The first round warms up both ends.
            for number in range(rounds + 1):
                for arm in ARMS:
                    what = arm.removeprefix("beside ")
                    if arm in rates:
                        sender.stdin.write(f"{what} {fence} {rate} {seconds}\n".encode())
                        await sender.stdin.drain()
                    until_s = time.monotonic() + seconds
                    found = await asyncio.gather(*(latency(call, until_s) for call in calls.values()))
                    answered = float(await sender.stdout.readline()) if arm in rates else 0.0
                    if number == 0:
                        continue
                    if arm in rates:
                        rates[arm].append(answered)
                    for name, values in zip(calls, found, strict=True):
                        spans[name, arm] += values
        finally:
            sender.stdin.close()
            await sender.wait()
            for one in opened:
                await one.close()
            await plane.stop()
    for arm, values in rates.items():
        what = arm.removeprefix("beside ")
        print(f"{what} answered: {statistics.median(values):,.0f}/s (asked for {rate:,.0f}/s)")
    for name in calls:
        for label, part in (("median", 0.5), ("p99", 0.99)):
            alone, reports, others = (
                sorted(spans[name, arm])[int(part * (len(spans[name, arm]) - 1))] for arm in ARMS
            )
            print(
                f"{name:<11}{label:<7} alone {alone:7.2f} ms, beside reports {reports:7.2f} ms "
                f"(x {reports / alone:.1f}), beside as many calls elsewhere {others:7.2f} ms "
                f"(x {others / alone:.1f})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flood", metavar="HOME:PORT_BASE", help="send calls as standard input says")
    given = parser.parse_args()
    if given.flood:
        home, _, base = given.flood.rpartition(":")
        asyncio.run(flood(Path(home), int(base)))
    else:
        asyncio.run(measure(given.rate, given.seconds, given.rounds))

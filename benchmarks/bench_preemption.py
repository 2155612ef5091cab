"""T1 to T5 of pre-emptions with a real training job at work on a running plane.

    python -m benchmarks.bench_preemption [--count 20] [--flood-s 3] [--load] [--seed 0] [--folder FOLDER]

Five services as processes of their own, mutual TLS, fsyncs on; a tiny Qwen3 trains with LoRA on the CPU.
Each round waits until the job makes steps, sends one ReportActivity with its send time, and reads what
skills measured: T1 no new start and the fence durable, T2 STOP delivered to all running work, T3 the last
cooperative exit, T4 everything dead, T5 the GPU's memory back. After quiet the same job goes on.
At the end reports are sent as fast as they go while everything is stopped, beside bare GetSkill calls.

With --load every core computes and a disk is written and fsynced all the time by processes of their own,
and twenty runs of skills are at work in experience, lab and trainer (benchmarks/load.py). There are --count
rounds with a training that makes steps and as many with one whose worker is stuck in native code, the
interpreter held, so that it can only be killed. T5 is told by a stand-in of NVML that lists the worker as
long as its process lives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import http.server
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.load import RUNS, Busy, Crowd, Nvml, Workshop
from examples import tiny_model
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as skills_grpc
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from nightshift_kit.processes import Plane
from nightshift_kit.processes.table import SERVICES, ServiceSpec
from nightshift_kit.rpc.channels import channel
from nightshift_kit.rpc.tls import create_credential, ensure_home
from nightshift_kit.settings import PlaneSettings

# Targets of governance.md in ms: p99, and for T5 the median, too.
POINTS = (("t1", 20), ("t2", 50), ("t3", 250), ("t4", 1000), ("t5", 3000))
T5_MEDIAN = 1000
QUIET_S = 1.0


class Platform(http.server.BaseHTTPRequestHandler):
    """A platform that is there."""

    def do_GET(self) -> None:
        body = json.dumps({"safety_level": "youth"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Found:
    """What the pre-emptions of one kind took, in ms, and what had to be killed."""

    spans: dict[str, list[float]] = field(default_factory=lambda: {point: [] for point, _ in POINTS})
    killed: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    details: set[str] = field(default_factory=set)

    def add(self, preemption: types.Preemption) -> str:
        """Takes one; its times in words."""
        self.killed.append(preemption.killed_count)
        self.stopped.append(len(preemption.skill_runs))
        words = []
        for point, _ in POINTS:
            if preemption.HasField(point):  # type: ignore[arg-type]
                span = getattr(preemption, point).ToNanoseconds() / 1e6
                self.spans[point].append(span)
                words.append(f"{point} {span:.1f}")
        if not preemption.HasField("t5"):
            self.details.add(preemption.t5_detail)
        return f"{' '.join(words)} killed {preemption.killed_count} runs {len(preemption.skill_runs)}"


class Bench:
    """One plane, one training, many users."""

    def __init__(self, settings: PlaneSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.channels = [
            channel("skills", settings, "person/bench"),
            channel("skills", settings, "platform/bench", control=True),
            channel("trainer", settings, "person/bench"),
            channel("experience", settings, "platform/bench"),
        ]
        self.skills: Any = skills_grpc.SkillsServiceStub(self.channels[0])
        self.control: Any = control_grpc.ControlServiceStub(self.channels[1])
        self.trainer: Any = trainer_grpc.TrainerServiceStub(self.channels[2])
        self.experience: Any = ExperienceServiceStub(self.channels[3])

    async def close(self) -> None:
        for one in self.channels:
            await one.close()

    async def train(self) -> str:
        """Starts the training under an approval; the run."""
        model, rows = tiny_model.make(self.folder, hidden=64, layers=2, rows=200, seed=0)
        request = pb.RunSkillRequest(name="skills/train_adapter")
        request.parameters.update(
            {
                "base_model": str(model),
                "dataset": str(rows),
                "preset": "tiny",
                "device": "cpu",
                "max_steps": 1_000_000,
            }
        )
        run = await self.skills.RunSkill(request, timeout=120)
        approval = await self.skills.GetApproval(pb.GetApprovalRequest(name=run.approval), timeout=10)
        decision = pb.DecideApprovalRequest(
            name=approval.name,
            decision=pb.DECISION_APPROVE,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
        )
        await self.skills.DecideApproval(decision, timeout=10)
        return str(run.name)

    async def until_it_trains(self, run: str, step: int) -> int:
        """The step once the run works and its job has gone beyond `step`."""
        while True:
            seen = await self.skills.GetSkillRun(pb.GetSkillRunRequest(name=run), timeout=10)
            if seen.end_time.seconds:
                raise SystemExit(f"the training ended: {seen.outcome} {seen.failure.reason}")
            if seen.state == types.SKILL_RUN_STATE_RUNNING and len(seen.results):
                name = str(seen.results[0]["name"])
                job = await self.trainer.GetTrainingJob(
                    trainer_pb.GetTrainingJobRequest(name=name), timeout=10
                )
                if job.step > step:
                    return int(job.step)
            await asyncio.sleep(0.05)

    async def preempt(self) -> types.Preemption:
        """One user; the pre-emption with its last times."""
        request = pb.ReportActivityRequest(kind="request")
        request.send_time.GetCurrentTime()
        heard = await self.control.ReportActivity(request, timeout=5)
        if not heard.preempted:
            raise SystemExit("nothing was pre-empted")
        while True:
            listed = await self.skills.ListPreemptions(pb.ListPreemptionsRequest(page_size=1), timeout=10)
            # Its row is written after the answer.
            found: types.Preemption | None = next(iter(listed.preemptions), None)
            if found is not None and found.name == heard.preemption and found.confirmed:
                return found
            await asyncio.sleep(0.1)

    async def flood(self, seconds: float) -> tuple[float, float]:
        """Reports a second while stopped already, and bare reads a second beside them."""

        async def rate(call: Any, request: Any) -> float:
            done = 0
            end_s = time.monotonic() + seconds

            async def caller() -> None:
                nonlocal done
                while time.monotonic() < end_s:
                    await call(request, timeout=10)
                    done += 1

            await asyncio.gather(*(caller() for _ in range(32)))
            return done / seconds

        await self.preempt_if_needed()
        reports = await rate(self.control.ReportActivity, pb.ReportActivityRequest(kind="request"))
        reads = await rate(self.skills.GetSkill, pb.GetSkillRequest(name="skills/rollback"))
        return reports, reads

    async def preempt_if_needed(self) -> None:
        await self.control.ReportActivity(pb.ReportActivityRequest(kind="request"), timeout=5)

    async def until_stuck(self, mark: Path) -> int:
        """Lets the training's worker get stuck in native code; its process id once it is.

        Its own watchdog, which such a worker does not renew, would end it 2.5 s later.
        """
        told = Path(f"{mark}.pid")
        told.unlink(missing_ok=True)
        mark.touch()
        while not told.exists() or not told.read_text():
            await asyncio.sleep(0.02)
        mark.unlink()
        return int(told.read_text())


@contextlib.asynccontextmanager
async def platform(folder: Path) -> AsyncIterator[str]:
    """A platform with a folder of configs and a port."""
    (folder / "schemas/configs/interception").mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Platform)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.asynccontextmanager
async def running(folder: Path, *, load: bool) -> AsyncIterator[Bench]:
    """A plane at work; under load with a trainer that can get stuck and an NVML that lists its worker."""
    home = folder / "home"
    async with platform(folder) as url:
        settings = PlaneSettings(home=home, platform_root=folder)
        ensure_home(settings)
        create_credential(settings, "person", "bench", "admin")
        create_credential(settings, "platform", "bench")
        (home / "settings.toml").write_text(
            f'[monitor]\nquiet_s = {QUIET_S}\nplatform_url = "{url}"\n'
            f"[skills]\ntick_s = 0.5\nbackoff_first_s = 0.1\nbackoff_max_s = 0.1\n"
            f"max_background_runs = {RUNS if load else 1}\n"
        )
        environment: dict[str, str] = {}
        specs: tuple[ServiceSpec, ...] = SERVICES
        nvml = Nvml(folder, home)
        if load:
            nvml.build()
            environment = {
                "BENCH_NVML": str(nvml.library),
                "FAKE_NVML": str(nvml.state),
                "BENCH_STUCK": str(folder / "stuck"),
            }
            specs = tuple(
                dataclasses.replace(spec, module="benchmarks.stuck.trainer")
                if spec.name == "trainer"
                else spec
                for spec in SERVICES
            )
        plane = Plane(settings, specs, port_base=0, environment=environment)
        try:
            await plane.start()
            bench = Bench(plane.settings, folder)
            try:
                yield bench
            finally:
                await bench.close()
        finally:
            await plane.stop()
            if load:
                nvml.close()


async def rounds(bench: Bench, count: int, ready: Callable[[], Awaitable[object]], wait_s: Any) -> Found:
    """So many pre-emptions, each when everything is ready and a random moment later."""
    found = Found()
    for number in range(count):
        began_s = time.monotonic()
        seen = await ready()
        await asyncio.sleep(wait_s())
        told = found.add(await bench.preempt())
        spent_s = time.monotonic() - began_s
        print(f"{number + 1}/{count} {seen}: {told} ({spent_s:.1f} s)", file=sys.stderr, flush=True)
    return found


async def measure(count: int, flood_s: float, folder: Path) -> None:
    """The table with nothing but a training at work."""
    async with running(folder, load=False) as bench:
        run = await bench.train()
        step = 0

        async def trains() -> str:
            nonlocal step
            step = await bench.until_it_trains(run, step)
            return f"at step {step}"

        report("a training at work", await rounds(bench, count, trains, lambda: 0.0))
        reports, reads = await bench.flood(flood_s)
        print(f"reports while stopped: {reports:,.0f}/s; a bare read beside it: {reads:,.0f}/s")


async def measure_loaded(count: int, seed: int, folder: Path) -> None:
    """The table under load, without and with a worker that is stuck in native code."""
    source = random.Random(seed)
    async with running(folder, load=True) as bench:
        workshop = Workshop(folder / "schemas/configs/interception", seed)
        workshop.edit()
        await workshop.record(bench.experience)
        crowd = Crowd(bench.skills, workshop)
        mark = folder / "stuck"
        step = 0
        run = await bench.train()

        async def steps() -> str:
            nonlocal step
            step = await bench.until_it_trains(run, step)
            return f"at step {step} with {len(await crowd.full())} runs"

        async def sticks() -> str:
            await steps()
            runs = len(await crowd.full())
            return f"worker {await bench.until_stuck(mark)} stuck with {runs} runs"

        with Busy(folder) as busy:
            try:
                for title, ready in (
                    ("a training that makes steps", steps),
                    ("a worker that is stuck", sticks),
                ):
                    busy.begin()
                    found = await rounds(bench, count, ready, lambda: source.uniform(0.0, 0.3))
                    report(f"{title}, {RUNS} runs at work, seed {seed}", found)
                    print(busy.described(), flush=True)
            finally:
                await crowd.close()


def report(title: str, found: Found) -> None:
    """Prints one table."""
    print(f"{title}; {sum(found.stopped) / max(1, len(found.stopped)):.1f} runs stopped each time")
    print(f"{'':4}{'n':>5}{'median':>10}{'p99':>10}{'max':>10}{'target p99':>12}  (ms)")
    for point, target in POINTS:
        values = sorted(found.spans[point])
        if not values:
            print(f"{point:4}{0:>5}  {' '.join(sorted(found.details))}".rstrip())
            continue
        p99 = values[min(len(values) - 1, round(0.99 * (len(values) - 1)))]
        middle = statistics.median(values)
        missed = p99 > target or (point == "t5" and middle > T5_MEDIAN)
        print(
            f"{point:4}{len(values):>5}{middle:>10.2f}{p99:>10.2f}{values[-1]:>10.2f}{target:>12}"
            f"{'  missed' if missed else ''}"
        )
    print(f"killed: {sum(found.killed)} in {sum(map(bool, found.killed))} of {len(found.killed)}", flush=True)


async def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--flood-s", type=float, default=3.0)
    parser.add_argument("--load", action="store_true", help="cores and disk busy, twenty runs at work")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which users come")
    parser.add_argument("--folder", type=Path, help="an empty folder for the plane, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        try:
            if given.load:
                await measure_loaded(given.count, given.seed, folder)
            else:
                await measure(given.count, given.flood_s, folder)
        except grpc.aio.AioRpcError as error:
            raise SystemExit(f"{error.code()}: {error.details()}") from error


if __name__ == "__main__":
    asyncio.run(main())

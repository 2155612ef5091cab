"""T1 to T4 of pre-emptions with a real training job at work on a running plane.

    python benchmarks/bench_preemption.py [--count 20] [--flood-s 3]

Five services as processes of their own, mutual TLS, fsyncs on; a tiny Qwen3 trains with LoRA on the CPU.
Each round waits until the job makes steps, sends one ReportActivity with its send time, and reads what
skills measured: T1 no new start and the fence durable, T2 STOP delivered to all running work, T3 the last
cooperative exit, T4 everything dead. Targets p99: 20, 50, 250 and 1,000 ms. After quiet the same job goes on.
At the end reports are sent as fast as they go while everything is stopped, beside bare GetSkill calls.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from examples import tiny_model
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as skills_grpc
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from nightshift_kit.processes import Plane
from nightshift_kit.rpc.channels import channel
from nightshift_kit.rpc.tls import create_credential, ensure_home
from nightshift_kit.settings import PlaneSettings

POINTS = (("t1", 20), ("t2", 50), ("t3", 250), ("t4", 1000))
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


class Bench:
    """One plane, one training, many users."""

    def __init__(self, settings: PlaneSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.channels = [
            channel("skills", settings, "person/bench"),
            channel("skills", settings, "platform/bench", control=True),
            channel("trainer", settings, "person/bench"),
        ]
        self.skills: Any = skills_grpc.SkillsServiceStub(self.channels[0])
        self.control: Any = control_grpc.ControlServiceStub(self.channels[1])
        self.trainer: Any = trainer_grpc.TrainerServiceStub(self.channels[2])

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
            await asyncio.sleep(0.02)

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


async def measure(count: int, flood_s: float) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Platform)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        settings = PlaneSettings(home=home, platform_root=Path(folder))
        (Path(folder) / "schemas/configs/interception").mkdir(parents=True)
        ensure_home(settings)
        create_credential(settings, "person", "bench", "admin")
        create_credential(settings, "platform", "bench")
        (home / "settings.toml").write_text(
            f'[monitor]\nquiet_s = {QUIET_S}\nplatform_url = "http://127.0.0.1:{server.server_address[1]}"\n'
            f"[skills]\ntick_s = 0.5\nbackoff_first_s = 0.1\nbackoff_max_s = 0.1\n"
        )
        plane = Plane(settings, port_base=0)
        await plane.start()
        bench = Bench(plane.settings, Path(folder))
        try:
            run = await bench.train()
            step = 0
            spans: dict[str, list[float]] = {point: [] for point, _ in POINTS}
            killed = 0
            for number in range(count):
                step = await bench.until_it_trains(run, step)
                preemption = await bench.preempt()
                killed += preemption.killed_count
                for point, _ in POINTS:
                    span_ns = getattr(preemption, point).ToNanoseconds()
                    if span_ns:
                        spans[point].append(span_ns / 1e6)
                print(f"{number + 1}/{count} at step {step}", file=sys.stderr)
            report(spans, killed)
            reports, reads = await bench.flood(flood_s)
            print(f"reports while stopped: {reports:,.0f}/s; a bare read beside it: {reads:,.0f}/s")
        except grpc.aio.AioRpcError as error:
            raise SystemExit(f"{error.code()}: {error.details()}") from error
        finally:
            await bench.close()
            await plane.stop()
            server.shutdown()
            server.server_close()


def report(spans: dict[str, list[float]], killed: int) -> None:
    print(f"{'':4}{'n':>5}{'median':>10}{'p99':>10}{'max':>10}{'target p99':>12}  (ms)")
    for point, target in POINTS:
        values = sorted(spans[point])
        if not values:
            print(f"{point:4}{0:>5}")
            continue
        p99 = values[min(len(values) - 1, round(0.99 * (len(values) - 1)))]
        print(
            f"{point:4}{len(values):>5}{statistics.median(values):>10.2f}{p99:>10.2f}{values[-1]:>10.2f}{target:>12}"
        )
    print(f"killed: {killed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--flood-s", type=float, default=3.0)
    given = parser.parse_args()
    asyncio.run(measure(given.count, given.flood_s))

"""The service as a process of its own: what it never loads, and what its death leaves."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.trainer.v1 import resources_pb2
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as pb_grpc
from nightshift_kit.canonical import digest_message
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import GrantMinter
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to, grant_metadata
from nightshift_kit.rpc.tls import ensure_home, load_credential, load_private_key
from nightshift_kit.settings import PlaneSettings
from tests.trainer.conftest import ENDED, SKILLS
from tests.trainer.training_support import PATIENCE_S, Fixture

_HEAVY = ("libtorch", "bitsandbytes", "transformers", "libarrow")


class Service:
    """`python -m nightshift_trainer` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.settings = PlaneSettings(home=home, port_base=find_free_base())
        ensure_home(self.settings)
        self.process: subprocess.Popen[bytes] | None = None
        self.minter = GrantMinter(load_private_key(self.settings, "grant"), SystemClock())
        self.skills = load_credential(self.settings, "service/skills")

    def start(self) -> None:
        environment = {
            **os.environ,
            "NIGHTSHIFT_HOME": str(self.settings.home),
            "NIGHTSHIFT_PORT_BASE": str(self.settings.port_base),
            "NIGHTSHIFT_TRAINER_KEEP_WARM_S": "600",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nightshift_trainer"], env=environment, stdout=subprocess.DEVNULL
        )

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    @asynccontextmanager
    async def stubs(self) -> AsyncIterator[tuple[Any, Any]]:
        """Stubs of trainer and control port as skills, once they answer."""
        main = channel_to(f"127.0.0.1:{self.settings.port('trainer')}", "trainer", self.skills)
        control = channel_to(f"127.0.0.1:{self.settings.control_port('trainer')}", "trainer", self.skills)
        async with main, control:
            trainer, stop = pb_grpc.TrainerServiceStub(main), control_grpc.StopServiceStub(control)
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    await stop.RenewLease(control_pb.RenewLeaseRequest(fence=1), timeout=5)
                    await trainer.ListAdapters(pb.ListAdaptersRequest(), timeout=5)
                    break
                except grpc.aio.AioRpcError:
                    assert time.monotonic() < deadline
                    assert self.process is not None
                    assert self.process.poll() is None
            yield trainer, stop

    async def act(self, trainer: Any, method: str, request: Any, *, on_purpose: bool = True) -> Any:
        skill, tier = SKILLS[method]
        token = self.minter.mint(
            skill=f"skills/{skill}",
            skill_digest="test",
            skill_run="skillRuns/test",
            tier=tier,
            methods=[f"nightshift.trainer.v1.TrainerService/{method}"],
            fence=1,
            audience="trainer",
            thumbprint=self.skills.thumbprint,
            initiator="person/admin/tester",
            approval="approvals/test",
            arguments_digest=digest_message(request),
            # Without skills nobody renews leases, so a person's own.
            on_purpose=on_purpose,
        )
        return await getattr(trainer, method)(request, timeout=60, metadata=grant_metadata(token))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home")
    service.start()
    yield service
    assert service.process is not None
    service.process.kill()
    service.process.wait()


def mapped(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in _HEAVY if name in maps}


async def planned(trainer: Any, tiny: Fixture, steps: int) -> pb.CreateTrainingJobRequest:
    spec = resources_pb2.TrainingSpec(
        base_model=str(tiny.model),
        dataset=str(tiny.rows),
        preset="tiny",
        device="cpu",
        lora_dropout=0.1,
        max_steps=steps,
    )
    estimate = await trainer.EstimateTraining(pb.EstimateTrainingRequest(spec=spec), timeout=30)
    return pb.CreateTrainingJobRequest(spec=estimate.spec)


async def follow(trainer: Any, name: str, step: int = 0) -> resources_pb2.TrainingJob:
    """The job when it has reached a step, or has ended."""
    call = trainer.WatchTrainingJob(pb.WatchTrainingJobRequest(name=name))
    async for message in call:
        job: resources_pb2.TrainingJob = message.training_job
        if job.state in ENDED or (step and job.step >= step):
            call.cancel()
            return job
    raise AssertionError("the stream ended before the job")


@pytest.mark.slow
async def test_a_killed_service_loses_nothing(service: Service, tiny: Fixture) -> None:
    assert service.process is not None
    async with service.stubs() as (trainer, _):
        request = await planned(trainer, tiny, 80)
        reference = await service.act(trainer, "CreateTrainingJob", request)
        reference = await follow(trainer, reference.name)
        assert reference.state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED, reference.failure
        # Planning, starting, following: the service itself has loaded nothing that trains.
        assert mapped(service.process.pid) == set()
        job = await service.act(trainer, "CreateTrainingJob", request)
        reached = await follow(trainer, job.name, step=5)
        record = service.settings.home / "trainer" / "jobs" / job.name.split("/")[1] / "worker.json"
        worker = json.loads(record.read_text())["pid"]
        assert "libtorch" in mapped(worker)
    service.kill()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker outlived its service"
        time.sleep(0.02)
    service.start()
    async with service.stubs() as (trainer, _):
        paused = await trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=job.name), timeout=10)
        assert paused.state == resources_pb2.TRAINING_JOB_STATE_PAUSED
        assert paused.pause_cause == "restart"
        assert paused.step >= reached.step
        await service.act(trainer, "ResumeTrainingJob", pb.ResumeTrainingJobRequest(name=job.name))
        ended = await follow(trainer, job.name)
        assert ended.state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED, ended.failure
        assert ended.checkpoint_digest == reference.checkpoint_digest


@pytest.mark.slow
async def test_a_stopped_service_keeps_no_worker_beyond_its_lease(service: Service, tiny: Fixture) -> None:
    """SIGSTOP 1.5 s after the last renewal: the worker's own watchdog ends it, 3 s after that renewal."""
    assert service.process is not None
    async with service.stubs() as (trainer, stop):

        async def renew() -> int:
            await stop.RenewLease(
                control_pb.RenewLeaseRequest(fence=1, skill_runs=["skillRuns/test"]), timeout=5
            )
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

        async def keep_renewing() -> None:
            while True:
                await renew()
                await asyncio.sleep(0.5)

        renewing = asyncio.create_task(keep_renewing())
        request = await planned(trainer, tiny, 100_000)
        job = await service.act(trainer, "CreateTrainingJob", request, on_purpose=False)
        await follow(trainer, job.name, step=3)
        record = service.settings.home / "trainer" / "jobs" / job.name.split("/")[1] / "worker.json"
        worker = os.pidfd_open(json.loads(record.read_text())["pid"])
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        renewed_ns = await renew()
        await asyncio.sleep(1.5)
        service.process.send_signal(signal.SIGSTOP)
        try:
            ended, _, _ = await asyncio.to_thread(select.select, [worker], [], [], PATIENCE_S)
            lasted_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - renewed_ns) / 1e9
        finally:
            service.process.send_signal(signal.SIGCONT)
            os.close(worker)
        # From the last beat it would be 3.75 s at least; half a second is for a busy machine to notice.
        assert ended
        assert lasted_s < 3.5
        async with asyncio.timeout(PATIENCE_S):
            paused = resources_pb2.TRAINING_JOB_STATE_PAUSED
            while (await trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=job.name))).state != paused:
                await asyncio.sleep(0.1)


async def test_a_terminated_service_pauses_its_job(service: Service, tiny: Fixture) -> None:
    async with service.stubs() as (trainer, _):
        request = await planned(trainer, tiny, 5000)
        job = await service.act(trainer, "CreateTrainingJob", request)
        await follow(trainer, job.name, step=2)
        assert service.process is not None
        assert mapped(service.process.pid) == set()
    assert service.kill(signal.SIGTERM) == 0
    service.start()
    async with service.stubs() as (trainer, _):
        paused = await trainer.GetTrainingJob(pb.GetTrainingJobRequest(name=job.name), timeout=10)
        assert (paused.state, paused.pause_cause) == (resources_pb2.TRAINING_JOB_STATE_PAUSED, "restart")
        assert paused.pause_count == 1
        await service.act(trainer, "CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))

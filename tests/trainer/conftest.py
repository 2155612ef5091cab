"""A real trainer on a real server, mTLS and store, training a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.trainer.v1 import resources_pb2
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as pb_grpc
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import FenceGate, Tier
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.rpc.stop import StopHub
from nightshift_kit.storage import Database
from nightshift_trainer.__main__ import FULL_NAME, make_gpu_host, make_jobs
from nightshift_trainer.config import TrainerSettings
from nightshift_trainer.gpu import Gpus, NoGpus
from nightshift_trainer.jobs import TrainingJobs
from nightshift_trainer.rpc.servicer import TrainerServicer
from tests.support.servers import Serving, serving
from tests.trainer.training_support import PATIENCE_S, Fixture, make_fixture

SKILLS = {
    "CreateTrainingJob": ("train_adapter", Tier.CONFIRM),
    "PauseTrainingJob": ("pause_training", Tier.MANUAL),
    "ResumeTrainingJob": ("resume_training", Tier.CONFIRM),
    "CancelTrainingJob": ("cancel_training", Tier.MANUAL),
    "UnloadIdleModel": ("cleanup_vram", Tier.CONFIRM),
    "LoadModel": ("preload_models", Tier.CONFIRM),
}

ENDED = (
    resources_pb2.TRAINING_JOB_STATE_SUCCEEDED,
    resources_pb2.TRAINING_JOB_STATE_FAILED,
    resources_pb2.TRAINING_JOB_STATE_CANCELLED,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    """A model of hidden size 32 with 60 rows; read only."""
    return make_fixture(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own(tiny: Fixture, tmp_path: Path) -> Fixture:
    """A copy of `tiny` that a test may damage."""
    shutil.copytree(tiny.model, tmp_path / "own" / "model")
    shutil.copy(tiny.rows, tmp_path / "own" / "rows.jsonl")
    return Fixture(tmp_path / "own" / "model", tmp_path / "own" / "rows.jsonl")


@dataclass
class Trainer:
    """A running trainer, and what skills does for it."""

    running: Serving
    jobs: TrainingJobs
    db: Database
    home: Path
    renewing: bool = True

    @property
    def stub(self) -> Any:
        return self.running.stub(pb_grpc.TrainerServiceStub)

    @property
    def control(self) -> Any:
        return self.running.stub(control_grpc.StopServiceStub, "service/skills", control=True)

    async def act(self, method: str, request: Any, **claims: Any) -> Any:
        skill, tier = SKILLS[method]
        claims.setdefault("fence", self.running.hub.gate.highest if self.running.hub else 1)
        given: dict[str, Any] = {"skill": skill, "tier": tier, "timeout_s": 60, **claims}
        return await self.running.act(pb_grpc.TrainerServiceStub, method, request, **given)

    async def refused(self, method: str, request: Any, **claims: Any) -> RichError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method in SKILLS:
                await self.act(method, request, **claims)
            else:
                await getattr(self.stub, method)(request, timeout=30)
        return decode_error(caught.value)

    async def planned(self, fixture: Fixture, **spec: Any) -> resources_pb2.TrainingSpec:
        """A complete spec, as a plan holds it."""
        asked = resources_pb2.TrainingSpec(
            **{
                "base_model": str(fixture.model),
                "dataset": str(fixture.rows),
                "preset": "tiny",
                "device": "cpu",
                "lora_dropout": 0.1,
                "max_steps": 8,
                **spec,
            }
        )
        estimate = await self.stub.EstimateTraining(pb.EstimateTrainingRequest(spec=asked), timeout=30)
        found: resources_pb2.TrainingSpec = estimate.spec
        return found

    async def create(self, fixture: Fixture, claims: dict[str, Any] | None = None, **spec: Any) -> Any:
        request = pb.CreateTrainingJobRequest(spec=await self.planned(fixture, **spec))
        return await self.act("CreateTrainingJob", request, **(claims or {}))

    async def get(self, name: str) -> resources_pb2.TrainingJob:
        job: resources_pb2.TrainingJob = await self.stub.GetTrainingJob(
            pb.GetTrainingJobRequest(name=name), timeout=10
        )
        return job

    async def watch(
        self,
        name: str,
        until: Callable[[pb.WatchTrainingJobResponse], bool] | None = None,
        after_seq: int = 0,
    ) -> list[pb.WatchTrainingJobResponse]:
        """News until `until`, or to the end of the job."""
        news = []
        async with asyncio.timeout(PATIENCE_S):
            call = self.stub.WatchTrainingJob(pb.WatchTrainingJobRequest(name=name, after_seq=after_seq))
            async for message in call:
                news.append(message)
                if until is not None and until(message):
                    call.cancel()
                    break
        return news

    async def until_step(self, name: str, step: int) -> list[pb.WatchTrainingJobResponse]:
        return await self.watch(name, lambda message: message.training_job.step >= step)

    async def until_state(self, name: str, state: int) -> resources_pb2.TrainingJob:
        news = await self.watch(name, lambda message: message.training_job.state == state)
        job: resources_pb2.TrainingJob = news[-1].training_job
        assert job.state == state, job
        return job

    async def finished(self, name: str) -> resources_pb2.TrainingJob:
        """The job once it has ended."""
        job: resources_pb2.TrainingJob = (await self.watch(name))[-1].training_job
        assert job.state in ENDED, job
        return job

    async def stop(self, fence: int, **fields: Any) -> list[control_pb.StopResponse]:
        """STOP as skills sends it."""
        request = control_pb.StopRequest(fence=fence, cause=fields.pop("cause", "user"), **fields)
        return [event async for event in self.control.Stop(request, timeout=20)]

    async def cancel_open(self) -> None:
        """Cancels whatever job is open."""
        listed = await self.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=10)
        for job in listed.training_jobs:
            if job.state not in ENDED:
                await self.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))

    async def keep_renewing(self) -> None:
        """Renews every lease twice a second, as skills does while all is well."""
        while True:
            if self.renewing:
                hub = self.running.hub
                assert hub is not None
                request = control_pb.RenewLeaseRequest(fence=hub.gate.highest, skill_runs=hub.skill_runs())
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.control.RenewLease(request, timeout=5)
            await asyncio.sleep(0.5)


@asynccontextmanager
async def open_trainer(home: Path, gpus: Gpus | None = None, **settings: Any) -> AsyncIterator[Trainer]:
    """The trainer's objects as `__main__` wires them, on ephemeral ports."""
    home.mkdir(parents=True, exist_ok=True)
    chosen = TrainerSettings(**{"keep_alive_s": 0.5, "keep_warm_s": 600.0, **settings})
    clock = SystemClock()
    with Database(f"sqlite:///{home}/trainer.db", migrations="nightshift_trainer", name="trainer") as db:
        db.migrate()
        hub = StopHub(FenceGate(db, clock), clock)
        jobs = make_jobs(chosen, home, db, hub, clock, gpus or NoGpus())
        gpu_host = make_gpu_host(chosen, db, clock, gpus or NoGpus())
        await jobs.recover()
        try:
            services = [
                (
                    pb_grpc.add_TrainerServiceServicer_to_server,
                    TrainerServicer(jobs, gpu_host),
                    FULL_NAME,
                ),
            ]
            async with serving("trainer", services, home=home, db=db, hub=hub) as running:
                trainer = Trainer(running, jobs, db, home)
                renewing = asyncio.create_task(trainer.keep_renewing())
                try:
                    yield trainer
                finally:
                    renewing.cancel()
                    await asyncio.gather(renewing, return_exceptions=True)
        finally:
            await jobs.close()
            await gpu_host.close()

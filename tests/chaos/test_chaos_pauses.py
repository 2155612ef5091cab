"""SIGSTOP of skills, of the trainer, and of both: a real training is gone 3 s after its last renewal.

A stopped process closes no connection and sends nothing, so neither STOP nor a dead socket tells anybody.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from examples import tiny_model
from nightshift.trainer.v1 import resources_pb2 as types
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from tests.chaos.commanding import Person
from tests.chaos.flights import PATIENCE_S, Flights
from tests.chaos.journal import Journal
from tests.support.plane import RealPlane, real_plane

# governance.md, and half a second in which a busy machine may notice.
_PROMISE_S = 3.0 + 0.5


class Training:
    """The one training of a plane."""

    def __init__(self, plane: RealPlane) -> None:
        self._plane = plane
        self._stub = plane.stub(TrainerServiceStub, "trainer")
        self._step = 0

    async def goes_on(self) -> types.TrainingJob:
        """The job once it has made further steps."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                listed = await self._stub.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=30)
                for job in listed.training_jobs:
                    if job.step > self._step and job.state == types.TRAINING_JOB_STATE_RUNNING:
                        self._step = job.step
                        return job  # type: ignore[no-any-return]
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[tuple[types.TrainingJob, int]]:
        """The job at work, and a handle to its process, readable when that has exited."""
        while True:
            job = await self.goes_on()
            record = self._plane.home / "trainer" / "jobs" / job.name.split("/")[1] / "worker.json"
            try:
                handle = os.pidfd_open(json.loads(record.read_text())["pid"])
            except (FileNotFoundError, ProcessLookupError):
                # On a busy machine a lease may have lapsed for want of time; it goes on by itself.
                continue
            break
        try:
            yield job, handle
        finally:
            os.close(handle)

    async def event(self, name: str) -> str:
        """Why the job is paused, once it is, or was."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self._stub.GetTrainingJob(pb.GetTrainingJobRequest(name=name), timeout=30)
                if job.state == types.TRAINING_JOB_STATE_PAUSED:
                    return str(job.pause_cause)
                await asyncio.sleep(0.05)


async def lasted_s(worker: int, since_s: float) -> float:
    """Seconds from a moment of the boot clock to the worker's exit."""
    ended, _, _ = await asyncio.to_thread(select.select, [worker], [], [], PATIENCE_S)
    assert ended
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_s


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_training_outlives_no_lease_whoever_is_stopped(tmp_path: Path) -> None:
    model, rows = tiny_model.make(tmp_path / "tiny", hidden=32, layers=2, rows=60, seed=0)
    settings = {"NIGHTSHIFT_TRAINER_KEEP_WARM_S": "600"}
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        async with real_plane(tmp_path / "plane", settings) as plane:
            person = Person(plane, Flights(), journal, random.Random(1))
            parameters = {
                "base_model": str(model),
                "dataset": str(rows),
                "preset": "tiny",
                "device": "cpu",
                "max_steps": 1_000_000,
            }
            plan = await person.plan("train_adapter", **parameters)
            assert plan is not None
            await person.run("train_adapter", plan_digest=plan.digest, **parameters)
            training = Training(plane)
            for stopped in (("skills",), ("trainer",), ("skills", "trainer")):
                async with training.worker() as (job, worker):
                    # No renewal leaves skills later than this; the trainer may have had its last one before.
                    since_s = time.clock_gettime(time.CLOCK_BOOTTIME)
                    for service in stopped:
                        os.kill(plane.pid(service), signal.SIGSTOP)
                        if service != stopped[-1]:
                            # Just before the lease would have the supervisor ask its worker to leave.
                            await asyncio.sleep(0.9)
                    try:
                        assert await lasted_s(worker, since_s) < _PROMISE_S, stopped
                        if stopped == ("skills",):
                            assert await training.event(job.name) == "lease"
                    finally:
                        for service in stopped:
                            os.kill(plane.pid(service), signal.SIGCONT)
            await training.goes_on()

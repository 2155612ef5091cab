"""A training over the wire, from estimate to adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nightshift.trainer.v1 import resources_pb2
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift_trainer.weights import weights_digest
from tests.trainer.conftest import Trainer, open_trainer
from tests.trainer.training_support import Fixture

# One trainer for the module: its warm parent's imports take longer than all the training here.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trainer]:
    async with open_trainer(tmp_path_factory.mktemp("home")) as opened:
        yield opened


async def test_a_training_from_plan_to_adapter(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, adapter_id="first-light")
    assert job.state == resources_pb2.TRAINING_JOB_STATE_STARTING
    news = await trainer.watch(job.name)
    ended = news[-1].training_job
    assert ended.state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED
    assert (ended.step, ended.total_steps, ended.adapter) == (8, 8, "adapters/first-light")
    assert ended.HasField("end_time")
    points = [point for message in news for point in message.points]
    assert [point.seq for point in points] == list(range(1, len(points) + 1))
    steps = [point for point in points if point.kind == resources_pb2.PROGRESS_KIND_STEP]
    assert [point.step for point in steps] == list(range(1, 9))
    assert all(point.loss > 0 and point.gradient_norm > 0 and point.memory_bytes > 0 for point in steps)
    assert {point.phase for point in points} >= {"loading", "warming", "training", "saving", "ended"}
    adapter = await trainer.stub.GetAdapter(pb.GetAdapterRequest(name=ended.adapter), timeout=5)
    folder = trainer.home / adapter.path
    assert adapter.weights_digest == weights_digest(folder / "adapter_model.safetensors")
    assert adapter.training_job == job.name
    assert adapter.base_model_digest == job.spec.base_model_digest
    assert adapter.code_versions["torch"]
    assert not (trainer.home / "trainer" / "jobs" / job.name.split("/")[1] / "checkpoints").exists()

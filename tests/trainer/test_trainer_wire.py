"""A training over the wire, from estimate to adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.trainer.v1 import resources_pb2
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift_kit.grants import Tier
from nightshift_trainer.weights import weights_digest
from tests.trainer.conftest import Trainer, open_trainer
from tests.trainer.training_support import Fixture

# One trainer for the module: its warm parent's imports take longer than all the training here.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trainer]:
    async with open_trainer(tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def nothing_left_open(trainer: Trainer) -> AsyncIterator[None]:
    """One test's job is not the next one's GPU_BUSY."""
    yield
    await trainer.cancel_open()


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


async def test_a_user_stops_it_and_it_ends_with_the_weights_of_an_uninterrupted_one(
    trainer: Trainer, tiny: Fixture
) -> None:
    reference = await trainer.finished((await trainer.create(tiny, max_steps=60)).name)
    job = await trainer.create(tiny, max_steps=60)
    fence = trainer.running.hub.gate.highest if trainer.running.hub else 0
    for stopped_after in (2, 15, 30):
        await trainer.until_step(job.name, stopped_after)
        fence += 1
        events = await trainer.stop(fence)
        phases = [event.phase for event in events]
        assert phases[0] == control_pb.STOP_PHASE_DELIVERED
        # No GPU has a part in this, and where none is at all that is told.
        assert phases[-2:] == [control_pb.STOP_PHASE_DONE, control_pb.STOP_PHASE_RELEASED]
        assert events[-1].detail
        exited = [event for event in events if event.phase == control_pb.STOP_PHASE_EXITED]
        assert [event.work for event in exited] == [f"{job.name} worker"]
        paused = await trainer.until_state(job.name, resources_pb2.TRAINING_JOB_STATE_PAUSED)
        assert paused.pause_cause == "user"
        assert paused.step >= stopped_after
        assert len(paused.checkpoint_digest) == 64
        # The right that it was started with is void; a new one is needed.
        resume = pb.ResumeTrainingJobRequest(name=job.name)
        assert (await trainer.refused("ResumeTrainingJob", resume, fence=fence - 1)).reason == "PREEMPTED"
        resumed = await trainer.act("ResumeTrainingJob", resume)
        assert resumed.pause_cause == ""
    ended = await trainer.finished(job.name)
    assert ended.state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED, ended.failure
    assert ended.pause_count == 3
    # Digest over adapter, optimiser, random numbers and place in the data; then the weights themselves.
    assert ended.checkpoint_digest == reference.checkpoint_digest
    adapters = [
        await trainer.stub.GetAdapter(pb.GetAdapterRequest(name=name), timeout=5)
        for name in (reference.adapter, ended.adapter)
    ]
    assert adapters[0].weights_digest == adapters[1].weights_digest
    told = [
        point.event
        for message in await trainer.watch(job.name)
        for point in message.points
        if point.kind == resources_pb2.PROGRESS_KIND_EVENT
    ]
    assert told.count("resumed") == 3
    assert told.count("preempted") == 3
    assert told[-1] == "ended"


async def test_a_person_pauses_resumes_and_cancels(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, max_steps=500)
    await trainer.until_step(job.name, 2)
    pause = pb.PauseTrainingJobRequest(name=job.name)
    method = "nightshift.trainer.v1.TrainerService/PauseTrainingJob"
    token = trainer.running.mint(method, pause, skill="pause_training", tier=Tier.MANUAL)
    paused = await trainer.act("PauseTrainingJob", pause, token=token)
    assert (paused.state, paused.pause_cause) == (resources_pb2.TRAINING_JOB_STATE_PAUSED, "person")
    assert paused.checkpoint_digest
    # A retry after a lost answer changes nothing and gets the same one.
    assert await trainer.act("PauseTrainingJob", pause, token=token) == paused
    assert (await trainer.refused("PauseTrainingJob", pause)).reason == "JOB_STATE"
    assert (await trainer.refused("CreateTrainingJob", await _creation(trainer, tiny))).reason == "GPU_BUSY"
    await trainer.act("ResumeTrainingJob", pb.ResumeTrainingJobRequest(name=job.name))
    await trainer.until_step(job.name, paused.step + 1)
    cancel = pb.CancelTrainingJobRequest(name=job.name)
    cancelled = await trainer.act("CancelTrainingJob", cancel)
    assert cancelled.state == resources_pb2.TRAINING_JOB_STATE_CANCELLED
    folder = trainer.home / "trainer" / "jobs" / job.name.split("/")[1]
    assert not (folder / "checkpoints").exists()
    assert (await trainer.refused("CancelTrainingJob", cancel)).reason == "JOB_STATE"
    refused = await trainer.refused("ResumeTrainingJob", pb.ResumeTrainingJobRequest(name=job.name))
    assert refused.reason == "JOB_STATE"


async def test_a_paused_job_can_be_cancelled(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, max_steps=500)
    await trainer.act("PauseTrainingJob", pb.PauseTrainingJobRequest(name=job.name))
    cancelled = await trainer.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))
    assert cancelled.state == resources_pb2.TRAINING_JOB_STATE_CANCELLED
    assert (await trainer.watch(job.name))[-1].training_job.state == cancelled.state


async def test_creating_again_with_the_same_grant_creates_nothing(trainer: Trainer, tiny: Fixture) -> None:
    request = await _creation(trainer, tiny)
    method = "nightshift.trainer.v1.TrainerService/CreateTrainingJob"
    fence = trainer.running.hub.gate.highest if trainer.running.hub else 1
    token = trainer.running.mint(method, request, skill="train_adapter", fence=fence)
    outcomes = await asyncio.gather(
        *(trainer.act("CreateTrainingJob", request, token=token) for _ in range(2)), return_exceptions=True
    )
    answers = [answer for answer in outcomes if not isinstance(answer, BaseException)]
    assert answers, outcomes
    again = await trainer.act("CreateTrainingJob", request, token=token)
    assert all(answer == again for answer in answers)
    assert (await trainer.finished(again.name)).state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED
    assert await trainer.act("CreateTrainingJob", request, token=token) == again


async def test_a_lost_lease_stops_the_worker(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, max_steps=100_000)
    await trainer.until_step(job.name, 1)
    trainer.renewing = False
    try:
        paused = await trainer.until_state(job.name, resources_pb2.TRAINING_JOB_STATE_PAUSED)
    finally:
        trainer.renewing = True
    assert paused.pause_cause == "lease"
    await trainer.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))


async def test_a_job_started_on_purpose_is_left_alone(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, claims={"on_purpose": True}, max_steps=120)
    assert job.on_purpose
    await trainer.until_step(job.name, 1)
    fence = trainer.running.hub.gate.highest + 1 if trainer.running.hub else 0
    events = await trainer.stop(fence)
    assert events[0].running_count == 0
    assert (await trainer.finished(job.name)).state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED
    # The lock stops it too.
    job = await trainer.create(tiny, claims={"on_purpose": True}, max_steps=5000)
    await trainer.until_step(job.name, 1)
    await trainer.stop(fence + 1, cause="lock", on_purpose_too=True)
    paused = await trainer.until_state(job.name, resources_pb2.TRAINING_JOB_STATE_PAUSED)
    assert paused.pause_cause == "person"
    await trainer.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))


async def test_watching_goes_on_from_where_it_was(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny)
    whole = [point for message in await trainer.watch(job.name) for point in message.points]
    rest = [point for message in await trainer.watch(job.name, after_seq=5) for point in message.points]
    assert rest == whole[5:]
    nothing = await trainer.watch(job.name, after_seq=whole[-1].seq)
    assert [list(message.points) for message in nothing] == [[]]
    assert nothing[0].training_job.state == resources_pb2.TRAINING_JOB_STATE_SUCCEEDED


async def test_a_paused_jobs_watchers_hear_that_the_stream_lives(trainer: Trainer, tiny: Fixture) -> None:
    job = await trainer.create(tiny, max_steps=500)
    await trainer.until_step(job.name, 1)
    await trainer.act("PauseTrainingJob", pb.PauseTrainingJobRequest(name=job.name))
    keep_alives: list[Any] = []

    def enough(message: pb.WatchTrainingJobResponse) -> bool:
        if not message.points:
            keep_alives.append(message)
        return len(keep_alives) >= 3

    await trainer.watch(job.name, enough)
    assert keep_alives[-1].training_job.state == resources_pb2.TRAINING_JOB_STATE_PAUSED
    await trainer.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))


async def test_lists_come_in_pages_newest_first(trainer: Trainer) -> None:
    names: list[str] = []
    token = ""
    while True:
        page = await trainer.stub.ListTrainingJobs(
            pb.ListTrainingJobsRequest(page_size=2, page_token=token), timeout=5
        )
        assert len(page.training_jobs) <= 2
        names += [job.name for job in page.training_jobs]
        token = page.next_page_token
        if not token:
            break
    whole = await trainer.stub.ListTrainingJobs(pb.ListTrainingJobsRequest(), timeout=5)
    assert names == [job.name for job in whole.training_jobs]
    assert names == sorted(names, reverse=True)
    assert len(names) >= 5
    first = await trainer.stub.ListAdapters(pb.ListAdaptersRequest(page_size=1), timeout=5)
    second = await trainer.stub.ListAdapters(
        pb.ListAdaptersRequest(page_size=1, page_token=first.next_page_token), timeout=5
    )
    assert first.adapters[0].create_time.ToNanoseconds() > second.adapters[0].create_time.ToNanoseconds()


async def test_every_act_is_in_the_outbox(trainer: Trainer) -> None:
    stub = trainer.running.stub(control_grpc.OutboxServiceStub, "service/skills", control=True)
    listed = await stub.ListOutboxEvents(control_pb.ListOutboxEventsRequest(), timeout=5)
    kinds = {event.kind for event in listed.outbox_events}
    assert kinds == {
        "training.created",
        "training.paused",
        "training.resumed",
        "training.cancelled",
        "training.ended",
    }
    # Grants' initiators for what people caused, the service itself for what followed.
    actors = {event.kind: event.actor for event in listed.outbox_events}
    assert actors["training.created"] == "person/admin/tester"
    assert actors["training.ended"] == "service/trainer"


async def test_estimates_learn_from_finished_jobs(trainer: Trainer, tiny: Fixture) -> None:
    spec = await trainer.planned(tiny)
    estimate = await trainer.stub.EstimateTraining(pb.EstimateTrainingRequest(spec=spec), timeout=30)
    assert estimate.spec == spec
    assert estimate.total_steps == 8
    assert estimate.row_count == 60
    assert estimate.fits
    assert estimate.memory_bytes == sum(estimate.memory_parts_bytes.values())
    assert set(estimate.memory_parts_bytes) == {
        "weights",
        "adapter",
        "optimizer",
        "activations",
        "logits",
        "context",
    }
    assert estimate.duration.ToNanoseconds() > 0
    assert "measured peak" in estimate.detail


async def _creation(trainer: Trainer, fixture: Fixture) -> pb.CreateTrainingJobRequest:
    return pb.CreateTrainingJobRequest(spec=await trainer.planned(fixture))

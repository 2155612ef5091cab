"""Forgetting a device: nothing of it is left in store, counters, index and files, and nothing comes back."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import forgetting_pb2, sessions_pb2
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_experience.store import forgetting
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.channels import decode_error
from tests.adversary.test_adversary_late_block import embed, files_with
from tests.experience.experience_support import PARENT, Experience, experience, simulate

BROWSER = "6f1c1c5e-3f5b-4a57-9a0e-0b8d1d5f7a11"
OTHER = "7a2d2d6f-4a6c-4b68-8b1f-1c9e2e6a8b22"
NAMES = [f"{BROWSER}_2026-05-04", f"{BROWSER}_2026-05-05", f"{BROWSER}_2026-05-04_cmp1"]
WORDS = ("Quallenkutsche", "Schneckenpost", "Muschelfunk")


def told(number: int, device: str, prompt: str) -> resources.Run:
    run = resources.Run(
        name=f"{PARENT}/runs/run_{1_777_888_800_000 + number * 60_000}_{number:06x}",
        prompt=prompt,
        transformed_prompt=f"{prompt} im Nebel",
        device=device,
        interception_config="farbhunger",
        output_config="img_standard",
        outcome=resources.RUN_OUTCOME_SUCCEEDED,
        seed=number,
    )
    run.start_time.FromMilliseconds(1_777_888_800_000 + number * 60_000)
    return run


async def record(service: Experience, run: resources.Run) -> None:
    platform = service.serving.stub(ExperienceServiceStub, "platform/default")
    await platform.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)


async def act(service: Experience, method: str, request: Any, skill: str, tier: Tier) -> Any:
    return await service.serving.act(
        ExperienceServiceStub, method, request, skill=skill, tier=tier, timeout_s=120
    )


async def forget(service: Experience, device: str) -> forgetting_pb2.ForgetDeviceResponse:
    request = forgetting_pb2.ForgetDeviceRequest(parent=PARENT, device=device)
    answer: forgetting_pb2.ForgetDeviceResponse = await act(
        service, "ForgetDevice", request, "forget_device", Tier.MANUAL
    )
    return answer


async def summarize(service: Experience) -> None:
    request = sessions_pb2.SummarizeSessionsRequest(parent=PARENT)
    await act(service, "SummarizeSessions", request, "summarize_sessions", Tier.AUTO)


async def footprint(service: Experience, device: str) -> forgetting_pb2.DeviceFootprint:
    request = forgetting_pb2.GetDeviceFootprintRequest(parent=PARENT, device=device)
    answer: forgetting_pb2.DeviceFootprint = await service.stub.GetDeviceFootprint(request, timeout=10)
    return answer


async def tell_everything(service: Experience) -> None:
    for number, (device, word) in enumerate(zip(NAMES, WORDS, strict=True)):
        await record(service, told(number, device, f"eine {word}"))
    await record(service, told(8, f"{OTHER}_2026-05-04", "ein Leuchtturm"))
    feedback = resources.Feedback(
        run=told(0, "", "").name, kind=resources.FEEDBACK_KIND_FAVORITE, feedback_time=Timestamp(seconds=1)
    )
    await service.serving.stub(ExperienceServiceStub, "platform/default").RecordFeedback(
        pb.RecordFeedbackRequest(parent=PARENT, feedback=feedback), timeout=10
    )
    await summarize(service)


async def test_a_devices_runs_leave_counters_and_sessions_and_stay_away(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        await tell_everything(service)
        known = await footprint(service, NAMES[1])
        assert (known.run_count, known.session_count) == (3, 1)
        assert known.first_time.ToMilliseconds() == 1_777_888_800_000
        # Any of its names means all of them.
        gone = await forget(service, NAMES[2])
        assert (gone.run_count, gone.session_count) == (3, 1)
        assert (await footprint(service, NAMES[0])).run_count == 0
        assert set(await service.runs()) == {told(8, "", "").name.rpartition("/")[2]}
        performance = (await service.performance())["farbhunger"]
        assert (performance.production_runs, performance.favorite_rate.count) == (1, 0)
        # The counters are what a count from scratch gives.
        assert (await service.aggregate(full=True)).corrected_count == 0
        sessions = await service.stub.ListSessions(
            sessions_pb2.ListSessionsRequest(parent=PARENT), timeout=10
        )
        assert [list(one.session_keys) for one in sessions.sessions] == [[f"{OTHER}_2026-05-04"]]
        days = await service.stub.ListDailySummaries(
            sessions_pb2.ListDailySummariesRequest(parent=PARENT), timeout=10
        )
        assert [(day.session_count, day.run_count) for day in days.daily_summaries] == [(1, 1)]
        # What it did until now is refused, under whatever name; what it does from now on is new.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await record(service, told(2, NAMES[1], "wieder da"))
        assert decode_error(caught.value).reason == "DEVICE_FORGOTTEN"
        fresh = told(4, f"{BROWSER}_2030-01-01", "neu")
        fresh.start_time.GetCurrentTime()
        fresh.start_time.seconds += 3600
        await record(service, fresh)
        stream = service.serving.stub(ExperienceServiceStub, "platform/default").RecordRuns
        batch = pb.RecordRunsRequest(parent=PARENT, runs=[told(2, NAMES[0], "a"), told(9, "dev_x", "b")])
        answer = await stream(iter([batch]), timeout=10)
        assert answer.created_count == 1
        assert [(one.index, one.reason) for one in answer.rejected] == [(0, "DEVICE_FORGOTTEN")]
        # Its audit event counts, and names nobody.
        text = json.dumps([event.canonical for event in await _events(service)])
        assert "device.forgotten" in text
        assert BROWSER not in text


async def test_a_session_that_is_being_made_does_not_come_back(tmp_path: Path) -> None:
    """The device is forgotten after a pass has read its runs and before it stores what they were."""
    async with experience(tmp_path / "home") as service:
        await record(service, told(0, NAMES[0], "eine Quallenkutsche"))
        sessions, gone = service.core.sessions, threading.Event()
        understood, loop = sessions._understood, asyncio.get_running_loop()

        def slowly(*arguments: Any) -> Any:
            made = understood(*arguments)
            asyncio.run_coroutine_threadsafe(forget(service, NAMES[0]), loop).result(60)
            gone.set()
            return made

        sessions._understood = slowly  # type: ignore[method-assign, assignment]
        await summarize(service)
        assert gone.is_set()
        assert (await footprint(service, NAMES[0])).session_count == 0
        listed = await service.stub.ListSessions(sessions_pb2.ListSessionsRequest(parent=PARENT), timeout=10)
        assert not listed.sessions


async def _events(service: Experience) -> Any:
    from nightshift_kit.audit import Outbox

    return await service.db.read(Outbox("experience").events, 0, 1000)


async def test_exports_of_a_forgotten_device_are_counted_and_not_taken(tmp_path: Path) -> None:
    truth = simulate(tmp_path / "workshop", "--runs", "120", "--seed", "5", "--layout", "flat-fast")
    async with experience(tmp_path / "home") as service:
        await service.import_all(tmp_path / "workshop")
        chosen = next(one for one in truth["sessions"] if one["importable_runs"] > 5)["keys"][0]
        mine = {run["run_id"] for run in truth["runs"] if chosen[:30] in str(run["session_key"])}
        before = await service.runs()
        gone = await forget(service, chosen)
        assert gone.run_count == len(mine & set(before))
        job = await service.import_all(tmp_path / "workshop")
        assert {count.key: count.count for count in job.skipped_reasons}["DEVICE_FORGOTTEN"] == gone.run_count
        assert set(await service.runs()) == set(before) - mine
        assert (await service.aggregate(full=True)).corrected_count == 0
        assert (await footprint(service, chosen)).run_count == 0
    shutil.rmtree(tmp_path / "workshop")
    assert files_with(tmp_path / "home", (chosen[:30],)) == []


async def test_a_device_must_be_named(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        for device, reason in (("", "FIELD_REQUIRED"), ("\0", "ID_INVALID"), ("a/b", "ID_INVALID")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await footprint(service, device)
            assert decode_error(caught.value).reason == reason


async def test_only_a_grant_of_its_skill_forgets(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        await record(service, told(0, NAMES[0], "eine Quallenkutsche"))
        request = forgetting_pb2.ForgetDeviceRequest(parent=PARENT, device=NAMES[0])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.ForgetDevice(request, timeout=5)
        assert decode_error(caught.value).reason == "GRANT_MISSING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await act(service, "ForgetDevice", request, "aggregate_experience", Tier.AUTO)
        assert decode_error(caught.value).code.name == "PERMISSION_DENIED"
        assert len(await service.runs()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("crash", [False, True], ids=["at once", "after a crash"])
async def test_no_file_holds_what_a_forgotten_device_wrote(tmp_path: Path, crash: bool) -> None:
    home = tmp_path / "home"
    async with experience(home) as service:
        await tell_everything(service)
        await embed(service)
        assert files_with(home, WORDS), "the test would find nothing anyway"
        if crash:
            # Only the transaction happened.
            async def nothing() -> None:
                return None

            service.forgetter.finish = nothing  # type: ignore[method-assign]
        await forget(service, NAMES[0])
        waiting = await service.db.read(forgetting.index_removals)
        assert bool(waiting) is crash
    if crash:
        async with experience(home) as service:
            await service.forgetter.recover()
            assert not await service.db.read(forgetting.index_removals)
    async with experience(home) as service:
        # By words: the vectors' process need not start for that.
        query = pb.SearchRunsRequest(
            parent=PARENT, query="Quallenkutsche Leuchtturm", mode=pb.SEARCH_MODE_TEXT
        )
        hits = await service.stub.SearchRuns(query, timeout=60)
        assert {hit.run.prompt for hit in hits.hits} == {"ein Leuchtturm"}
    assert files_with(home, (*WORDS, BROWSER)) == []
    assert files_with(home, ("Leuchtturm",)), "the others' words are where they were"

"""Runs, feedback, pages, statistics and Aggregate over the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.rpc.statuses import decode_error
from tests.experience.experience_support import PARENT, PLATFORM, Experience, experience, simulate

BROWSER = "11111111-2222-4333-8444-555555555555_2026-02-02"
MS = 1_770_000_000_000


def run_of(number: int, **fields: Any) -> resources.Run:
    base: dict[str, Any] = {
        "name": f"{PARENT}/runs/run_{MS + number * 1000}_{number:06x}",
        "outcome": resources.RUN_OUTCOME_SUCCEEDED,
        "device": BROWSER,
        "prompt": "ein Fuchs unter dem Küchentisch",
        "interception_config": "alpha",
        "output_config": "image_a",
        "seed": number,
        "media_types": ["image"],
        "models": {"stage2_interception": "small"},
    }
    return resources.Run(**(base | fields))


async def record(service: Experience, run: resources.Run) -> Any:
    return await service.stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)


async def feed_back(service: Experience, number: int, kind: int, seconds: int = 0, **fields: Any) -> Any:
    feedback = resources.Feedback(
        run=run_of(number).name,
        kind=resources.FeedbackKind.ValueType(kind),
        feedback_time=Timestamp(seconds=MS // 1000 + seconds) if seconds else None,
        **fields,
    )
    request = pb.RecordFeedbackRequest(parent=PARENT, feedback=feedback)
    return await service.stub.RecordFeedback(request, timeout=10)


async def test_a_recorded_run_is_there_with_what_follows_from_it(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        first = await record(service, run_of(1, seed=5))
        again = await record(service, run_of(2, seed=6))
        same_seed = await record(service, run_of(3, seed=6))
        other_device = await record(service, run_of(4, seed=7, device="dev_0123456789ab"))
        assert (first.production, first.session_key, first.language, first.source) == (
            True,
            BROWSER,
            "de",
            "live",
        )
        assert first.start_time.ToMilliseconds() == MS + 1000
        assert again.regeneration_of == first.name
        assert (same_seed.regeneration_of, other_device.regeneration_of) == ("", "")
        assert not other_device.production
        assert await service.stub.GetRun(pb.GetRunRequest(name=again.name), timeout=10) == again
        item = (await service.performance())["alpha"]
        assert (item.total_runs, item.production_runs, item.groups, item.regenerations) == (4, 3, 1, 1)
        # A late run in between becomes what the later one regenerates.
        await record(service, run_of(0, seed=6))
        runs = await service.runs()
        marks = {run.name: run.regeneration_of for run in runs.values()}
        assert marks[first.name] == run_of(0).name
        assert (marks[again.name], marks[same_seed.name]) == ("", "")


async def test_acknowledged_runs_survive_and_others_may_read_at_once(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        await asyncio.gather(*(record(service, run_of(number)) for number in range(200)))
        assert len(await service.runs()) == 200
    async with experience(tmp_path / "home") as service:
        assert len(await service.runs()) == 200


async def test_a_live_run_and_its_export_are_one(tmp_path: Path) -> None:
    run_id = run_of(1).name.rpartition("/")[2]
    folder = tmp_path / "exports" / "json" / "2026-02-02" / BROWSER / run_id
    (folder / "final").mkdir(parents=True)
    entities = [
        {"sequence": 1, "type": "input", "filename": "01_input.txt"},
        {"sequence": 2, "type": "interception", "filename": "02_interception.txt"},
        {
            "sequence": 3,
            "type": "output_image",
            "filename": "03.png",
            "metadata": {"config": "image_a", "seed": 9},
        },
    ]
    (folder / "metadata.json").write_text(
        json.dumps({"run_id": run_id, "config_name": "alpha", "safety_level": "youth", "entities": entities})
    )
    (folder / "final" / "01_input.txt").write_text("ein Fuchs")
    (folder / "final" / "02_interception.txt").write_text("Ein Feld aus reifem Gelb: ein Fuchs")
    async with experience(tmp_path / "home") as service:
        live = run_of(
            1, outcome=resources.RUN_OUTCOME_INCOMPLETE, cost_usd=0.25, prompt="ein F", output_config=""
        )
        live.ClearField("seed")
        await record(service, live)
        await feed_back(service, 1, resources.FEEDBACK_KIND_FAVORITE)
        job = await service.import_all(tmp_path)
        assert (job.created_count, job.updated_count) == (0, 1)
        (run,) = (await service.runs()).values()
        assert (run.outcome, run.prompt, run.seed) == (resources.RUN_OUTCOME_SUCCEEDED, "ein Fuchs", 9)
        assert run.transformed_prompt.startswith("Ein Feld")
        assert (run.output_config, run.safety_level, run.cost_usd) == ("image_a", "youth", 0.25)
        assert run.favorite
        # The same live record once more is no news; the import after it neither.
        await record(service, live)
        assert (await service.import_all(tmp_path)).unchanged_count == 1
        assert list((await service.runs()).values()) == [run]
        item = (await service.performance())["alpha"]
        assert (item.total_runs, item.succeeded_runs, item.incomplete_runs) == (1, 1, 0)


async def test_a_name_told_live_goes_when_the_export_says_private(tmp_path: Path) -> None:
    run_id = run_of(1).name.rpartition("/")[2]
    folder = tmp_path / "exports" / "json" / "2026-02-02" / BROWSER / run_id
    (folder / "final").mkdir(parents=True)
    entities = [
        {"sequence": 1, "type": "error", "filename": "e.json", "metadata": {"error_type": "safety_blocked"}}
    ]
    (folder / "metadata.json").write_text(json.dumps({"run_id": run_id, "entities": entities}))
    details = {"check": "dsgvo", "input_text": "Wilmaline Quastenbeck"}
    (folder / "final" / "e.json").write_text(json.dumps({"error_type": "safety_blocked", "details": details}))
    home = tmp_path / "home"
    async with experience(home) as service:
        blocked = await record(
            service, run_of(2, prompt="Wilmaline tanzt", outcome=resources.RUN_OUTCOME_BLOCKED)
        )
        assert (blocked.prompt, list(blocked.flags)) == ("", ["privacy_withheld"])
        told = await record(service, run_of(1, prompt="Wilmaline Quastenbeck"))
        assert told.prompt
        await service.import_all(tmp_path)
        run = await service.stub.GetRun(pb.GetRunRequest(name=told.name), timeout=10)
        assert (run.prompt, run.transformed_prompt) == ("", "")
        assert "privacy_withheld" in run.flags
    # Closing writes the log back into the database; what was overwritten is overwritten there.
    data = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"Quastenbeck" not in data
    assert b"Wilmaline" not in data


async def test_feedback_counts_once_in_the_order_of_its_times(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        assert not (await feed_back(service, 1, resources.FEEDBACK_KIND_FAVORITE, 10)).run_known
        assert (await record(service, run_of(1))).favorite
        assert (await feed_back(service, 1, resources.FEEDBACK_KIND_FAVORITE, 10)).run_known
        assert (await service.performance())["alpha"].favorite_rate.count == 1
        await feed_back(service, 1, resources.FEEDBACK_KIND_UNFAVORITE, 5)
        assert (await service.runs("favorite = true")).keys()
        await feed_back(service, 1, resources.FEEDBACK_KIND_UNFAVORITE, 20)
        assert not await service.runs("favorite = true")
        assert (await service.performance())["alpha"].favorite_rate.count == 0
        await feed_back(service, 1, resources.FEEDBACK_KIND_RATING, 30, value=0.5)
        await feed_back(service, 1, resources.FEEDBACK_KIND_DWELL, 30, value=12.5)


async def test_pages_and_filters_give_every_run_once(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        outcomes = [1, 2, 3, 4]
        runs = [
            run_of(
                n,
                outcome=outcomes[n % 4],
                language="en" if n % 3 else "de",
                start_time=Timestamp(seconds=n // 2),
            )
            for n in range(25)
        ]

        async def messages() -> AsyncIterator[pb.RecordRunsRequest]:
            yield pb.RecordRunsRequest(parent=PARENT, runs=runs)

        assert (await service.stub.RecordRuns(messages(), timeout=10)).created_count == 25
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListRunsRequest(parent=PARENT, page_size=7, page_token=token)
            page = await service.stub.ListRuns(request, timeout=10)
            assert len(page.runs) <= 7
            seen += [run.name for run in page.runs]
            token = page.next_page_token
            if not token:
                break
        newest_first = sorted(runs, key=lambda run: (run.start_time.seconds, run.name), reverse=True)
        assert seen == [run.name for run in newest_first]
        cases: dict[str, Callable[[int], bool]] = {
            'outcome = "blocked"': lambda n: n % 4 == 1,
            "outcome != RUN_OUTCOME_BLOCKED AND language = de": lambda n: n % 4 != 1 and n % 3 == 0,
            "start_time >= 1970-01-01T00:00:05Z AND start_time < 1970-01-01T00:00:08Z": lambda n: (
                5 <= n // 2 < 8
            ),
            f'production = true AND device = "{BROWSER}" AND session_key = "{BROWSER}"': lambda n: True,
            "production = false": lambda n: False,
            'source = "live" AND interception_config = "alpha" AND output_config != "x"': lambda n: True,
            r'device = "a\"b\\c"': lambda n: False,
        }
        for text, wanted in cases.items():
            names = {run.name.rpartition("/")[2] for run in runs if wanted(int(run.name[-6:], 16))}
            assert set(await service.runs(text)) == names, text


async def test_pages_of_huge_prompts_fit_into_an_answer(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        for number in range(6):
            await record(service, run_of(number, prompt="x" * (1024 * 1024)))
        page = await service.stub.ListRuns(pb.ListRunsRequest(parent=PARENT), timeout=10)
        assert 1 <= len(page.runs) < 6
        seen = len(page.runs)
        while page.next_page_token:
            request = pb.ListRunsRequest(parent=PARENT, page_token=page.next_page_token)
            page = await service.stub.ListRuns(request, timeout=10)
            seen += len(page.runs)
        assert seen == 6
        assert len(await service.runs()) == 6


async def test_windows_count_the_runs_that_began_in_them(tmp_path: Path) -> None:
    workshop = tmp_path / "workshop"
    truth = simulate(workshop, "--runs", "300", "--seed", "21")
    async with experience(tmp_path / "home") as service:
        await service.import_all(workshop, PLATFORM)
        wanted = [t for t in truth["runs"] if t["importable"] == "yes" and t["interception_config"]]
        instants = sorted(t["ms"] for t in wanted)
        start, end = instants[len(instants) // 4], instants[3 * len(instants) // 4]
        window = {
            "start_time": Timestamp(seconds=start // 1000, nanos=start % 1000 * 1_000_000),
            "end_time": Timestamp(seconds=end // 1000, nanos=end % 1000 * 1_000_000),
        }
        found = await service.performance(**window)
        inside = [t for t in wanted if start <= t["ms"] < end and "_canvas_batch_" not in t["run_id"]]
        for config in {t["interception_config"] for t in inside}:
            its = [t for t in inside if t["interception_config"] == config]
            production = [t for t in its if t["production"]]
            item = found[config]
            assert (item.total_runs, item.production_runs) == (len(its), len(production))
            assert item.favorite_rate.count == sum(t["favourite"] for t in production)
            assert item.regenerations == sum(t["regeneration_of"] is not None for t in production)
            assert item.blocked_runs == sum(t["disk_status"] == "blocked" for t in production)
        everything = await service.performance()
        assert everything == await service.performance(start_time=Timestamp(seconds=0))


async def test_performance_comes_in_pages(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        for number in range(12):
            await record(service, run_of(number, interception_config=f"config-{number % 5}"))
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListConfigPerformanceRequest(parent=PARENT, page_size=2, page_token=token)
            page = await service.stub.ListConfigPerformance(request, timeout=10)
            seen += [item.config for item in page.config_performance]
            token = page.next_page_token
            if not token:
                break
        assert seen == ["config-0", "config-1", "config-2", "config-3", "config-4"]


async def test_aggregate_moves_the_watermark_and_puts_wrong_counters_right(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        for number in range(5):
            await record(service, run_of(number))
        state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
        assert (state.run_count, state.production_run_count, state.pending_aggregation_count) == (5, 5, 5)
        assert not state.HasField("aggregate_time")
        done = await service.aggregate()
        assert (done.run_count, done.config_count, done.regeneration_count, done.corrected_count) == (
            5,
            1,
            4,
            0,
        )
        state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
        assert state.pending_aggregation_count == 0
        assert state.HasField("aggregate_time")
        assert (await service.aggregate()).run_count == 0
        right = await service.performance()

        def spoil(connection: Any) -> None:
            connection.exec_driver_sql("UPDATE counters SET count = count + 3 WHERE metric = 'production'")
            connection.exec_driver_sql("UPDATE runs SET regeneration_of = NULL")
            connection.exec_driver_sql(
                "INSERT INTO counters VALUES ('workshop', 'config', 'ghost', 'total', 4)"
            )

        await service.db.write(spoil)
        assert await service.performance() != right
        done = await service.aggregate(full=True)
        assert (done.run_count, done.corrected_count > 0) == (5, True)
        assert await service.performance() == right
        assert (await service.aggregate(full=True)).corrected_count == 0


async def test_aggregate_gives_way_to_a_user(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        for number in range(3):
            await record(service, run_of(number))
        assert service.serving.hub is not None
        await service.serving.hub.gate.raise_to(7)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.aggregate(fence=1)
        rich = decode_error(caught.value)
        assert (caught.value.code().name, rich.reason) == ("FAILED_PRECONDITION", "PREEMPTED")
        state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
        assert state.pending_aggregation_count == 3
        assert (await service.aggregate(fence=7)).run_count == 3


async def test_projects_do_not_see_each_other(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        await record(service, run_of(1))
        other = "projects/other"
        run = run_of(1, name=run_of(1).name.replace(PARENT, other), prompt="something else")
        await service.stub.RecordRun(pb.RecordRunRequest(parent=other, run=run), timeout=10)
        page = await service.stub.ListRuns(pb.ListRunsRequest(parent=other), timeout=10)
        assert [found.name for found in page.runs] == [run.name]
        assert len(await service.runs()) == 1


async def test_who_may_write(tmp_path: Path) -> None:
    async with experience(tmp_path / "home") as service:
        viewer = service.serving.stub(ExperienceServiceStub, "viewer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await viewer.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run_of(1)), timeout=10)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        platform = service.serving.stub(ExperienceServiceStub, "platform/default")
        await platform.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run_of(1)), timeout=10)
        assert len((await viewer.ListRuns(pb.ListRunsRequest(parent=PARENT), timeout=10)).runs) == 1

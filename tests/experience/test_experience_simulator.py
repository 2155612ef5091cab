"""Imports held against the simulator's ground truth, run by run and config by config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.experience.experience_support import (
    OUTCOMES,
    PLATFORM,
    Experience,
    experience,
    read_truth,
    renamed,
    simulate,
)

# Of these no prompt can be compared: the truth has none.
UNREADABLE = ("huge_prompt", "non_utf8_text")


def below_root(path: str) -> str:
    return path.removeprefix("exports/json/")


async def assert_runs(service: Experience, truth: dict[str, Any], rename: Any = lambda name: name) -> None:
    runs = {run.source_path: run for run in (await service.runs()).values()}
    wanted = {below_root(t["path"]): t for t in truth["runs"] if t["importable"] == "yes"}
    optional = {below_root(t["path"]) for t in truth["runs"] if t["importable"] == "optional"}
    assert set(wanted) <= set(runs) <= set(wanted) | optional
    wrong: list[Any] = []
    for path, expected in wanted.items():
        run = runs[path]
        pairs = {
            "run id": (run.name.rpartition("/")[2], expected["run_id"]),
            "device": (run.device or None, expected["device"]),
            "session key": (run.session_key or None, expected["session_key"]),
            "production": (run.production, expected["production"]),
            "outcome": (OUTCOMES[run.outcome], expected["disk_status"]),
            "interception": (
                run.interception_config or None,
                rename(expected["interception_config"]) if expected["interception_config"] else None,
            ),
            "output": (
                run.output_config or None,
                rename(expected["output_config"]) if expected["output_config"] else None,
            ),
            "seed": (run.seed if run.HasField("seed") else None, expected["seed"]),
            "favourite": (run.favorite, expected["favourite"]),
            "regeneration": (run.regeneration_of.rpartition("/")[2] or None, expected["regeneration_of"]),
        }
        # Of a prompt optimisation without a preceding run nothing is left that is in the user's language.
        if expected["kind"] != "opt":
            pairs["language"] = (run.language, expected["language"])
        if expected["broken"] not in UNREADABLE:
            pairs["prompt"] = (run.prompt or None, expected["prompt"])
        # Instants are those of the run id; the runs of a canvas batch share one.
        if "_canvas_batch_" not in expected["run_id"]:
            pairs["start"] = (run.start_time.ToMilliseconds() // 1000, expected["ms"] // 1000)
        wrong += [(path, name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    assert wrong == []


async def assert_statistics(
    service: Experience, truth: dict[str, Any], rename: Any = lambda name: name
) -> None:
    found = await service.performance()
    assert set(found) == {rename(config) for config in truth["configs"]}
    for config, expected in truth["configs"].items():
        item = found[rename(config)]
        counted = {
            "total_runs": item.total_runs,
            "production_runs": item.production_runs,
            "succeeded": item.succeeded_runs,
            "blocked": item.blocked_runs,
            "failed": item.failed_runs,
            "incomplete": item.incomplete_runs,
            "favorites": item.favorite_rate.count,
            "regenerations": item.regenerations,
            "groups": item.groups,
            "favorite_rate": round(item.favorite_rate.value, 6),
            "error_rate": round(item.error_rate.value, 6),
            "block_rate": round(item.block_rate.value, 6),
            "avg_regenerations": round(item.avg_regenerations, 6),
            "top_output_configs": {count.key: count.count for count in item.top_output_configs},
            "top_input_languages": {count.key: count.count for count in item.top_languages},
        }
        expected = dict(
            expected, top_output_configs={rename(k): v for k, v in expected["top_output_configs"].items()}
        )
        assert counted == {name: expected[name] for name in counted}, config
        assert list(counted["top_input_languages"]) == list(expected["top_input_languages"])
        assert item.favorite_rate.lower <= item.favorite_rate.value <= item.favorite_rate.upper


async def assert_skipped(service: Experience, truth: dict[str, Any], job: Any) -> None:
    from nightshift.experience.v1 import experience_service_pb2 as pb
    from tests.experience.experience_support import PARENT

    listed: dict[str, str] = {}
    token = ""
    while True:
        answer = await service.stub.ListSkippedRecords(
            pb.ListSkippedRecordsRequest(parent=PARENT, page_size=7, page_token=token), timeout=10
        )
        listed |= {record.path: record.reason for record in answer.skipped_records}
        token = answer.next_page_token
        if not token:
            break
    reasons = {
        "truncated_json": {"RECORD_TRUNCATED"},
        "empty_file": {"RECORD_EMPTY"},
        "non_object_json": {"RECORD_NOT_OBJECT"},
        "missing_metadata": {"METADATA_MISSING"},
        "no_files": {"FOLDER_EMPTY"},
    }
    expected = {below_root(t["path"]): reasons[t["broken"]] for t in truth["runs"] if t["importable"] == "no"}
    expected |= {below_root(path): {"SYMLINK"} for path in truth["symlinks"]}
    assert set(listed) == set(expected)
    # A flat-fast tree writes no file at all for some broken records: then the folder is empty.
    assert all(listed[path] in reason | {"FOLDER_EMPTY"} for path, reason in expected.items())
    assert job.skipped_count == len(expected)
    assert sum(count.count for count in job.skipped_reasons) == len(expected)


def assert_nothing_private(home: Path, truth: dict[str, Any]) -> None:
    canaries = truth["canary_names"] + truth["canary_addresses"]
    parts = {part for text in canaries for part in text.split() if len(part) > 5} | set(canaries)
    needles = [part.encode() for part in parts] + [part.encode("utf-16-le") for part in parts]
    assert canaries, "the workshop planted no names: the test would prove nothing"
    looked_at = 0
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            looked_at += 1
            assert [needle for needle in needles if needle in data] == [], path
    assert looked_at >= 2


async def assert_all(service: Experience, truth: dict[str, Any], job: Any) -> None:
    assert job.state == 2, job
    assert job.found_count == job.scanned_count == truth["totals"]["runs"]
    assert job.dangling_favorite_count == len(truth["favorites_dangling"])
    assert job.favorite_count == truth["totals"]["favorites"]
    await assert_runs(service, truth)
    await assert_statistics(service, truth)
    await assert_skipped(service, truth, job)
    assert_nothing_private(service.home, truth)


async def walk_through(home: Path, workshop: Path, *arguments: str) -> None:
    """Import, import again, mutate twice: always what the truth says, and always only what changed."""
    truth = simulate(workshop, *arguments)
    async with experience(home) as service:
        job = await service.import_all(workshop, PLATFORM)
        await assert_all(service, truth, job)
        again = await service.import_all(workshop, PLATFORM)
        assert (again.created_count, again.updated_count) == (0, 0)
        assert again.unchanged_count == job.created_count
        await assert_all(service, truth, again)
        for seed in ("1", "2"):
            simulate(workshop, "--mutate", seed)
            truth = read_truth(workshop)
            log = truth["mutations"][-1]
            job = await service.import_all(workshop, PLATFORM)
            assert job.created_count == len(log["runs_in_old_folders"])
            assert job.updated_count == len({*log["completed_runs"], *log["appended_outputs"]})
            await assert_all(service, truth, job)
        done = await service.aggregate(full=True)
        assert done.corrected_count == 0
        assert done.run_count == job.created_count + job.updated_count + job.unchanged_count
        assert done.config_count == len(truth["configs"])
        assert done.regeneration_count == truth["totals"]["regenerations_production"]
        await assert_statistics(service, truth)


async def test_a_workshop_is_imported_as_its_truth_says(tmp_path: Path) -> None:
    await walk_through(tmp_path / "home", tmp_path / "workshop", "--runs", "500", "--seed", "5")


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["7", "11"])
async def test_a_season_is_imported_as_its_truth_says(tmp_path: Path, seed: str) -> None:
    await walk_through(tmp_path / "home", tmp_path / "workshop", "--runs", "5000", "--seed", seed)


async def test_a_tree_without_media_files_gives_the_same(tmp_path: Path) -> None:
    workshop = tmp_path / "workshop"
    truth = simulate(workshop, "--runs", "400", "--seed", "3", "--layout", "flat-fast")
    async with experience(tmp_path / "home") as service:
        job = await service.import_all(workshop, PLATFORM)
        await assert_all(service, truth, job)


@pytest.mark.parametrize("with_platform", [True, False], ids=["platform", "no platform"])
async def test_no_config_id_is_known_beforehand(tmp_path: Path, with_platform: bool) -> None:
    """The same workshop on a platform that named everything differently, or that cannot be asked at all."""
    workshop, platform = tmp_path / "workshop", tmp_path / "platform"
    truth = simulate(workshop, "--runs", "600", "--seed", "13")
    ids = truth["output_config_ids"] + truth["interception_config_ids"]
    names = {name: f"quokka-{number:02d}-ß" for number, name in enumerate(ids)}
    renamed(workshop, names.__getitem__, ids)
    shutil.copytree(PLATFORM / "schemas", platform / "schemas")
    for folder in ("interception", "output"):
        for path in (platform / "schemas" / "configs" / folder).iterdir():
            stem, dot, rest = path.name.partition(".")
            if stem in names:
                path.rename(path.with_name(names[stem] + dot + rest))
    async with experience(tmp_path / "home") as service:
        await service.import_all(workshop, platform if with_platform else None)
        await assert_runs(service, truth, names.__getitem__)
        await assert_statistics(service, truth, names.__getitem__)

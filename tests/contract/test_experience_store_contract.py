"""What experience's store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import sqlalchemy as sa

from nightshift_experience.aggregation.recount import recount
from nightshift_experience.filters import parse_filter
from nightshift_experience.profiles.counting import MeasureState
from nightshift_experience.runs import Orchestration, RunRecord, prompt_digest
from nightshift_experience.sources.devserver.devices import ProductionRule
from nightshift_experience.store import search_tables, tables
from nightshift_experience.store.import_state import (
    ImportJob,
    JobState,
    PathState,
    add_known_outputs,
    apply_known_outputs,
    fail_interrupted,
    forget_paths,
    get_job,
    list_jobs,
    list_skipped,
    load_paths,
    put_job,
    put_paths,
)
from nightshift_experience.store.merging import content_digest, encode
from nightshift_experience.store.profile_reads import read_profile
from nightshift_experience.store.run_reads import get_run, list_runs, project_state, runs_by_id
from nightshift_experience.store.run_writes import (
    CREATED,
    REUSED,
    UNCHANGED,
    UPDATED,
    Incoming,
    WritingRules,
    store_batch,
)
from nightshift_experience.store.signals import add_feedback, apply_favorite_list
from nightshift_experience.store.statistics import config_counters, load_counters
from nightshift_kit.storage import Database, schema_differences

PROJECT = "p"
RULES = WritingRules(ProductionRule())
BROWSER = "11111111-2222-4333-8444-555555555555_2026-02-02"
MS = 1_770_000_000_000


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations="nightshift_experience", name="experience") as database:
        database.migrate()
        yield database


def record(number: int, **fields: Any) -> RunRecord:
    base = RunRecord(
        run_id=f"run_{MS + number * 1000}_{number:06x}",
        source="live",
        start_us=(MS + number * 1000) * 1000,
        outcome=1,
        device=BROWSER,
        language="de",
        prompt="ein Fuchs 🦊 “%s” \\",
        prompt_digest=prompt_digest("ein Fuchs"),
        interception_config="alpha",
        output_config="image_a",
        seed=number,
        cost_usd=0.125,
        media_types=["image"],
        models={"stage2": "small"},
    )
    return replace(base, **fields)


def store(db: Database, *records: RunRecord, replaces: bool = False) -> list[str]:
    batch = [Incoming(one, content_digest(encode(one)), replaces) for one in records]
    return db.write_sync(store_batch, PROJECT, batch, RULES, 1_000_000)


def counted(db: Database) -> Counter[tuple[str, str, str]]:
    kept = db.read_sync(load_counters, PROJECT)
    found = db.read_sync(recount, PROJECT, Event())
    assert (found.differences, found.wrong_chains) == (Counter(), [])
    return kept


def test_the_migrations_make_the_declared_tables(db: Database) -> None:
    # Search declares its tables in a module of its own, in the same metadata.
    assert search_tables.__name__ in sys.modules
    assert db.read_sync(schema_differences, tables.metadata) == []


def test_records_are_kept_once_and_never_silently_replaced(db: Database) -> None:
    assert store(db, record(1), record(2), record(1)) == [CREATED, CREATED, UNCHANGED]
    assert store(db, record(1, seed=99)) == [REUSED]
    assert store(db, record(1, seed=99, revision="2")) == [UPDATED]
    assert store(db, record(1, seed=7, source="devserver-export")) == [UPDATED]
    assert store(db, record(1, seed=8, source="devserver-export"), replaces=True) == [UPDATED]
    row = db.read_sync(get_run, PROJECT, record(1).run_id)
    assert row is not None
    assert (row.seed, row.source, row.prompt, row.cost_usd) == (
        8,
        "devserver-export",
        record(1).prompt,
        0.125,
    )
    assert row.create_us == 1_000_000
    assert counted(db)["project", "", "total"] == 2


def test_late_runs_move_the_marks_of_their_chain(db: Database) -> None:
    store(db, record(5, seed=5), record(6, seed=6))
    store(db, record(1, seed=6))
    marks = dict(
        db.read_sync(
            lambda c: c.execute(sa.select(tables.runs.c.run_id, tables.runs.c.regeneration_of)).all()
        )
    )
    assert marks == {record(1).run_id: None, record(5).run_id: record(1).run_id, record(6).run_id: None}
    kept = counted(db)
    assert (kept["config", "alpha", "groups"], kept["config", "alpha", "regenerations"]) == (1, 1)


def test_a_failed_batch_leaves_nothing(db: Database) -> None:
    def fails(connection: sa.Connection) -> None:
        one = record(1)
        store_batch(connection, PROJECT, [Incoming(one, b"d", replaces=False)], RULES, 1)
        raise LookupError

    with pytest.raises(LookupError):
        db.write_sync(fails)
    assert db.read_sync(get_run, PROJECT, record(1).run_id) is None
    assert counted(db) == Counter()


def test_profiles_are_read_by_few_steps(db: Database) -> None:
    def told(number: int, cost: float | None, mode: str = "3LOOP", **how: Any) -> RunRecord:
        made = Orchestration(mode=mode, strategy="fast", max_rounds=5, rounds=2, qa_status=1, **how)
        return record(number, cost_usd=cost, orchestration=made)

    store(db, *(told(number, 0.5 + number / 1000) for number in range(1, 31)))
    store(db, told(40, 0.25, mode="2loop"), told(41, 9.75, mode=""), told(42, None), told(43, 1e300))
    kept = counted(db)
    assert kept["profile", "", "runs"] == 33
    assert kept["profile_mode", "3loop", "runs"] == 31
    snapshot = db.read_sync(read_profile, PROJECT, None, 5)
    assert snapshot is not None
    total = snapshot.profile.total.costs
    assert (total.least_usd, total.most_usd) == (0.25, 9.75)
    modes = {group.key: group.costs for group in snapshot.profile.modes}
    assert (modes["3loop"].least_usd, modes["3loop"].most_usd) == (0.501, 0.53)
    assert [dated.start_us for dated in snapshot.newest] == [
        record(number).start_us for number in (42, 41, 40, 30, 29)
    ]
    assert snapshot.newest[0].max_cost_usd is None
    assert snapshot.left_out_runs == ((record(43).run_id, MeasureState.COST_IMPLAUSIBLE),)
    assert db.read_sync(read_profile, PROJECT, snapshot.version, 5) is None
    # A record told anew takes back exactly what it counted, and the ends follow.
    store(db, replace(told(41, 0.5, mode=""), revision="2"))
    again = db.read_sync(read_profile, PROJECT, snapshot.version, 5)
    assert again is not None and again.profile.total.costs.most_usd == 0.53
    counted(db)
    if db.backend == "sqlite":
        plans = db.read_sync(
            lambda c: [
                row.detail
                for where, order in (
                    ("mode = '3loop' AND profiled = 1 AND cost_usd > 0", "cost_usd DESC"),
                    ("strategy = 'fast' AND profiled = 1 AND cost_usd > 0", "cost_usd"),
                    ("profiled = 1", "start_us DESC, run_id DESC"),
                    ("profiled > 1 AND profiled < 5", "profiled, run_id"),
                )
                for row in c.execute(
                    sa.text(
                        f"EXPLAIN QUERY PLAN SELECT run_id FROM runs WHERE project = 'p' AND {where}"
                        f" ORDER BY {order} LIMIT 1"
                    )
                )
            ]
        )
        indexes = ["runs_by_mode_cost", "runs_by_strategy_cost", "runs_counted", "runs_left_out"]
        assert len(plans) == 4, plans
        assert all(name in plan for name, plan in zip(indexes, plans, strict=True)), plans


def test_signals_mark_runs_before_and_after_they_come(db: Database) -> None:
    run = record(1).run_id
    assert not db.write_sync(add_feedback, PROJECT, run, 1, None, 10, 100)
    store(db, record(1), record(2))
    assert counted(db)["config", "alpha", "favorites"] == 1
    assert db.write_sync(add_feedback, PROJECT, run, 1, None, 10, 200)
    assert db.write_sync(add_feedback, PROJECT, run, 6, 0.5, None, 200)
    listed = {record(2).run_id: 50, "unknown": 60}
    assert db.write_sync(apply_favorite_list, PROJECT, "devserver-export", listed, 300) == (1, 1)
    assert counted(db)["config", "alpha", "favorites"] == 2
    assert db.write_sync(apply_favorite_list, PROJECT, "devserver-export", {}, 400) == (0, 0)
    assert counted(db)["config", "alpha", "favorites"] == 1


def test_pages_go_through_runs_of_one_instant(db: Database) -> None:
    store(db, *(record(number, start_us=7 + number // 4) for number in range(10)))
    seen: list[tuple[int, str]] = []
    before: tuple[int, str] | None = None
    while rows := db.read_sync(list_runs, PROJECT, parse_filter('language = "de"'), before, 3):
        seen += [(row.start_us, row.run_id) for row in rows]
        before = seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 10
    rows = db.read_sync(runs_by_id, PROJECT, parse_filter("favorite = false"), record(7).run_id, 100)
    assert [row.run_id for row in rows] == [record(8).run_id, record(9).run_id]


def test_windows_and_kept_counters_agree(db: Database) -> None:
    store(db, *(record(n, seed=n % 3, outcome=1 + n % 4, interception_config="ab"[n % 2]) for n in range(20)))
    everything = config_counters
    assert db.read_sync(everything, PROJECT, None, None) == db.read_sync(everything, PROJECT, 0, None)
    window = db.read_sync(everything, PROJECT, record(5).start_us, record(15).start_us)
    assert window["config", "a", "total"] + window["config", "b", "total"] == 10


def test_output_configs_that_show_late_leave_the_interceptions(db: Database) -> None:
    early = record(1, interception_config="", config_name="image_z", output_config="", outcome=4)
    store(db, early, record(2, interception_config="", config_name="beta"))
    assert counted(db)["config", "image_z", "total"] == 1
    db.write_sync(add_known_outputs, PROJECT, ["image_z"])
    assert db.write_sync(apply_known_outputs, PROJECT, RULES, 2_000_000) == 1
    assert db.write_sync(apply_known_outputs, PROJECT, RULES, 2_000_000) == 0
    kept = counted(db)
    assert (kept["config", "image_z", "total"], kept["config", "beta", "total"]) == (0, 1)


def test_change_numbers_are_unique_and_grow(db: Database) -> None:
    store(db, record(1), record(2), record(3))
    first = db.read_sync(project_state, PROJECT)
    assert (first.pending_aggregation, first.pending_detection) == (3, 3)
    store(db, record(2, revision="2"))
    rows = db.read_sync(
        lambda c: (
            c.execute(sa.select(tables.runs.c.run_id).order_by(tables.runs.c.change_seq)).scalars().all()
        )
    )
    assert rows == [record(1).run_id, record(3).run_id, record(2).run_id]
    assert db.read_sync(project_state, PROJECT).change_seq > first.change_seq


def test_jobs_and_paths_are_remembered(db: Database) -> None:
    jobs = [ImportJob(PROJECT, f"j{n}", "devserver", "/d", "", start_us=n // 2, seq=n) for n in range(4)]
    for job in jobs:
        job.skipped_reasons = {"SYMLINK": 2}
        db.write_sync(put_job, job)
    assert db.read_sync(get_job, PROJECT, "j1") == jobs[1]
    assert [job.job_id for job in db.read_sync(list_jobs, PROJECT, None, 3)] == ["j3", "j2", "j1"]
    assert [job.job_id for job in db.read_sync(list_jobs, PROJECT, (0, "j1"), 3)] == ["j0"]
    db.write_sync(put_job, replace(jobs[0], state=JobState.SUCCEEDED))
    assert db.write_sync(fail_interrupted, 99) == 3
    failed = db.read_sync(get_job, PROJECT, "j3")
    assert failed is not None
    assert (failed.state, failed.failure_reason, failed.seq) == (JobState.FAILED, "INTERRUPTED", 4)
    read = PathState("a/b", "run", b"s" * 16, "[]", b"c" * 16, "")
    skipped = PathState("a/c", "", b"", "[]", b"c" * 16, "SYMLINK", "a link")
    db.write_sync(put_paths, PROJECT, "s", [skipped, read])
    assert db.read_sync(load_paths, PROJECT, "s", "", 10) == [read, replace(skipped, skip_detail="")]
    assert db.read_sync(list_skipped, PROJECT, None, 10) == [("a/c", "SYMLINK", "a link")]
    db.write_sync(forget_paths, PROJECT, "s", ["a/c"])
    assert db.read_sync(list_skipped, PROJECT, None, 10) == []

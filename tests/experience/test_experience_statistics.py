"""Counters kept with every write equal a count from scratch, whatever the order in which runs came."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightshift_experience.aggregation.recount import recount
from nightshift_experience.runs import Orchestration, RunRecord, prompt_digest
from nightshift_experience.sources.devserver.devices import ProductionRule
from nightshift_experience.store import tables
from nightshift_experience.store.import_state import add_known_outputs, apply_known_outputs
from nightshift_experience.store.merging import content_digest, encode
from nightshift_experience.store.run_writes import Incoming, WritingRules, store_batch
from nightshift_experience.store.signals import add_feedback, apply_favorite_list
from nightshift_experience.store.statistics import load_counters
from nightshift_kit.storage import Database

RULES = WritingRules(ProductionRule())
PROJECT = "p"
BROWSERS = [
    "11111111-2222-4333-8444-555555555555_2026-02-02",
    "11111111-2222-4333-8444-555555555555_2026-02-02_cmp1",
    "dev_0123456789ab",
    "",
]
RUN_IDS = [f"run_{1_770_000_000_000 + number // 2}_{number:06x}" for number in range(12)]

orchestrations = st.builds(
    Orchestration,
    mode=st.sampled_from(["", "2loop", "3LOOP"]),
    strategy=st.sampled_from(["", "baseline", "fast"]),
    max_rounds=st.sampled_from([None, 2, 3]),
    max_cost_usd=st.sampled_from([None, 1.5]),
    rounds=st.sampled_from([None, 0, 1, 2, 3, 20_000]),
    qa_status=st.sampled_from([0, 1, 1, 2, 3]),
    tuned=st.sampled_from([[], [["mode", "2loop", "3loop", "cheaper"]]]),
)


def make_record(run: str, prompt: str | None, config: str, name: str, model: str, **told: Any) -> RunRecord:
    return RunRecord(
        run_id=run,
        start_us=int(run.split("_")[1]) * 1000,
        prompt=prompt,
        prompt_digest=prompt_digest(prompt) if prompt else "",
        interception_config=config,
        config_name="" if config else name,
        models={"manager": model, "employee": "m1"} if model else {},
        **told,
    )


records = st.builds(
    make_record,
    run=st.sampled_from(RUN_IDS),
    source=st.sampled_from(["devserver-export", "live"]),
    outcome=st.sampled_from([1, 1, 1, 2, 3, 4]),
    device=st.sampled_from(BROWSERS),
    prompt=st.sampled_from([None, "a fox", " a fox ", "a whale"]),
    config=st.sampled_from(["", "", "alpha", "beta"]),
    name=st.sampled_from(["", "alpha", "out1", "gamma"]),
    output_config=st.sampled_from(["", "out1", "out2"]),
    seed=st.sampled_from([None, 1, 2, 3]),
    language=st.sampled_from(["", "de", "en"]),
    cost_usd=st.one_of(st.sampled_from([None, 0.0, 0.8, 1.2, 20_000.0]), st.floats(1e-9, 9_999)),
    duration_us=st.sampled_from([None, 300_000_000, 31 * 86_400_000_000]),
    model=st.sampled_from(["", "m1", "m2"]),
    orchestration=st.one_of(st.none(), orchestrations),
)
operations = st.one_of(
    st.tuples(st.just("store"), st.lists(records, min_size=1, max_size=6)),
    st.tuples(st.just("feedback"), st.sampled_from(RUN_IDS), st.sampled_from([1, 2, 3]), st.integers(0, 9)),
    st.tuples(st.just("favorites"), st.dictionaries(st.sampled_from(RUN_IDS), st.integers(0, 9), max_size=5)),
    st.tuples(st.just("output"), st.sampled_from(["out1", "gamma"])),
)


def perform(connection: sa.Connection, operation: tuple[Any, ...], now_us: int) -> None:
    match operation:
        case ("store", batch):
            # A live caller that tells something else is refused; an export is replaced.
            incoming = [
                Incoming(
                    copy.deepcopy(record),
                    content_digest(encode(record)),
                    replaces=record.source == "devserver-export",
                )
                for record in batch
            ]
            store_batch(connection, PROJECT, incoming, RULES, now_us)
        case ("feedback", run, kind, when_us):
            add_feedback(connection, PROJECT, run, kind, None, when_us, now_us)
        case ("favorites", added_us):
            apply_favorite_list(connection, PROJECT, "devserver-export", added_us, now_us)
        case ("output", config):
            add_known_outputs(connection, PROJECT, [config])
            apply_known_outputs(connection, PROJECT, RULES, now_us)


def count_from_rows(connection: sa.Connection) -> tuple[Counter[tuple[str, str, str]], dict[str, str | None]]:
    """The definitions once more, as plainly as possible, over the stored rows."""
    rows = connection.execute(sa.select(tables.runs)).mappings().all()
    names = {1: "succeeded", 2: "blocked", 3: "failed", 4: "incomplete"}
    found: Counter[tuple[str, str, str]] = Counter()
    first: dict[Any, str] = {}
    seeds: dict[Any, set[int]] = defaultdict(set)
    groups: dict[str, set[Any]] = defaultdict(set)
    marks: dict[str, str | None] = {}
    for row in sorted(rows, key=lambda row: (int(row["run_id"].split("_")[1]), row["run_id"])):
        config, output, language = row["interception_config"], row["output_config"], row["language"]
        production = row["device"].startswith("11111111")
        assert bool(row["production"]) == production
        found["project", "", "total"] += 1
        found["project", "", "production"] += production
        if config:
            found["config", config, "total"] += 1
        if output:
            found["output", output, "total"] += 1
            found["output", output, "production"] += production
        if production and language:
            found["language", language, "production"] += 1
        if production and config:
            found["config", config, "production"] += 1
            found["config", config, names[row["outcome"]]] += 1
            found["config", config, "favorites"] += bool(row["favorite"])
            if output:
                found["config_output", config, output] += 1
            if language:
                found["config_language", config, language] += 1
        count_profile(found, row)
        marks[row["run_id"]] = None
        if row["outcome"] != 1 or row["seed"] is None or row["prompt"] is None or not row["session_key"]:
            continue
        key = (row["session_key"], row["prompt"].strip(), config, output)
        if production and config:
            groups[config].add(key)
        if key not in first:
            first[key] = row["run_id"]
        elif row["seed"] not in seeds[key]:
            marks[row["run_id"]] = first[key]
            found["project", "", "regenerations"] += production
            if production and config:
                found["config", config, "regenerations"] += 1
        seeds[key].add(row["seed"])
    for config, keys in groups.items():
        found["config", config, "groups"] = len(keys)
    return Counter({name: count for name, count in found.items() if count}), marks


def count_profile(found: Counter[tuple[str, str, str]], row: Any) -> None:
    """What the profile counts of a run, told once more in other words."""
    cost, span, rounds = row["cost_usd"] or 0.0, row["duration_us"], row["rounds"]
    told = row["mode"] or row["strategy"] or row["qa_status"] or rounds is not None
    told = told or row["max_rounds"] is not None or row["max_cost_usd"] is not None or row["tuned"] != "[]"
    if not cost and not (told or row["profiled"]):
        return
    reason = 1
    if row["device"] and not row["device"].startswith("11111111"):
        reason = 5
    if span is not None and span > 30 * 86_400e6:
        reason = 4
    if max(rounds or 0, row["max_rounds"] or 0) > 10_000:
        reason = 3
    if cost > 10_000:
        reason = 2
    assert row["profiled"] == reason
    if reason != 1:
        found["profile", "", f"left_out:{reason}"] += 1
        return
    for model in set(json.loads(row["models"]).values()):
        found["profile", "", f"model:{model}"] += 1
    tuned = [
        ("profile_tuned", json.dumps(each[:3], separators=(",", ":"))) for each in json.loads(row["tuned"])
    ]
    scopes = [("profile", ""), ("profile_mode", row["mode"]), ("profile_strategy", row["strategy"]), *tuned]
    for scope, key in scopes:
        if scope != "profile" and not key:
            continue
        found[scope, key, "runs"] += 1
        if row["qa_status"]:
            found[scope, key, f"qa:{row['qa_status']}"] += 1
        if cost:
            nanos = max(1, round(cost * 1e9))
            bits = f"{nanos:b}"
            bucket = int(bits[:8], 2) + 128 * max(0, len(bits) - 8)
            found[scope, key, f"cost:{bucket}"] += 1
            found[scope, key, f"cost_nanos:{bucket}"] += nanos
        if span is not None:
            found[scope, key, "durations"] += 1
            found[scope, key, "duration_us"] += span
        if rounds:
            end = "own" if row["max_rounds"] is not None and rounds < row["max_rounds"] else "cut"
            found[scope, key, f"rounds:{rounds}:{end}"] += 1


@contextmanager
def fresh_database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'experience.db'}"
        with Database(url, migrations="nightshift_experience", name="experience") as db:
            db.migrate()
            yield db


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(operations, min_size=1, max_size=12))
def test_counters_equal_a_count_from_scratch(steps: list[tuple[Any, ...]]) -> None:
    with fresh_database() as db:
        for number, step in enumerate(steps):
            db.write_sync(perform, step, 100 + number)
        expected, marks = db.read_sync(count_from_rows)
        assert db.read_sync(load_counters, PROJECT) == expected
        stored = db.read_sync(
            lambda c: dict(c.execute(sa.select(tables.runs.c.run_id, tables.runs.c.regeneration_of)).all())
        )
        assert stored == marks
        found = db.read_sync(recount, PROJECT, Event())
        assert found.differences == Counter()
        assert found.wrong_chains == []
        numbers = db.read_sync(lambda c: list(c.execute(sa.select(tables.runs.c.change_seq)).scalars()))
        assert len(numbers) == len(set(numbers))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(records, min_size=2, max_size=10, unique_by=lambda r: (r.run_id, r.source)),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_does_not_matter(batch: list[RunRecord], random: Any) -> None:
    """Records of different sources and runs give one state, whichever came first and however grouped."""
    ignored = {"change_seq", "create_us"}

    def state(order: list[RunRecord], group: int) -> Any:
        with fresh_database() as db:
            for begin in range(0, len(order), group):
                db.write_sync(perform, ("store", order[begin : begin + group]), 100)
            rows = db.read_sync(lambda c: c.execute(sa.select(tables.runs)).mappings().all())
            kept = [{name: row[name] for name in row if name not in ignored} for row in rows]
            return sorted(kept, key=lambda row: row["run_id"]), db.read_sync(load_counters, PROJECT)

    shuffled = list(batch)
    random.shuffle(shuffled)
    assert state(batch, 1) == state(shuffled, 3)

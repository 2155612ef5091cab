"""What search and the opportunities keep in SQL, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nightshift_experience.runs import prompt_digest
from nightshift_experience.store import search_tables as tables
from nightshift_experience.store.search_tables import SearchState, StoredOpportunity
from nightshift_kit.storage import Database
from tests.experience.searchable_runs import PROJECT, RunRows


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations="nightshift_experience", name="experience") as database:
        database.migrate()
        yield database


def test_runs_wait_in_the_order_of_their_changes(db: Database) -> None:
    rows = RunRows()
    db.write_sync(
        rows.put,
        {"run_id": "a", "prompt": "one"},
        {"run_id": "b", "prompt": None},
        {"run_id": "c", "prompt": "three", "production": False},
        {"run_id": "d", "prompt": "four", "language": "de"},
    )
    batch = db.read_sync(tables.changed_runs, PROJECT, 0, 3)
    assert [(run.run_id, run.searchable) for run in batch] == [("a", True), ("b", False), ("c", False)]
    assert batch[0].prompt_digest == prompt_digest("one")
    assert batch[1].prompt_digest == "" == batch[1].prompt
    rest = db.read_sync(tables.changed_runs, PROJECT, batch[-1].change_seq, 10)
    assert [(run.run_id, run.language) for run in rest] == [("d", "de")]
    assert db.read_sync(tables.waiting_count, PROJECT, 0) == 2
    assert db.read_sync(tables.waiting_count, PROJECT, 1) == 1
    assert db.read_sync(tables.searchable_digests, PROJECT, ["a", "b", "c", "none"]) == {
        "a": prompt_digest("one")
    }
    facts = db.read_sync(tables.production_facts, PROJECT, 10)
    assert [fact["run_id"] for fact in facts] == ["d", "a"]
    assert facts[0]["favorite"] is False
    assert db.read_sync(tables.change_seq, PROJECT) == 4
    assert db.read_sync(tables.change_seq, "elsewhere") == 0


def test_states_belong_to_one_table_of_the_index(db: Database) -> None:
    db.write_sync(tables.write_state, PROJECT, "runs_one", SearchState(7, 3))
    db.write_sync(tables.write_state, PROJECT, "runs_one", SearchState(9, 4))
    db.write_sync(tables.write_state, "other", "runs_one", SearchState(1, 1))
    assert db.read_sync(tables.read_state, PROJECT, "runs_one") == SearchState(9, 4)
    assert db.read_sync(tables.read_state, PROJECT, "runs_two") == SearchState()
    assert db.read_sync(tables.states, "runs_one") == {PROJECT: SearchState(9, 4), "other": SearchState(1, 1)}
    db.write_sync(tables.forget_states, [PROJECT])
    assert db.read_sync(tables.states, "runs_one") == {"other": SearchState(1, 1)}
    db.write_sync(tables.forget_states)
    assert db.read_sync(tables.states, "runs_one") == {}


def test_what_is_found_again_keeps_its_time(db: Database) -> None:
    rows = RunRows()
    db.write_sync(rows.put, {"run_id": "a", "prompt": "one"})

    def put(now_us: int, *names: str) -> None:
        found = [
            StoredOpportunity(name, 1, 1.0 - place / 10, {"keywords": [name, "ü"]})
            for place, name in enumerate(names)
        ]
        db.write_sync(
            lambda connection: tables.replace_opportunities(connection, PROJECT, found, seq=1, now_us=now_us)
        )

    put(100, "x", "y")
    put(200, "z", "x")
    listed = db.read_sync(tables.list_opportunities, PROJECT, -1, 10)
    assert [(place, item.opportunity_id, item.create_us) for place, item in listed] == [
        (0, "z", 200),
        (1, "x", 100),
    ]
    assert [item.opportunity_id for _, item in db.read_sync(tables.list_opportunities, PROJECT, 0, 10)] == [
        "x"
    ]
    assert db.read_sync(tables.known_keywords, PROJECT) == {"z": ["z", "ü"], "x": ["x", "ü"]}
    assert db.read_sync(tables.get_opportunity, PROJECT, "y") is None
    found = db.read_sync(tables.get_opportunity, PROJECT, "x")
    assert found is not None
    assert (found.kind, found.payload) == (1, {"keywords": ["x", "ü"]})
    put(300)
    assert db.read_sync(tables.list_opportunities, PROJECT, -1, 10) == []

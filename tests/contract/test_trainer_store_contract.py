"""The trainer's store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from nightshift_kit.storage import Database, schema_differences
from nightshift_kit.storage.migrations import migrate
from nightshift_trainer.gpu_host.models import ModelRef
from nightshift_trainer.records import Adapter, State, TrainingJob
from nightshift_trainer.spec import fill
from nightshift_trainer.store import gpu_intents
from nightshift_trainer.store import jobs as store
from nightshift_trainer.store.gpu_intents import Intent
from nightshift_trainer.store.tables import metadata

MIGRATIONS = "nightshift_trainer"
AT = dt.datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=dt.UTC)
SPEC = fill({"base_model": "/m", "dataset": "/d", "preset": "tiny", "base_model_digest": "a" * 64})


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations=MIGRATIONS, name="trainer") as database:
        database.migrate()
        yield database


def job(job_id: str, state: State = State.STARTING, **values: object) -> TrainingJob:
    made = TrainingJob(
        id=job_id,
        state=state,
        spec=SPEC,
        adapter_id=f"adapter-{job_id}",
        skill_run="skillRuns/r",
        fence=2**40,
        on_purpose=False,
        create_time=AT,
    )
    return dataclasses.replace(made, **values)  # type: ignore[arg-type]


def adapter(adapter_id: str, at: dt.datetime = AT) -> Adapter:
    return Adapter(
        id=adapter_id,
        training_job="j",
        path=f"trainer/adapters/{adapter_id}",
        weights_digest="b" * 64,
        base_model_digest="a" * 64,
        dataset_digest="c" * 64,
        spec=SPEC,
        loss=0.1 + 0.2,
        create_time=at,
        code_versions={"torch": "2.13.0"},
        size_bytes=2**40,
    )


def test_migrations_make_what_the_metadata_says(db: Database) -> None:
    assert db.read_sync(schema_differences, metadata) == []


def test_migrations_go_down_and_up_again(db: Database) -> None:
    migrate(db.url, migrations=MIGRATIONS, name="trainer", revision="base")
    assert set(db.read_sync(lambda c: sa.inspect(c).get_table_names())) == {"alembic_version"}
    db.migrate()
    assert db.read_sync(schema_differences, metadata) == []


def test_a_job_comes_back_as_it_was(db: Database) -> None:
    full = job(
        "j1",
        State.FAILED,
        step=3,
        total_steps=9,
        loss=0.1 + 0.2,
        end_time=AT + dt.timedelta(microseconds=1),
        failure={"reason": "TRAINER_OOM", "message": "Tränen", "metadata": {"a": "b"}},
        pause_count=2,
        pause_cause="user",
        checkpoint_digest="d" * 64,
        timed_s=1.5,
        timed_steps=7,
        estimated_bytes=2**41,
        peak_bytes=2**40,
    )
    db.write_sync(store.insert_job, full)
    assert db.read_sync(store.get_job, "j1") == full
    changed = dataclasses.replace(full, state=State.PAUSED, failure=None, end_time=None)
    db.write_sync(store.update_job, changed)
    assert db.read_sync(store.get_job, "j1") == changed
    assert db.read_sync(store.get_job, "j2") is None


def test_open_jobs_are_those_that_may_still_train(db: Database) -> None:
    for number, state in enumerate(State):
        db.write_sync(store.insert_job, job(f"j{number}", state))
    found = db.read_sync(store.open_jobs)
    assert [one.state for one in found] == [State.STARTING, State.RUNNING, State.PAUSED]


def test_jobs_come_newest_first_from_where_a_page_ended(db: Database) -> None:
    for number in range(5):
        db.write_sync(store.insert_job, job(f"j{number}", State.SUCCEEDED))
    first = db.read_sync(lambda c: store.list_jobs(c, before=None, limit=2))
    assert [one.id for one in first] == ["j4", "j3"]
    second = db.read_sync(lambda c: store.list_jobs(c, before="j3", limit=9))
    assert [one.id for one in second] == ["j2", "j1", "j0"]


def test_only_timed_jobs_of_the_same_model_compare(db: Database) -> None:
    other = SPEC.replace(base_model_digest="f" * 64)
    db.write_sync(store.insert_job, job("j0", State.SUCCEEDED, timed_steps=3))
    db.write_sync(store.insert_job, job("j1", State.SUCCEEDED))
    db.write_sync(store.insert_job, job("j2", State.SUCCEEDED, timed_steps=3, spec=other))
    db.write_sync(store.insert_job, job("j3", State.FAILED, timed_steps=3))
    assert [one.id for one in db.read_sync(store.comparable_jobs, "a" * 64)] == ["j0"]


def test_an_adapters_name_is_taken_by_what_is_made_and_what_will_be(db: Database) -> None:
    db.write_sync(store.insert_adapter, adapter("made"))
    db.write_sync(store.insert_job, job("j0", State.PAUSED, adapter_id="planned"))
    db.write_sync(store.insert_job, job("j1", State.CANCELLED, adapter_id="dropped"))
    taken = {
        name: db.read_sync(store.adapter_id_taken, name) for name in ("made", "planned", "dropped", "new")
    }
    assert taken == {"made": True, "planned": True, "dropped": False, "new": False}


def test_adapters_come_newest_first_also_within_one_instant(db: Database) -> None:
    later = AT + dt.timedelta(seconds=1)
    for name, at in (("a", AT), ("b", AT), ("c", later)):
        db.write_sync(store.insert_adapter, adapter(name, at))
    listed = db.read_sync(lambda c: store.list_adapters(c, before=None, limit=2))
    assert [one.id for one in listed] == ["c", "b"]
    position = store.adapter_position(listed[-1])
    assert [one.id for one in db.read_sync(lambda c: store.list_adapters(c, before=position, limit=2))] == [
        "a"
    ]
    assert db.read_sync(store.get_adapter, "b") == adapter("b")
    assert db.read_sync(store.get_adapter, "z") is None


def test_an_adapter_is_registered_once(db: Database) -> None:
    db.write_sync(store.insert_adapter, adapter("a"))
    with pytest.raises(sa.exc.IntegrityError):
        db.write_sync(store.insert_adapter, adapter("a"))


def test_an_intent_replaces_an_earlier_one_of_its_grant_and_goes(db: Database) -> None:
    def intent(jti: str, model: str) -> Intent:
        return Intent(jti, "unload", ModelRef("diffusers", model), "3.5", 2**40, "skillRuns/r", AT)

    for stored in (intent("a", "first"), intent("b", "other"), intent("a", "größer/second")):
        db.write_sync(gpu_intents.put, stored)
    assert db.read_sync(gpu_intents.get, "a") == intent("a", "größer/second")
    db.write_sync(gpu_intents.remove, "a")
    assert db.read_sync(gpu_intents.get, "a") is None
    assert db.read_sync(gpu_intents.get, "b") == intent("b", "other")

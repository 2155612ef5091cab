"""What the storage engine promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import multiprocessing as mp
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from nightshift_kit.errors import DbBusy, MigrationFailed, StorageIo
from nightshift_kit.storage import Database, schema_differences
from nightshift_kit.storage.migrations import migrate
from tests.kit.sample_store.store.tables import metadata, notes
from tests.support.postgres import PostgresServer

MIGRATIONS = "tests.kit.sample_store"
AT = dt.datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=dt.UTC)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        yield database


def add(connection: sa.Connection, note: str, body: str = "x") -> str:
    connection.execute(notes.insert(), {"id": note, "body": body, "at": AT})
    return note


def add_then_fail(connection: sa.Connection, note: str) -> None:
    add(connection, note)
    raise LookupError(note)


def ids(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(notes.c.id).order_by(notes.c.id)).scalars())


def test_migrations_make_what_the_metadata_says(db: Database) -> None:
    assert db.read_sync(schema_differences, metadata) == []


def test_migrating_again_changes_nothing(db: Database) -> None:
    db.write_sync(add, "a")
    db.migrate()
    assert db.read_sync(ids) == ["a"]


def test_migrations_go_down_and_up_again(db: Database) -> None:
    migrate(db.url, migrations=MIGRATIONS, name="sample", revision="base")
    assert set(db.read_sync(lambda c: sa.inspect(c).get_table_names())) == {"alembic_version"}
    db.migrate()
    assert db.read_sync(schema_differences, metadata) == []


def test_a_database_newer_than_the_program_is_refused(db: Database) -> None:
    db.write_sync(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(MigrationFailed, match="9999"):
        db.migrate()


def _migrate_and_add(url: str, note: str) -> None:
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        database.write_sync(add, note)


def test_processes_that_migrate_at_once_wait_for_each_other(database_url: str) -> None:
    spawn = mp.get_context("spawn")
    processes = [spawn.Process(target=_migrate_and_add, args=(database_url, f"n{i}")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with Database(database_url, migrations=MIGRATIONS, name="sample") as database:
        assert database.read_sync(ids) == ["n0", "n1", "n2"]


async def test_a_write_is_there_when_it_is_answered(db: Database) -> None:
    assert await db.write(add, "a") == "a"
    assert await db.read(ids) == ["a"]


async def test_many_writers_at_once(db: Database) -> None:
    answers = await asyncio.gather(*(db.write(add, f"{i:04d}") for i in range(500)))
    assert answers == [f"{i:04d}" for i in range(500)]
    assert await db.read(ids) == answers


async def test_a_call_that_fails_undoes_itself_alone(db: Database) -> None:
    async def one(i: int) -> object:
        return await (db.write(add_then_fail, f"{i:03d}") if i % 3 == 0 else db.write(add, f"{i:03d}"))

    answers = await asyncio.gather(*(one(i) for i in range(60)), return_exceptions=True)
    assert [isinstance(a, LookupError) for a in answers] == [i % 3 == 0 for i in range(60)]
    assert await db.read(ids) == [f"{i:03d}" for i in range(60) if i % 3]


async def test_a_broken_constraint_reaches_the_caller_alone(db: Database) -> None:
    results = await asyncio.gather(
        db.write(add, "a"), db.write(add, "b"), db.write(add, "a"), db.write(add, "c"), return_exceptions=True
    )
    assert isinstance(results[2], sa.exc.IntegrityError)
    assert await db.read(ids) == ["a", "b", "c"]


async def test_statements_that_are_wrong_harm_nobody_else(db: Database) -> None:
    results = await asyncio.gather(
        db.write(add, "a"),
        db.write(lambda c: c.execute(sa.text("SELECT * FROM nowhere"))),
        db.write(add, "b"),
        return_exceptions=True,
    )
    assert isinstance(results[1], sa.exc.DBAPIError)
    assert await db.read(ids) == ["a", "b"]
    assert db.healthy


def test_foreign_keys_hold(db: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        db.write_sync(lambda c: c.execute(notes.insert(), {"id": "a", "body": "", "parent": "none"}))


def test_a_reader_cannot_write(db: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)read.?only"):
        db.read_sync(add, "a")
    assert db.read_sync(ids) == []
    assert db.write_sync(add, "b") == "b"


async def test_a_reader_sees_one_snapshot(db: Database) -> None:
    await db.write(add, "a")
    first_read, written = threading.Event(), threading.Event()

    def twice(connection: sa.Connection) -> tuple[list[str], list[str]]:
        before = ids(connection)
        first_read.set()
        assert written.wait(20)
        return before, ids(connection)

    reading = asyncio.create_task(db.read(twice))
    await asyncio.to_thread(first_read.wait, 20)
    await db.write(add, "b")
    written.set()
    assert await reading == (["a"], ["a"])
    assert await db.read(ids) == ["a", "b"]


def test_threads_write_side_by_side(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: db.write_sync(add, f"{i:03d}"), range(200)))
    assert len(db.read_sync(ids)) == 200


def test_each_event_loop_gets_its_own_answers(db: Database) -> None:
    def one_loop(start: int) -> list[str]:
        async def many() -> list[str]:
            return await asyncio.gather(*(db.write(add, f"{start + i:04d}") for i in range(50)))

        return asyncio.run(many())

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(one_loop, range(0, 400, 100)))
    assert answers == [[f"{start + i:04d}" for i in range(50)] for start in range(0, 400, 100)]


async def test_a_cancelled_call_that_has_not_begun_is_not_run(db: Database) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        started.set()
        assert go_on.wait(20)
        add(connection, "slow")

    first = asyncio.create_task(db.write(slow))
    await asyncio.to_thread(started.wait, 20)
    second = asyncio.create_task(db.write(add, "never"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await first
    await db.write(add, "then")
    assert await db.read(ids) == ["slow", "then"]


async def test_a_write_that_commits_by_itself_is_refused(db: Database) -> None:
    with pytest.raises(RuntimeError, match="commits nothing itself"):
        await db.write(lambda c: c.commit())
    assert await db.write(add, "a") == "a"


async def test_nested_savepoints_of_a_call_work(db: Database) -> None:
    def partly(connection: sa.Connection) -> None:
        add(connection, "kept")
        with pytest.raises(LookupError), connection.begin_nested():
            add_then_fail(connection, "dropped")

    await asyncio.gather(db.write(add, "a"), db.write(partly), db.write(add, "b"))
    assert await db.read(ids) == ["a", "b", "kept"]


def test_write_inside_a_write_is_refused_rather_than_stuck(db: Database) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        db.write_sync(lambda _: db.write_sync(add, "a"))


def test_instants_keep_microseconds_and_zone(db: Database) -> None:
    east = AT.astimezone(dt.timezone(dt.timedelta(hours=9)))
    db.write_sync(lambda c: c.execute(notes.insert(), {"id": "a", "body": "", "at": east}))
    found = db.read_sync(lambda c: c.execute(sa.select(notes.c.at)).scalar_one())
    assert found == AT
    assert found.tzinfo == dt.UTC
    late = AT + dt.timedelta(microseconds=1)
    assert db.read_sync(lambda c: c.execute(sa.select(notes.c.id).where(notes.c.at < late)).scalar()) == "a"
    with pytest.raises(sa.exc.StatementError, match="time zone"):
        db.write_sync(
            lambda c: c.execute(notes.insert(), {"id": "b", "body": "", "at": AT.replace(tzinfo=None)})
        )


def test_another_writer_makes_busy_with_a_time_to_retry(database_url: str) -> None:
    holding, let_go = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> None:
        add(connection, "held")
        holding.set()
        assert let_go.wait(20)

    with (
        Database(database_url, migrations=MIGRATIONS, name="sample") as one,
        Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=0.1) as other,
    ):
        one.migrate()
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(one.write_sync, hold)
            assert holding.wait(20)
            with pytest.raises(DbBusy) as refused:
                other.write_sync(add, "refused")
            assert refused.value.retry_after_s
            assert other.read_sync(ids) == []
            let_go.set()
            held.result(20)
        assert other.healthy
        assert other.write_sync(add, "later") == "later"
        assert other.read_sync(ids) == ["held", "later"]


def _count_up(connection: sa.Connection) -> None:
    found = connection.execute(sa.select(notes.c.body).where(notes.c.id == "n")).scalar_one()
    connection.execute(notes.update().where(notes.c.id == "n").values(body=str(int(found) + 1)))


def test_reading_and_then_writing_loses_no_update_between_processes(database_url: str) -> None:
    """On PostgreSQL too, where READ COMMITTED alone would lose some."""
    with (
        Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=60) as one,
        Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=60) as other,
    ):
        one.migrate()
        one.write_sync(add, "n", "0")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: (one if i % 2 else other).write_sync(_count_up), range(100)))
        assert one.read_sync(lambda c: c.execute(sa.select(notes.c.body)).scalar_one()) == "100"


async def test_a_closed_database_refuses(db: Database) -> None:
    await db.write(add, "a")
    db.close()
    with pytest.raises(StorageIo):
        await db.write(add, "b")
    with pytest.raises(StorageIo):
        await db.read(ids)


async def test_closing_finishes_what_waits(database_url: str) -> None:
    database = Database(database_url, migrations=MIGRATIONS, name="sample")
    database.migrate()
    waiting = [asyncio.create_task(database.write(add, f"{i:03d}")) for i in range(100)]
    await asyncio.sleep(0)
    await asyncio.to_thread(database.close)
    assert len(await asyncio.gather(*waiting)) == 100
    with Database(database_url, migrations=MIGRATIONS, name="sample") as again:
        assert len(again.read_sync(ids)) == 100


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO notes (id, body) VALUES (:id, :text)",
        "INSERT INTO notes (id, body) VALUES (:text, NULL)",
        "INSERT INTO notes (id, body, parent) VALUES ('c', 'x', :text)",
        "SELECT CAST(:text AS integer) + abs(-9223372036854775807 - 1)",
    ],
)
def test_errors_quote_no_data_of_users(db: Database, statement: str) -> None:
    secret = "Mia from class 4b"
    db.write_sync(add, "a")
    with pytest.raises(sa.exc.DBAPIError) as refused:
        db.write_sync(lambda c: c.execute(sa.text(statement), {"id": "a", "text": secret}).all())
    shown = "".join(traceback.format_exception(refused.value))
    assert "Mia" not in shown


@pytest.mark.postgres
async def test_a_lost_connection_is_said_and_replaced(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    with Database(postgres_url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        assert await database.write(add, "a") == "a"
        assert await database.read(ids) == ["a"]
        name = sa.make_url(postgres_url).database
        postgres_server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        with pytest.raises(StorageIo):
            await database.write(add, "lost")
        assert database.healthy
        assert await database.write(add, "b") == "b"
        for _ in range(5):
            # Each reader thread has its own connection, and each of those may be one that was lost.
            with contextlib.suppress(StorageIo):
                await database.read(ids)
        assert await database.read(ids) == ["a", "b"]


@pytest.mark.postgres
def test_a_server_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://nobody@/none?host={tmp_path}"
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        with pytest.raises(StorageIo):
            database.migrate()
        with pytest.raises(StorageIo):
            database.write_sync(add, "a")
        with pytest.raises(StorageIo):
            database.read_sync(ids)


@pytest.mark.postgres
def test_a_deadlock_with_another_program_is_busy(postgres_url: str) -> None:
    """Somebody who takes rows in another order, outside of ``Database``."""
    with Database(postgres_url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        database.write_sync(add, "a")
        database.write_sync(add, "b")
        engine = sa.create_engine(postgres_url)
        lock = notes.update().values(body="y")
        ours_has_a, theirs_has_b = threading.Event(), threading.Event()

        def ours(connection: sa.Connection) -> None:
            connection.execute(lock.where(notes.c.id == "a"))
            ours_has_a.set()
            assert theirs_has_b.wait(20)
            connection.execute(lock.where(notes.c.id == "b"))

        with ThreadPoolExecutor(1) as pool, engine.connect() as other, other.begin():
            # The one who finds the deadlock loses; ours looks first.
            other.execute(sa.text("SET LOCAL deadlock_timeout = '30s'"))
            other.execute(lock.where(notes.c.id == "b"))
            waiting = pool.submit(database.write_sync, ours)
            assert ours_has_a.wait(20)
            theirs_has_b.set()
            other.execute(lock.where(notes.c.id == "a"))
            with pytest.raises(DbBusy):
                waiting.result(20)
        engine.dispose()
        assert database.write_sync(add, "c") == "c"

"""What the audit outbox promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from nightshift_kit.audit import Event, Outbox
from nightshift_kit.audit.chain import ChainHead, SealedRow, seal, sealed_columns, verify, verify_outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import AuditUnavailable
from nightshift_kit.storage import Database
from tests.kit.sample_store.store.tables import notes

MIGRATIONS = "tests.kit.sample_store"
OUTBOX = Outbox("sample", FakeClock(dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC)))


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=30) as database:
        database.migrate()
        yield database


def note(connection: sa.Connection, name: str) -> Event:
    connection.execute(notes.insert(), {"id": name, "body": "x"})
    return OUTBOX.append(
        connection,
        kind="note.made",
        actor="tests",
        subject=f"notes/{name}",
        payload={"ratio": 0.1, "n": 2**60},
    )


def note_then_fail(connection: sa.Connection, name: str) -> None:
    note(connection, name)
    raise LookupError(name)


def all_events(db: Database) -> list[Event]:
    return db.read_sync(OUTBOX.events, 0, 10_000)


async def test_events_commit_with_their_change_and_leave_no_gap(db: Database) -> None:
    await asyncio.gather(
        *(db.write(note_then_fail if i % 4 == 0 else note, f"{i:03d}") for i in range(100)),
        return_exceptions=True,
    )
    events = all_events(db)
    assert [event.seq for event in events] == list(range(1, 76))
    assert {event.subject for event in events} == {
        f"notes/{name}" for name in await db.read(lambda c: list(c.execute(sa.select(notes.c.id)).scalars()))
    }
    assert verify_outbox(events).event_count == 75
    assert await db.read(OUTBOX.last_seq) == 75


def test_what_was_appended_is_what_is_read(db: Database) -> None:
    written = [db.write_sync(note, f"n{i}") for i in range(5)]
    assert all_events(db) == written


def test_pages_of_events_fit_together(db: Database) -> None:
    written = [db.write_sync(note, f"n{i}") for i in range(7)]
    pages: list[Event] = []
    while page := db.read_sync(OUTBOX.events, len(pages), 3):
        assert len(page) <= 3
        pages += page
    assert pages == written
    assert db.read_sync(OUTBOX.events, 7, 3) == []


def test_appenders_of_several_processes_queue(database_url: str) -> None:
    with (
        Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=60) as one,
        Database(database_url, migrations=MIGRATIONS, name="sample", busy_timeout_s=60) as other,
    ):
        one.migrate()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: (one if i % 2 else other).write_sync(note, f"{i:03d}"), range(120)))
        events = all_events(one)
    assert len(events) == 120
    assert verify_outbox(events).valid


@pytest.mark.postgres
def test_appenders_without_the_write_lock_queue_at_the_head(postgres_url: str) -> None:
    """Another program that writes to the same PostgreSQL database outside of ``Database``."""
    with Database(postgres_url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        database.write_sync(note, "first")
        engine = sa.create_engine(postgres_url)

        def append(i: int) -> None:
            with engine.begin() as connection:
                note(connection, f"{i:03d}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(append, range(80)))
        engine.dispose()
        events = all_events(database)
    assert [event.seq for event in events] == list(range(1, 82))
    assert verify_outbox(events).valid


def test_no_audit_no_action(db: Database) -> None:
    db.write_sync(lambda c: c.execute(sa.text("ALTER TABLE kit_outbox RENAME TO lost")))
    with pytest.raises(AuditUnavailable, match="nothing was done"):
        db.write_sync(note, "a")
    assert db.read_sync(lambda c: c.execute(sa.select(notes.c.id)).all()) == []
    assert db.healthy
    db.write_sync(lambda c: c.execute(sa.text("ALTER TABLE lost RENAME TO kit_outbox")))
    assert db.write_sync(note, "a").seq == 1


def test_a_taken_position_refuses_the_action(db: Database) -> None:
    db.write_sync(note, "a")
    db.write_sync(lambda c: c.execute(sa.text("UPDATE kit_outbox_head SET seq = 0, hash = ''")))
    with pytest.raises(AuditUnavailable):
        db.write_sync(note, "b")
    assert db.read_sync(lambda c: list(c.execute(sa.select(notes.c.id)).scalars())) == ["a"]


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE kit_outbox SET actor = 'nobody' WHERE seq = 3",
        "UPDATE kit_outbox SET payload = '{}' WHERE seq = 3",
        "UPDATE kit_outbox SET time = '2026-01-05T09:00:00.000001Z' WHERE seq = 3",
        "UPDATE kit_outbox SET hash = upper(hash) WHERE seq = 3",
        "DELETE FROM kit_outbox WHERE seq = 3",
        "UPDATE kit_outbox SET seq = seq + 100 WHERE seq >= 3",
    ],
)
def test_tampering_in_the_database_is_found(db: Database, tampering: str) -> None:
    for i in range(5):
        db.write_sync(note, f"n{i}")
    db.write_sync(lambda c: c.execute(sa.text(tampering)))
    found = verify_outbox(all_events(db))
    assert (found.valid, found.first_bad_seq) == (False, 3)


def test_a_sealed_chain_in_a_table_verifies_and_shows_tampering(db: Database) -> None:
    for i in range(6):
        db.write_sync(note, f"n{i}")
    metadata = sa.MetaData()
    table = sa.Table("sealed", metadata, *sealed_columns())
    rows, head = seal(ChainHead(), all_events(db))

    def store(connection: sa.Connection) -> None:
        metadata.create_all(connection)
        connection.execute(table.insert(), [row._asdict() for row in rows])

    def check(connection: sa.Connection) -> int:
        found = verify(connection.execute(sa.select(table).order_by(table.c.seq)))
        assert found.valid == (found.first_bad_seq == 0)
        return found.first_bad_seq

    db.write_sync(store)
    assert db.read_sync(check) == 0
    for column in SealedRow._fields:
        if column in ("seq", "source_seq"):
            change = table.update().where(table.c.seq == 4).values({column: 99})
            back = table.update().where(table.c[column] == 99).values({column: 4})
        else:
            change = table.update().where(table.c.seq == 4).values({column: table.c[column] + " "})
            back = table.update().where(table.c.seq == 4).values({column: getattr(rows[3], column)})
        db.write_sync(lambda c, change=change: c.execute(change) and None)
        assert db.read_sync(check) == 4, column
        db.write_sync(lambda c, back=back: c.execute(back) and None)
        assert db.read_sync(check) == 0, column
    assert head.seq == 6

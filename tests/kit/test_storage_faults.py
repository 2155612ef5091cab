"""Disks that fill up or fail, damaged files, killed processes: what the writer on SQLite does."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy as sa

from nightshift_kit.errors import (
    DiskFull,
    MigrationFailed,
    StorageCorrupt,
    StorageIo,
    StorageReadOnly,
    StorageUnsupported,
)
from nightshift_kit.storage import Database
from nightshift_kit.storage.engines import check_sqlite_version
from tests.kit.sample_store.store.tables import notes
from tests.support.syscall_faults import fail_calls, in_child

MIGRATIONS = "tests.kit.sample_store"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'x' / 'a.db'}", migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        yield database


def add(connection: sa.Connection, note: str, body: str = "x") -> str:
    connection.execute(notes.insert(), {"id": note, "body": body})
    return note


def ids(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(notes.c.id).order_by(notes.c.id)).scalars())


def open_again(url: str) -> list[str]:
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        return database.read_sync(ids)


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 2)])
def test_an_sqlite_with_the_wal_bug_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(StorageUnsupported, match=r"WAL-reset.*3\.51\.3"):
        check_sqlite_version(version)


def test_a_fixed_sqlite_is_taken() -> None:
    check_sqlite_version((3, 51, 3))
    check_sqlite_version((3, 53, 4))


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/a.db?mode=ro",
        "mysql://h/d",
        "postgresql+pg8000://h/d",
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises((StorageUnsupported, sa.exc.NoSuchModuleError, ModuleNotFoundError)):
        Database(url, migrations=MIGRATIONS, name="sample")


def test_files_are_private(db: Database) -> None:
    path = Path(str(sa.make_url(db.url).database))
    db.write_sync(add, "a")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_settings_that_durability_hangs_on(db: Database) -> None:
    def pragmas(connection: sa.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "trusted_schema")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert db.write_sync(pragmas) == ["wal", 2, 1, 1, 0]


def _fsync_fails(url: str) -> tuple[list[str], list[str], bool, str | None]:
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        database.write_sync(add, "acknowledged")
        fail_calls(("fsync", "fdatasync"), errno.EIO)
        reasons = []
        for name in ("during", "after"):
            try:
                database.write_sync(add, name)
            except (StorageIo, StorageReadOnly) as error:
                reasons.append(error.reason)
        return reasons, database.read_sync(ids), database.healthy, database.problem


def test_after_a_failed_fsync_nothing_more_is_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    reasons, seen, healthy, problem = in_child(_fsync_fails, url)
    assert reasons == ["STORAGE_IO", "STORAGE_READ_ONLY"]
    assert seen == ["acknowledged"], "readers go on, and see what was acknowledged"
    assert not healthy
    assert problem == "STORAGE_IO (SQLITE_IOERR)"
    assert "acknowledged" in open_again(url)


async def _group_with_failing_fsync(url: str) -> list[str]:
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        await database.write(add, "first")
        fail_calls(("fsync", "fdatasync"), errno.EIO)
        results = await asyncio.gather(
            *(database.write(add, f"{i}") for i in range(50)), return_exceptions=True
        )
        return [getattr(result, "reason", "answered") for result in results]


def _run_group(url: str) -> list[str]:
    return asyncio.run(_group_with_failing_fsync(url))


def test_no_call_of_a_group_is_answered_when_its_fsync_fails(tmp_path: Path) -> None:
    reasons = in_child(_run_group, f"sqlite:///{tmp_path / 'a.db'}")
    assert set(reasons) <= {"STORAGE_IO", "STORAGE_READ_ONLY"}
    assert reasons[0] == "STORAGE_IO"


def _no_space(url: str) -> tuple[list[str], bool, list[str]]:
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        database.write_sync(add, "acknowledged")
        fail_calls(("pwrite64", "write"), errno.ENOSPC)
        reasons = []
        for name in ("one", "two"):
            try:
                database.write_sync(add, name)
            except (DiskFull, StorageIo, StorageReadOnly) as error:
                reasons.append(error.reason)
        return reasons, database.healthy, database.read_sync(ids)


def test_no_space_left_is_said_and_is_no_lasting_harm(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    # The child's pipe is written with write(2) as well: it answers by its exit code alone.
    spawn = mp.get_context("spawn")
    process = spawn.Process(target=_no_space_exit, args=(url,))
    process.start()
    process.join(30)
    process.kill()
    process.join()
    assert process.exitcode == 42
    assert open_again(url) == ["acknowledged"]


def _no_space_exit(url: str) -> None:
    good = _no_space(url) == (["DISK_FULL", "DISK_FULL"], True, ["acknowledged"])
    os._exit(42 if good else 1)


async def test_a_full_database_refuses_whole_groups_and_goes_on_when_there_is_space(db: Database) -> None:
    await db.write(add, "before")

    def limit(connection: sa.Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    pages = await db.read(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
    await db.write(limit, pages + 1)
    results = await asyncio.gather(
        *(db.write(add, f"{i}", "x" * 40_000) for i in range(4)), return_exceptions=True
    )
    assert all(isinstance(result, DiskFull) for result in results), results
    assert await db.read(ids) == ["before"]
    assert db.healthy
    await db.write(limit, 1_000_000)
    await db.write(add, "after", "x" * 40_000)
    assert await db.read(ids) == ["after", "before"]


def test_a_read_only_database_says_so(db: Database) -> None:
    def read_only_then_add(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        try:
            add(connection, "a")
        finally:
            connection.exec_driver_sql("PRAGMA query_only=OFF")

    with pytest.raises(StorageReadOnly):
        db.write_sync(read_only_then_add)
    assert db.write_sync(add, "b") == "b"


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is no database, whatever its name says" * 200)
    with (
        Database(f"sqlite:///{path}", migrations=MIGRATIONS, name="sample") as database,
        pytest.raises(StorageCorrupt, match="backup"),
    ):
        database.migrate()


def test_damage_in_the_middle_is_found_and_ends_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Database(f"sqlite:///{path}", migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
        for i in range(200):
            database.write_sync(add, f"{i:03d}", "x" * 500)
    raw = bytearray(path.read_bytes())
    for page in range(4, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 512] = os.urandom(512)
    path.write_bytes(raw)
    with Database(f"sqlite:///{path}", migrations=MIGRATIONS, name="sample") as database:
        with pytest.raises(StorageCorrupt):
            database.write_sync(ids)
        assert not database.healthy
        with pytest.raises(StorageReadOnly):
            database.write_sync(add, "more")


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageIo, match="ENOTDIR"):
        Database(f"sqlite:///{tmp_path / 'file' / 'x' / 'a.db'}", migrations=MIGRATIONS, name="sample")


def test_migrations_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with (
        Database(f"sqlite:///{tmp_path / 'a.db'}", migrations="tests.kit", name="sample") as database,
        pytest.raises(MigrationFailed, match="no migrations/versions"),
    ):
        database.migrate()


def test_errors_hold_no_data_of_users(db: Database) -> None:
    secret = "Mia from class 4b"
    db.write_sync(add, "a")
    with pytest.raises(sa.exc.IntegrityError) as refused:
        db.write_sync(add, "a", secret)
    assert secret not in str(refused.value)


def _write_until_killed(url: str, pipe: Connection) -> None:
    async def many(database: Database, lane: int) -> None:
        i = 0
        while True:
            name = await database.write(add, f"{os.getpid()}-{lane}-{i}")
            pipe.send(name)
            i += 1

    async def lanes() -> None:
        with Database(url, migrations=MIGRATIONS, name="sample") as database:
            await asyncio.gather(*(many(database, lane) for lane in range(8)))

    asyncio.run(lanes())


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    """The process is killed, not the machine; the fsync before each answer is shown with strace elsewhere."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with Database(url, migrations=MIGRATIONS, name="sample") as database:
        database.migrate()
    spawn = mp.get_context("spawn")
    dice = random.Random(3)
    acknowledged: set[str] = set()
    for _ in range(3):
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_write_until_killed, args=(url, theirs))
        process.start()
        theirs.close()
        acknowledged.add(ours.recv())
        until = time.monotonic() + dice.uniform(0.02, 0.2)
        while time.monotonic() < until:
            if ours.poll(0.001):
                acknowledged.add(ours.recv())
        os.kill(process.pid or 0, signal.SIGKILL)
        try:
            while True:
                acknowledged.add(ours.recv())
        except (EOFError, OSError):
            process.join()
    assert len(acknowledged) > 20
    assert acknowledged <= set(open_again(url))

"""SQLAlchemy engines as we want them: durable, strict, one BEGIN that means what it says."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any

import psycopg
import pysqlite3
import sqlalchemy as sa
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import NullPool

from nightshift_kit.errors import StorageUnsupported

# Older ones can lose committed transactions when several connections checkpoint (the WAL-reset bug).
OLDEST_SQLITE = (3, 51, 3)

_OPEN_RETRY_S = 0.02


def check_sqlite_version(version: tuple[int, ...]) -> None:
    """Refuse an SQLite that we would not trust with data.

    Args:
        version: ``sqlite_version_info`` of the driver.

    Raises:
        StorageUnsupported: Older than 3.51.3.
    """
    if version < OLDEST_SQLITE:
        found, needed = (".".join(map(str, v)) for v in (version, OLDEST_SQLITE))
        raise StorageUnsupported(
            f"SQLite {found} has the WAL-reset bug; {needed} or later is needed (pysqlite3 >= 0.6.1)"
        )


def open_engine(
    url: str, *, role: str, name: str, busy_timeout_s: float, application: str = "nightshift"
) -> sa.Engine:
    """Engine for one role; connections are opened by whoever holds them, there is no pool.

    Args:
        url: ``sqlite:////absolute/path`` or ``postgresql+psycopg://…``.
        role: "write" (BEGIN takes the database's one write lock), "read" (a snapshot that cannot write) or
            "migrate" (as "write", with foreign keys off while tables are rebuilt).
        name: The database's name; on PostgreSQL it also names the write lock.
        busy_timeout_s: Longest wait for another process.
        application: Shown in pg_stat_activity.

    Raises:
        StorageUnsupported: Another database, a driver that is too old, or SQLite in memory.
    """
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed, role, busy_timeout_s)
    if backend == "postgresql":
        return _postgres(parsed, role, name, busy_timeout_s, application)
    raise StorageUnsupported(f"{name}: {backend} is not supported; use sqlite or postgresql+psycopg")


def _sqlite(url: sa.URL, role: str, busy_timeout_s: float) -> sa.Engine:
    check_sqlite_version(pysqlite3.sqlite_version_info)
    if not url.database or url.database == ":memory:" or url.query:
        raise StorageUnsupported("SQLite needs a file without URL options: sqlite:////absolute/path.db")
    path = Path(url.database).absolute()
    _private_file(path)
    engine = sa.create_engine(
        url.set(database=str(path)),
        module=pysqlite3.dbapi2,
        poolclass=NullPool,
        # Statements may be logged, users' data not.
        hide_parameters=True,
        connect_args={"timeout": busy_timeout_s, "isolation_level": None, "cached_statements": 512},
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        _enter_wal(connection, busy_timeout_s)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA foreign_keys={'OFF' if role == 'migrate' else 'ON'}")
        connection.execute("PRAGMA trusted_schema=OFF")
        # What a person asked us to forget must not stay readable in free pages.
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA cache_size=-16384")
        connection.execute("PRAGMA journal_size_limit=67108864")
        if role == "read":
            connection.execute("PRAGMA query_only=ON")

    begin = "BEGIN" if role == "read" else "BEGIN IMMEDIATE"

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _enter_wal(connection: Any, busy_timeout_s: float) -> None:
    # SQLite does not call the busy handler for this switch: two processes that start at once would fail.
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except pysqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == pysqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(_OPEN_RETRY_S)
            continue
        if mode != "wal":
            raise StorageUnsupported(f"SQLite refuses write-ahead logging here (journal_mode={mode})")
        return


def _private_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives the log and the index the mode of the database file.
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _postgres(url: sa.URL, role: str, name: str, busy_timeout_s: float, application: str) -> sa.Engine:
    if url.get_driver_name() != "psycopg":
        raise StorageUnsupported("use psycopg 3: postgresql+psycopg://…")
    if role == "read":
        isolation: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    else:
        # Not REPEATABLE READ: its snapshot would be taken before the write lock is ours.
        isolation = {"isolation_level": "READ COMMITTED"}
    engine = sa.create_engine(
        url,
        poolclass=NullPool,
        # Statements may be logged, users' data not.
        hide_parameters=True,
        connect_args={
            "connect_timeout": max(2, round(busy_timeout_s)),
            "application_name": application,
            # A server that is cut off does not reset the connection: without these a call waits for hours.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
        execution_options=isolation,
    )
    timeout_ms = round(busy_timeout_s * 1000)

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute(f"SET lock_timeout = {timeout_ms:d}")
            cursor.execute("SET synchronous_commit = on")
            if role == "write":
                # A process that hangs within a transaction keeps the write lock no longer than others wait.
                cursor.execute(f"SET idle_in_transaction_session_timeout = {timeout_ms:d}")
        connection.commit()

    sa.event.listen(engine, "handle_error", _without_data)
    if role != "read":
        # One writer at a time, as SQLite has it: code that reads and then writes is right on both.
        lock = zlib.crc32(f"nightshift/{name}".encode())

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock:d})")

    return engine


def _without_data(context: ExceptionContext) -> None:
    """Take users' data out of an error's text, which ends in logs.

    PostgreSQL quotes the offending value ("invalid input syntax …") or the row ("Failing row contains …") for
    SQLSTATE classes 22 (data) and 23 (constraints). What a program needs is in ``orig.diag`` all the same.
    """
    original = context.original_exception
    if not isinstance(original, psycopg.Error) or not (original.sqlstate or "").startswith(("22", "23")):
        return
    diag = original.diag
    places = {"constraint": diag.constraint_name, "table": diag.table_name, "column": diag.column_name}
    text = " ".join([f"SQLSTATE {original.sqlstate}", *(f"{k}={v}" for k, v in places.items() if v)])
    original.args = (text,)
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (text,)

"""One service's database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from nightshift_kit.storage.engines import open_engine
from nightshift_kit.storage.migrations import migrate
from nightshift_kit.storage.problems import file_error
from nightshift_kit.storage.readers import Readers
from nightshift_kit.storage.scrubbing import scrub
from nightshift_kit.storage.writer import Writer

T = TypeVar("T")


class Database:
    """One database: a writer thread that groups commits, and a few reader threads.

    Functions get an ``sqlalchemy.Connection`` within a transaction, commit nothing themselves, fetch what
    they return (no open results), and have no effect but through the connection.

    Args:
        url: ``sqlite:////absolute/path.db`` or ``postgresql+psycopg://user@host/database``.
        migrations: Dotted name of the package whose ``store/migrations/versions`` hold the migrations
            ("nightshift_lab"), or of the migrations folder itself ("nightshift_lab.store.migrations").
        name: Of the database, for messages, threads and the write lock; usually the service's.
        readers: Threads that read.
        busy_timeout_s: Longest wait for another process that writes. On PostgreSQL also how long a process
            that hangs within a transaction may keep the write lock.
        guard: Called first within every transaction that writes, on its connection and under the write lock;
            what it raises reaches all whose writes were in it, and nothing of them is done.

    Raises:
        StorageUnsupported: The database or its driver is not one that we trust.
        StorageIo, StorageReadOnly, …: It cannot be opened.
    """

    def __init__(
        self,
        url: str,
        *,
        migrations: str,
        name: str,
        readers: int = 4,
        busy_timeout_s: float = 5.0,
        guard: Callable[[sa.Connection], None] | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self._migrations = migrations
        try:
            self._write_engine = open_engine(url, role="write", name=name, busy_timeout_s=busy_timeout_s)
            self._read_engine = open_engine(url, role="read", name=name, busy_timeout_s=busy_timeout_s)
        except OSError as error:
            raise file_error(error, name) from error
        self._writer = Writer(self._write_engine, name, guard)
        self._readers = Readers(self._read_engine, name, readers)

    @property
    def backend(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._write_engine.dialect.name

    @property
    def healthy(self) -> bool:
        """Whether writes are taken."""
        return self._writer.problem is None

    @property
    def problem(self) -> str | None:
        """Why writes are refused; None while healthy."""
        return self._writer.problem

    def migrate(self) -> None:
        """Bring the schema to head; several processes may do so at once, one does it and the others wait.

        Raises:
            MigrationFailed: A migration failed, or the database is newer than this version.
            DbBusy, DiskFull, StorageReadOnly, StorageIo: As for writes.
        """
        migrate(self.url, migrations=self._migrations, name=self.name)

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` on the writer thread; resolves when its transaction is on disk.

        What ``fn`` raises undoes it alone and reaches the caller. A call that is cancelled before it began is
        not run; one that is cancelled later may be stored all the same.

        Raises:
            DbBusy: Another process holds the database; nothing was done.
            DiskFull: Nothing was done.
            StorageIo: The commit failed below us; what is on disk is not known. SQLite then takes no writes
                until the service is started again (``healthy``).
            StorageReadOnly: The database takes no writes.
        """
        return await self._writer.write(fn, *args)

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` on a snapshot in a reader thread; it cannot write.

        Raises:
            DbBusy, StorageIo, StorageCorrupt: The database could not be read.
        """
        return await self._readers.read(fn, *args)

    def write_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """As ``write``, for threads and tests; blocks."""
        return self._writer.write_sync(fn, *args)

    def read_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """As ``read``, for threads and tests; blocks."""
        return self._readers.read_sync(fn, *args)

    async def scrub(self) -> None:
        """Leave nothing of what was deleted in the database's own files.

        SQLite overwrites what is deleted, but its log holds pages as they were: the log is written back and
        emptied, which waits for readers. PostgreSQL frees dead rows (VACUUM); the bytes go as pages are used
        again.

        Raises:
            DbBusy: Others read or write all the time; try again.
            DiskFull, StorageIo, StorageReadOnly: As for writes.
        """
        await asyncio.to_thread(scrub, self._write_engine, self.name)

    def close(self) -> None:
        """Finish waiting writes and running reads, then close; further calls raise ``StorageIo``."""
        self._writer.close()
        self._readers.close()
        self._write_engine.dispose()
        self._read_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

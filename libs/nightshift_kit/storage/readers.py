"""A few threads that read, each with its own connection and a snapshot a call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from nightshift_kit.errors import StorageIo
from nightshift_kit.storage.problems import detail, storage_error

T = TypeVar("T")

_log = structlog.get_logger("nightshift.storage")


class Readers:
    """Runs functions on snapshots that cannot write.

    Args:
        engine: With role "read".
        name: The database's name, for messages and threads.
        threads: How many read at once.
    """

    def __init__(self, engine: sa.Engine, name: str, threads: int) -> None:
        self._engine = engine
        self._name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-reader")
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._open: list[sa.Connection] = []
        self._closed = False

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` in a reader thread."""
        if self._closed:
            raise StorageIo(f"{self._name}: the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, fn, args)

    def read_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """As ``read``, for threads."""
        if self._closed:
            raise StorageIo(f"{self._name}: the database is closed")
        return self._pool.submit(self._run, fn, args).result()

    def close(self) -> None:
        """Wait for running reads, then close the connections."""
        self._closed = True
        self._pool.shutdown(wait=True)
        with self._lock:
            connections, self._open = self._open, []
        for connection in connections:
            connection.close()

    def _run(self, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            connection = self._connection()
            # Rolled back, not committed: there is nothing to commit.
            transaction = connection.begin()
            try:
                return fn(connection, *args)
            finally:
                transaction.rollback()
        except Exception as error:
            failure = storage_error(error, self._name)
            if failure is None:
                raise
            if self._engine.dialect.name != "sqlite":
                self._drop_connection()
            raise failure from error

    def _connection(self) -> sa.Connection:
        held: sa.Connection | None = getattr(self._mine, "connection", None)
        if held is None or held.closed or held.invalidated:
            held = self._engine.connect()
            self._mine.connection = held
            with self._lock:
                self._open.append(held)
        return held

    def _drop_connection(self) -> None:
        held: sa.Connection | None = getattr(self._mine, "connection", None)
        if held is None:
            return
        self._mine.connection = None
        with self._lock:
            if held in self._open:
                self._open.remove(held)
        try:
            held.invalidate()
            held.close()
        except Exception as error:  # noqa: BLE001 - the connection is broken already
            _log.warning("connection_close_failed", database=self._name, error=detail(error))

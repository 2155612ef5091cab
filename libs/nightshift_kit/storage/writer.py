"""The one writer of a database: waiting calls share a commit, and with it an fsync."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from nightshift_kit.errors import NightshiftError, StorageIo, StorageReadOnly
from nightshift_kit.storage.problems import detail, storage_error

T = TypeVar("T")

_log = structlog.get_logger("nightshift.storage")

_GROUP_CALLS = 1024
# A group that has worked this long commits what it has: the first caller in it waits for all of it.
_GROUP_WORK_S = 0.02


class _Call:
    """One waiting call; ``loop`` is None where a thread waits instead of a task."""

    __slots__ = ("args", "done", "error", "fn", "future", "loop", "result")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.fn = fn
        self.args = args
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[Any] | None = None
        self.done: threading.Event | None = None
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Runs functions in transactions on a thread of its own.

    Args:
        engine: With role "write".
        name: The database's name, for messages and the thread.
        guard: See ``Database``.
    """

    def __init__(
        self, engine: sa.Engine, name: str, guard: Callable[[sa.Connection], None] | None = None
    ) -> None:
        self._engine = engine
        self._guard = guard
        self._name = name
        self._sqlite = engine.dialect.name == "sqlite"
        self._waiting: deque[_Call] = deque()
        self._wake = threading.Condition(threading.Lock())
        self._closing = False
        self._problem: str | None = None
        self._connection: sa.Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name}-writer", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why writes are refused, or None."""
        return self._problem

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` and wait until its transaction is on disk."""
        call = _Call(fn, args)
        call.loop = asyncio.get_running_loop()
        call.future = call.loop.create_future()
        self._submit(call)
        result: T = await call.future
        return result

    def write_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """As ``write``, for threads."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("write_sync inside a write would wait for itself: use the connection you have")
        call = _Call(fn, args)
        call.done = threading.Event()
        self._submit(call)
        call.done.wait()
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def close(self) -> None:
        """Finish what waits, then stop; later calls are refused."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _submit(self, call: _Call) -> None:
        with self._wake:
            if self._closing:
                raise StorageIo(f"{self._name}: the database is closed")
            self._waiting.append(call)
            # The writer waits only on an empty queue, so only the first call has to wake it.
            if len(self._waiting) == 1:
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                if not self._waiting:
                    break
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP_CALLS))]
            while group:
                group = self._commit_group(group)
        self._drop_connection()

    def _commit_group(self, group: list[_Call]) -> list[_Call]:
        """Run calls of the group in one transaction; gives back those that its time did not suffice for."""
        rest: list[_Call] = []
        group = [call for call in group if call.future is None or not call.future.cancelled()]
        if not group:
            return rest
        try:
            rest = self._transaction(group)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is handed to those who wait
            failure = storage_error(error, self._name) or error
            self._note(error, failure)
            rest = []
            for call in group:
                call.result, call.error = None, failure
            self._roll_back()
        self._deliver(group[: len(group) - len(rest)])
        return rest

    def _transaction(self, group: Sequence[_Call]) -> list[_Call]:
        if self._problem is not None:
            raise StorageReadOnly(f"{self._name}: no writes since {self._problem}; start the service again")
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect()
        transaction = connection.begin()
        if self._guard is not None:
            self._guard(connection)
        driver: Any = connection.connection.driver_connection
        alone = len(group) == 1
        stop_at = time.monotonic() + _GROUP_WORK_S
        ran = 0
        for call in group:
            if ran and time.monotonic() > stop_at:
                break
            ran += 1
            if not alone:
                driver.execute("SAVEPOINT nightshift_call")
            try:
                call.result = call.fn(connection, *call.args)
            except BaseException as error:  # noqa: BLE001 - belongs to the caller who waits
                call.error = self._undone(driver, transaction, error, alone)
            else:
                if not transaction.is_active or connection.get_transaction() is not transaction:
                    raise RuntimeError(
                        f"{call.fn!r} ended the writer's transaction: a write commits nothing itself"
                    )
                if not alone:
                    driver.execute("RELEASE SAVEPOINT nightshift_call")
        if alone and group[0].error is not None:
            transaction.rollback()
        else:
            transaction.commit()
        return list(group[ran:])

    def _undone(
        self, driver: Any, transaction: sa.RootTransaction, error: BaseException, alone: bool
    ) -> BaseException:
        """Undo one call alone and give the error it gets; raises where the whole transaction is gone."""
        failure = storage_error(error, self._name)
        self._note(error, failure)
        # A full disk or an I/O error may make SQLite roll back everything by itself.
        gone = self._sqlite and not driver.in_transaction
        if gone or not transaction.is_active or self._problem is not None:
            raise failure or error
        if not alone:
            driver.execute("ROLLBACK TO SAVEPOINT nightshift_call")
            driver.execute("RELEASE SAVEPOINT nightshift_call")
        return failure or error

    def _note(self, error: BaseException, failure: BaseException | None) -> None:
        if self._problem is not None or not isinstance(failure, NightshiftError):
            return
        if failure.reason in ("STORAGE_IO", "STORAGE_CORRUPT"):
            # Not the exception itself: a traceback may show users' data.
            name = detail(error.orig if isinstance(error, sa.exc.DBAPIError) else error)
            # PostgreSQL recovers its own files; we only lost the line to it and may connect again.
            if self._sqlite:
                # A second fsync can succeed though the first one lost pages: there is nothing to retry.
                self._problem = f"{failure.reason} ({name})"
            _warn("storage_failed", database=self._name, reason=failure.reason, error=name)

    def _roll_back(self) -> None:
        """After a failure: end the transaction, keep the connection if it is good for more.

        On SQLite the last connection's end would throw away the log's index; on a full disk a new one cannot
        be made, and after a failed fsync its making would show what nobody was promised.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            connection.rollback()
        except Exception as error:  # noqa: BLE001 - what failed is already told to those who wait
            _warn("rollback_failed", database=self._name, error=detail(error))
            self._drop_connection()
            return
        if connection.invalidated or not self._sqlite:
            self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except Exception as error:  # noqa: BLE001 - the connection is broken already
            _warn("connection_close_failed", database=self._name, error=detail(error))

    def _deliver(self, group: Sequence[_Call]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Call]] = {}
        for call in group:
            if call.done is not None:
                call.done.set()
            elif call.loop is not None:
                by_loop.setdefault(call.loop, []).append(call)
        for loop, calls in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, calls)
            except RuntimeError:
                # The loop ended before its answer came; the transaction stands.
                _warn("answer_without_listener", database=self._name, calls=len(calls))


def _warn(event: str, **fields: object) -> None:
    # The disk that failed may be the log's as well; those who wait for an answer must get it all the same.
    with contextlib.suppress(Exception):
        _log.error(event, **fields)


def _resolve(calls: Sequence[_Call]) -> None:
    for call in calls:
        future = call.future
        if future is None or future.done():
            continue
        if call.error is None:
            future.set_result(call.result)
        elif isinstance(call.error, StopIteration):
            # A future cannot carry it.
            future.set_exception(RuntimeError("a write raised StopIteration"))
        else:
            future.set_exception(call.error)

"""The store as the core uses it: one transaction a decision, its audit event inside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.ids import IdFactory
from nightshift_kit.storage import Database

T = TypeVar("T")


class Changes:
    """Wakes watchers after a commit. Thread-safe; watchers read the store themselves, so nothing piles up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def notify(self) -> None:
        """Something changed."""
        with self._lock:
            watchers = list(self._watchers.items())
        for event, loop in watchers:
            loop.call_soon_threadsafe(event.set)

    def subscribe(self) -> asyncio.Event:
        """An event that is set on every change; the caller clears it."""
        event = asyncio.Event()
        with self._lock:
            self._watchers[event] = asyncio.get_running_loop()
        return event

    def unsubscribe(self, event: asyncio.Event) -> None:
        """Ends a subscription."""
        with self._lock:
            self._watchers.pop(event, None)


class Books:
    """Database, outbox, clock and ids in one hand."""

    def __init__(self, db: Database, outbox: Outbox, clock: Clock, ids: IdFactory) -> None:
        self.db = db
        self.outbox = outbox
        self.clock = clock
        self.ids = ids
        self.changes = Changes()

    async def change(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn(connection, *args)` in one transaction and tells watchers once it is on disk.

        Whoever is cancelled while waiting leaves the transaction to finish: a run that is stopped must not
        lose what was decided about it.
        """
        writing = asyncio.ensure_future(self.db.write(fn, *args))
        writing.add_done_callback(self._written)
        return await asyncio.shield(writing)

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """As `change`, for what no watcher looks at."""
        return await self.db.write(fn, *args)

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn(connection, *args)` on a snapshot."""
        return await self.db.read(fn, *args)

    def event(
        self, connection: sa.Connection, kind: str, actor: str, subject: str, **payload: object
    ) -> None:
        """Appends an audit event to the caller's transaction."""
        self.outbox.append(connection, kind=kind, actor=actor, subject=subject, payload=payload)

    def _written(self, writing: asyncio.Future[Any]) -> None:
        # Reading the exception keeps asyncio from reporting it again where the waiting task was cancelled.
        if not writing.cancelled() and writing.exception() is None:
            self.changes.notify()

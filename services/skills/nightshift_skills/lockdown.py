"""The global lock: in memory at once, durable before it is acknowledged, lifted by an admin alone."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from nightshift_skills.books import Books
from nightshift_skills.gate import Gate
from nightshift_skills.preemption import Preemptor
from nightshift_skills.store import plane
from nightshift_skills.store.plane import Lock


class Lockdown:
    """Sets and lifts the lock. `engage` may be called on any thread's loop."""

    def __init__(
        self, books: Books, gate: Gate, preemptor: Preemptor, on_release: Callable[[], None]
    ) -> None:
        self._books = books
        self._gate = gate
        self._preemptor = preemptor
        self._on_release = on_release

    async def get(self) -> Lock:
        """The lock as it is stored."""
        return await self._books.read(plane.get_lock)

    async def engage(self, actor: str, comment: str) -> Lock:
        """Stops everything and keeps it stopped, over restarts.

        Everything is stopped before the disk is asked. Where the disk refuses, the lock holds in this process
        and the error tells the caller that a restart would lift it.

        Raises:
            DiskFull, StorageIo, AuditUnavailable, …: the lock holds, but is not durable.
        """
        if not self._gate.locked:
            self._preemptor.lock()
        return await self._books.change(self._change, True, actor, comment)

    async def release(self, actor: str, comment: str) -> Lock:
        """Lifts the lock; work begins again only when the machine is found idle."""
        lock = await self._books.change(self._change, False, actor, comment)
        self._gate.release()
        self._on_release()
        return lock

    def _change(self, connection: sa.Connection, engaged: bool, actor: str, comment: str) -> Lock:
        lock = Lock(engaged, actor, comment, self._books.clock.now())
        plane.save_lock(connection, lock)
        # The comment is a person's own words; the audit log holds none.
        self._books.event(connection, "lock.engaged" if engaged else "lock.released", actor, "lock")
        return lock

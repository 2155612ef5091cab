"""File changes by intent: promised in a transaction, done by rename, confirmed in a second transaction.

The life of an intent::

    planned ──apply──▶ done
       │  └─────────▶ drifted    the file was neither as expected nor as promised; it is left as found
       └───withdraw─▶ withdrawn  the file is still what it was

A crash at any moment leaves a planned intent; ``recover`` finishes it by looking at the contents alone.
The new content is swapped in with RENAME_EXCHANGE and what comes out is compared with what was expected, so
that a change by somebody else between looking and renaming is found as well, and put back. Where a file
system cannot swap, that last moment is open.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import sqlalchemy as sa
import structlog

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.errors import DriftDetected, NightshiftError, NotFound, StorageIo, StorageReadOnly
from nightshift_kit.ids import IdFactory, new_id
from nightshift_kit.safe_files.change import NEW_FILE_MODE, Change
from nightshift_kit.safe_files.intents import EffectPending, Intent, Outcome, Recovery, drift
from nightshift_kit.safe_files.root import FileState, Root, check_relative
from nightshift_kit.storage.database import Database
from nightshift_kit.storage.kit_schema import KIT

_log = structlog.get_logger("nightshift.safe_files")
_table = KIT.intents


class FileEffects:
    """Changes files of one root, one at a time.

    Args:
        root: Where the files are.
        db: Where the intents are; it has the kit's tables.
        clock: Gives the intents' times.
        ids: Gives their ids.
    """

    def __init__(
        self, root: Root, db: Database, *, clock: Clock | None = None, ids: IdFactory = new_id
    ) -> None:
        self._root = root
        self._db = db
        self._clock = clock or SystemClock()
        self._ids = ids
        self._one_at_a_time = threading.Lock()
        self._applying: str | None = None
        self._withdrawing: set[str] = set()
        self._problem: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether changes are made; not after a failed fsync, until the service is started again."""
        return self._problem is None

    @property
    def problem(self) -> str | None:
        """Why no changes are made; None while healthy."""
        return self._problem

    def plan_write(
        self,
        connection: sa.Connection,
        relative: str,
        content: bytes,
        expected_digest: str | None,
        *,
        mode: int | None = None,
    ) -> str:
        """Promise, in the caller's transaction, that the file will have this content.

        Args:
            connection: Within ``db.write``.
            relative: Path beneath the root; missing folders are made when it is done.
            content: All of the new file.
            expected_digest: SHA-256 of the file as the caller knows it, hex; None where it must not exist.
            mode: Permission bits; None keeps those of the file, 0644 for a new one.

        Returns:
            The intent's id; call ``apply`` after the commit.

        Raises:
            DriftDetected: The file is not what the caller knows.
            EffectPending: Another change of the file is not done yet.
            PathEscape, NotRegularFile, StorageIo: As ``Root.open``.
        """
        return self._plan(connection, relative, content, expected_digest, mode)

    def plan_remove(self, connection: sa.Connection, relative: str, expected_digest: str) -> str:
        """Promise that the file will be gone. Arguments, result and errors as for ``plan_write``."""
        return self._plan(connection, relative, None, expected_digest, None)

    def intent(self, connection: sa.Connection, intent_id: str) -> Intent:
        """An intent with its contents.

        Raises:
            NotFound: There is none.
        """
        row = connection.execute(sa.select(_table).where(_table.c.id == intent_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no intent {intent_id}")
        return Intent(**row._mapping)

    async def apply(self, intent_id: str) -> None:
        """Do what was promised; on disk when it returns. Doing it again does nothing.

        Raises:
            DriftDetected: The file is neither old nor new; it is left as it is, the intent is over.
            DiskFull: The file is as it was; the intent stays: apply again, or withdraw.
            StorageReadOnly, StorageIo: It stays as well; after StorageIo no further changes are made.
            PathEscape, NotRegularFile: Something else stands at the path now; the intent stays.
            NotFound: There is no such intent, or it was withdrawn.
        """
        await asyncio.to_thread(self.apply_sync, intent_id)

    def apply_sync(self, intent_id: str) -> None:
        """As ``apply``, for threads; blocks."""
        with self._one_at_a_time:
            intent = self._db.read_sync(self.intent, intent_id)
            if intent.state == "done":
                return
            if intent.state == "drifted":
                raise drift(intent.path)
            if intent.state != "planned":
                raise NotFound(f"the intent {intent_id} was withdrawn")
            self._finish(intent)

    def withdraw(self, connection: sa.Connection, intent_id: str) -> None:
        """Take a promise back, in the caller's transaction, because it could not be kept.

        Raises:
            DriftDetected: The file is not what it was before; it may have been changed already.
            EffectPending: It is being applied just now.
            NotFound: There is no such intent, or it is over.
        """
        intent = self.intent(connection, intent_id)
        if intent.state != "planned":
            raise NotFound(f"the intent {intent_id} is over ({intent.state})")
        # First said, then looked: apply says and looks in the same order, so one of the two gives way. Should
        # the transaction fail, the promise is kept by the next start's recovery, or withdrawn again.
        self._withdrawing.add(intent_id)
        try:
            self._require_unchanged(intent)
            self._end(connection, intent_id, "withdrawn")
        except BaseException:
            self._withdrawing.discard(intent_id)
            raise

    async def recover(self) -> list[Recovery]:
        """Finish what a crash left planned, oldest first; call it at start, before anything is planned."""
        return await asyncio.to_thread(self.recover_sync)

    def recover_sync(self) -> list[Recovery]:
        """As ``recover``, for threads; blocks."""
        query = sa.select(_table.c.id).where(_table.c.state == "planned").order_by(_table.c.id)
        planned = self._db.read_sync(lambda connection: list(connection.execute(query).scalars()))
        done = []
        with self._one_at_a_time:
            for intent_id in planned:
                intent = self._db.read_sync(self.intent, intent_id)
                error: NightshiftError | None = None
                try:
                    outcome = self._finish(intent)
                except DriftDetected:
                    outcome = Outcome.DRIFTED
                except NightshiftError as failure:
                    outcome, error = Outcome.FAILED, failure
                _log.info("intent_recovered", intent=intent_id, path=intent.path, outcome=outcome.value)
                done.append(Recovery(intent_id, intent.path, outcome, error))
        return done

    def _plan(
        self,
        connection: sa.Connection,
        relative: str,
        content: bytes | None,
        expected_digest: str | None,
        mode: int | None,
    ) -> str:
        check_relative(relative)
        pending = sa.select(_table.c.id).where(_table.c.path == relative, _table.c.state == "planned")
        if connection.execute(pending).first():
            raise EffectPending(f"{relative}: another change of the file is not done yet")
        found = self._found(relative)
        old_digest = sha256_hex(found.content) if found else None
        if old_digest != expected_digest or (content is None and found is None):
            raise drift(relative)
        intent_id = self._ids()
        values: dict[str, Any] = {
            "id": intent_id,
            "path": relative,
            "state": "planned",
            "old_digest": old_digest,
            "old_content": found.content if found else None,
            "old_mode": found.mode if found else None,
            "new_digest": None if content is None else sha256_hex(content),
            "new_content": content,
            "new_mode": None if content is None else _mode(mode, found),
            "planned_at": self._clock.now(),
        }
        connection.execute(_table.insert(), values)
        return intent_id

    def _require_unchanged(self, intent: Intent) -> None:
        if self._applying == intent.id:
            raise EffectPending(f"{intent.path}: the change is being made")
        found = self._found(intent.path)
        if (sha256_hex(found.content) if found else None) != intent.old_digest:
            raise drift(intent.path)

    def _found(self, relative: str) -> FileState | None:
        try:
            return self._root.state(relative)
        except FileNotFoundError:
            return None

    def _finish(self, intent: Intent) -> Outcome:
        if self._problem is not None:
            raise StorageReadOnly(f"no files are changed since {self._problem}; start the service again")
        self._root.require_in_place()
        try:
            self._applying = intent.id
            if intent.id in self._withdrawing:
                raise EffectPending(f"{intent.path}: the change is being withdrawn")
            outcome = Change(self._root, intent).make()
        except StorageIo as error:
            # A second fsync can succeed though the first one lost pages: there is nothing to retry.
            self._problem = str(error)
            _log.error("file_change_failed", intent=intent.id, path=intent.path, error=str(error))
            raise
        except DriftDetected:
            self._db.write_sync(self._end, intent.id, "drifted")
            raise
        finally:
            self._applying = None
        self._db.write_sync(self._end, intent.id, "done")
        return outcome

    def _end(self, connection: sa.Connection, intent_id: str, state: str) -> None:
        connection.execute(
            _table.update()
            .where(_table.c.id == intent_id, _table.c.state == "planned")
            .values(state=state, finished_at=self._clock.now())
        )


def _mode(wanted: int | None, found: FileState | None) -> int:
    if wanted is not None:
        return wanted & 0o777
    return found.mode & 0o777 if found else NEW_FILE_MODE

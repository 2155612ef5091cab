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
import contextlib
import datetime as dt
import enum
import os
import threading
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.errors import (
    Code,
    DriftDetected,
    NightshiftError,
    NotFound,
    NotRegularFile,
    PathEscape,
    StorageIo,
    StorageReadOnly,
)
from nightshift_kit.ids import IdFactory, new_id
from nightshift_kit.safe_files.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_with
from nightshift_kit.safe_files.root import (
    FileState,
    Root,
    check_regular,
    check_relative,
    raise_typed,
    read_handle,
)
from nightshift_kit.storage.database import Database
from nightshift_kit.storage.kit_schema import KIT

_log = structlog.get_logger("nightshift.safe_files")
_table = KIT.intents
_NEW_FILE_MODE = 0o644


class EffectPending(NightshiftError):
    """Another change of the same file is promised and not yet done."""

    code = Code.ABORTED
    reason = "EFFECT_PENDING"
    default_retry_after_s = 0.5


class Outcome(enum.Enum):
    """What recovery did with an intent."""

    REDONE = "redone"
    CONFIRMED = "confirmed"
    DRIFTED = "drifted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery found.

    Attributes:
        intent_id: Of the intent.
        path: Of its file, relative to the root.
        outcome: REDONE: the change was missing and is done now. CONFIRMED: it was there already. DRIFTED: the
            file is somebody else's by now. FAILED: see ``error``; the intent stays planned.
        error: Only with FAILED.
    """

    intent_id: str
    path: str
    outcome: Outcome
    error: NightshiftError | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A promised change of one file.

    Attributes:
        id: UUIDv7.
        path: Relative to the root.
        state: "planned", "done", "withdrawn" or "drifted".
        old_digest: SHA-256 of the file before, hex; None where there was none.
        old_content: Its bytes.
        old_mode: Its permission bits.
        new_digest: SHA-256 of the file after; None where there shall be none.
        new_content: Its bytes.
        new_mode: Its permission bits.
        planned_at: When it was promised, UTC.
        finished_at: When it left "planned".
    """

    id: str
    path: str
    state: str
    old_digest: str | None
    old_content: bytes | None
    old_mode: int | None
    new_digest: str | None
    new_content: bytes | None
    new_mode: int | None
    planned_at: dt.datetime
    finished_at: dt.datetime | None


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
                raise _drift(intent.path)
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
            raise _drift(relative)
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
            raise _drift(intent.path)

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
            outcome = _Change(self._root, intent).make()
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


class _Change:
    """One change of one file, beginning from wherever a crash may have left it.

    Beside the file, in its folder, two names belong to the intent: ``aside`` holds the new content until the
    swap and what was swapped out after it; ``again`` holds the new content while it is written a second time.
    Both end in ".tmp" and begin with a dot: no ``*.json`` matches them.
    """

    def __init__(self, root: Root, intent: Intent) -> None:
        self._root = root
        self._intent = intent
        self._path = intent.path
        above, _, self._name = intent.path.rpartition("/")
        self._aside = f".nightshift-{intent.id}.tmp"
        self._again = f".nightshift-{intent.id}.again.tmp"
        self._folder_path = above
        self._folder = -1

    def make(self) -> Outcome:
        """Make the change.

        Raises:
            DriftDetected, DiskFull, StorageReadOnly, StorageIo, PathEscape, NotRegularFile: As ``apply``.
        """
        content = self._intent.new_content
        try:
            self._folder = self._root.open_folder(self._folder_path, make=content is not None)
        except FileNotFoundError:
            # Gone with its folder.
            return Outcome.CONFIRMED
        try:
            return self._remove() if content is None else self._write(content)
        except (FileNotFoundError, FileExistsError) as error:
            # Somebody plays with our own names in this folder.
            raise _drift(self._path) from error
        except OSError as error:
            raise_typed(error, self._path)
        finally:
            os.close(self._folder)

    def _write(self, content: bytes) -> Outcome:
        old, new = self._intent.old_digest, self._intent.new_digest
        self._unlink(self._again)
        found, found_digest = self._read(self._name)
        if found_digest == new:
            self._judge_swapped_out()
            if old != new:
                # Whether it reached the disk is not known, and a second fsync of the same file would not
                # tell: so it is written once more.
                self._fresh(self._again, content, found)
                os.rename(self._again, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                os.fsync(self._folder)
            return Outcome.CONFIRMED
        self._unlink(self._aside)
        if found_digest != old:
            raise _drift(self._path)
        try:
            self._fresh(self._aside, content, found)
        except BaseException:
            with contextlib.suppress(OSError):
                self._unlink(self._aside)
            raise
        if found is None:
            self._put_new()
        elif rename_with(self._folder, self._aside, self._name, RENAME_EXCHANGE):
            self._judge_swapped_out()
        else:
            os.rename(self._aside, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        return Outcome.REDONE

    def _remove(self) -> Outcome:
        old = self._intent.old_digest
        found, found_digest = self._read(self._name)
        if found is not None:
            if found_digest != old:
                raise _drift(self._path)
            self._unlink(self._aside)
            if not rename_with(self._folder, self._name, self._aside, RENAME_NOREPLACE):
                os.rename(self._name, self._aside, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        aside_digest = self._digest(self._aside)
        if aside_digest not in (None, old):
            # It was changed in the moment before it was taken away: give it back, unless its place is taken.
            with contextlib.suppress(FileExistsError):
                if not rename_with(self._folder, self._aside, self._name, RENAME_NOREPLACE):
                    os.link(self._aside, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                    self._unlink(self._aside)
            os.fsync(self._folder)
            raise _drift(self._path)
        self._unlink(self._aside)
        os.fsync(self._folder)
        return Outcome.REDONE if found is not None else Outcome.CONFIRMED

    def _judge_swapped_out(self) -> None:
        """After the swap: drop what came out if it is what was expected, else put it back."""
        digest = self._digest(self._aside)
        if (
            digest not in (None, self._intent.old_digest, self._intent.new_digest)
            and not self._is_beginning()
        ):
            rename_with(self._folder, self._aside, self._name, RENAME_EXCHANGE)
            self._unlink(self._aside)
            os.fsync(self._folder)
            raise _drift(self._path)
        self._unlink(self._aside)

    def _is_beginning(self) -> bool:
        """Whether ``aside`` is our own half-written content, left by a crash before any swap."""
        try:
            state, _ = self._read(self._aside)
        except (NotRegularFile, PathEscape):
            return False
        return state is not None and (self._intent.new_content or b"").startswith(state.content)

    def _put_new(self) -> None:
        """Give the new file its name, unless somebody else took it."""
        try:
            if not rename_with(self._folder, self._aside, self._name, RENAME_NOREPLACE):
                # link(2) refuses a taken name on every file system that has it.
                os.link(self._aside, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._unlink(self._aside)
        except FileExistsError as error:
            self._unlink(self._aside)
            raise _drift(self._path) from error

    def _fresh(self, name: str, content: bytes, like: FileState | None) -> None:
        """A new file with the content, the mode and, where we may, the owner; on disk when it returns."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o600, dir_fd=self._folder)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            if like is not None:
                status = os.fstat(handle)
                if (status.st_uid, status.st_gid) != like.owner:
                    # Only root may give files away; the mode, set after it, is what must not be lost.
                    with contextlib.suppress(PermissionError):
                        os.fchown(handle, *like.owner)
            os.fchmod(handle, self._intent.new_mode or _NEW_FILE_MODE)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read(self, name: str) -> tuple[FileState | None, str | None]:
        path = f"{self._folder_path}/{name}" if self._folder_path else name
        try:
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None, None
        try:
            check_regular(os.fstat(handle), path)
            readable = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(handle)
        state = read_handle(readable, path)
        return state, sha256_hex(state.content)

    def _digest(self, name: str) -> str | None:
        """Digest of a file, None where there is none, "" where it is no file that we would touch."""
        try:
            return self._read(name)[1]
        except (NotRegularFile, PathEscape):
            return ""

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)


def _mode(wanted: int | None, found: FileState | None) -> int:
    if wanted is not None:
        return wanted & 0o777
    return found.mode & 0o777 if found else _NEW_FILE_MODE


def _drift(path: str) -> DriftDetected:
    return DriftDetected(
        f"{path}: the file is not what it was known to be; look at it and propose anew",
        metadata={"path": path},
    )

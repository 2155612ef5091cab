"""One change of one file, from wherever a crash may have left it to its end."""

from __future__ import annotations

import contextlib
import os

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.errors import NotRegularFile, PathEscape
from nightshift_kit.safe_files.intents import Intent, Outcome, drift
from nightshift_kit.safe_files.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_with
from nightshift_kit.safe_files.root import FileState, Root, check_regular, raise_typed, read_handle

NEW_FILE_MODE = 0o644


class Change:
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
            raise drift(self._path) from error
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
            raise drift(self._path)
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
                raise drift(self._path)
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
            raise drift(self._path)
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
            raise drift(self._path)
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
            raise drift(self._path) from error

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
            os.fchmod(handle, self._intent.new_mode or NEW_FILE_MODE)
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

"""A folder that is held open; paths are opened beneath it and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from nightshift_kit.errors import NotRegularFile, PathEscape, StorageIo
from nightshift_kit.safe_files.kernel import openat2, require_openat2
from nightshift_kit.storage.problems import file_error

_LONGEST_PATH = 1024
_LONGEST_NAME = 255
_LARGEST_FILE = 64 * 1024 * 1024
# Signs that look like a dot or a slash and are neither; compatibility forms are found by normalising.
_LOOKALIKES = frozenset("\u2044\u2215\u29f8\u29f9\u2216\ua789")
_MEANINGFUL = "./\\"


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was read.

    Attributes:
        content: All of it.
        mode: Permission bits.
        owner: User and group id.
    """

    content: bytes
    mode: int
    owner: tuple[int, int]


def check_relative(relative: str) -> str:
    """Give a relative path back if it can only mean one thing on every system.

    Args:
        relative: Parts joined by "/".

    Raises:
        PathEscape: It is empty, absolute, too long or no Unicode; a part is "", "." or ".."; it holds a NUL
            or another control character, a backslash, or a sign that looks like a dot or a slash.
    """
    parts = relative.split("/")
    if not relative or any(part in ("", ".", "..") for part in parts):
        raise PathEscape("a path must be relative, its parts neither empty nor '.' nor '..'")
    try:
        size, sizes = len(relative.encode()), [len(part.encode()) for part in parts]
    except UnicodeEncodeError as error:
        raise PathEscape("a path must be Unicode") from error
    if size > _LONGEST_PATH or max(sizes) > _LONGEST_NAME:
        raise PathEscape(f"a path has at most {_LONGEST_PATH} bytes, its parts {_LONGEST_NAME}")
    if any(unicodedata.category(sign) == "Cc" for sign in relative) or "\\" in relative:
        raise PathEscape("a path holds neither control characters nor backslashes")
    plain = unicodedata.normalize("NFKC", relative)
    same = all(plain.count(sign) == relative.count(sign) for sign in _MEANINGFUL)
    if not same or _LOOKALIKES.intersection(relative):
        raise PathEscape("a path holds no signs that look like a dot or a slash")
    return relative


class Root:
    """A folder and everything beneath it.

    What a path means is decided by the kernel at the moment of opening, so there is no moment between
    checking and opening in which somebody could put a link there.

    Args:
        path: The folder; a link in this path itself is followed, it comes from the settings.

    Raises:
        StorageUnsupported: The kernel lacks openat2.
        StorageReadOnly, StorageIo: The folder cannot be opened.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise file_error(error, self.path.name) from error
        try:
            require_openat2(self._handle)
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Let the folder go."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, relative: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        """Open a regular file.

        Args:
            relative: Path beneath the root.
            flags: As for open(2). O_TRUNC takes effect only after the file was found to be a good one.
            mode: Permissions of a new file.

        Returns:
            Its handle; the caller closes it.

        Raises:
            PathEscape: The path is not one, passes a link, or the file has a second name (a hard link).
            NotRegularFile: A folder, FIFO, device or socket.
            FileNotFoundError, FileExistsError: As open(2).
            DiskFull, StorageReadOnly, StorageIo: As their names say.
        """
        check_relative(relative)
        truncate = bool(flags & os.O_TRUNC)
        flags &= ~os.O_TRUNC
        with self._typed(relative):
            handle = self._open_or_create(relative, flags, mode)
            if truncate:
                try:
                    os.ftruncate(handle, 0)
                except BaseException:
                    os.close(handle)
                    raise
            return handle

    def read(self, relative: str, limit_bytes: int = _LARGEST_FILE) -> bytes:
        """Content of a regular file.

        Raises:
            As ``open``; NotRegularFile also where it is larger than ``limit_bytes``.
        """
        return self.state(relative, limit_bytes).content

    def state(self, relative: str, limit_bytes: int = _LARGEST_FILE) -> FileState:
        """Content, permissions and owner of a regular file, of one and the same file.

        Raises:
            As ``read``.
        """
        handle = self.open(relative)
        with self._typed(relative):
            return read_handle(handle, relative, limit_bytes)

    def exists(self, relative: str) -> bool:
        """Whether a regular file is there.

        Raises:
            As ``open`` where something else is there: it is neither a file nor free.
        """
        check_relative(relative)
        with self._typed(relative):
            try:
                os.close(self._checked(relative))
            except FileNotFoundError:
                return False
        return True

    def listdir(self, relative: str = "") -> list[str]:
        """Names in a folder, sorted; "" is the root.

        Raises:
            PathEscape, FileNotFoundError, StorageIo: As ``open``.
            NotRegularFile: Not a folder.
        """
        handle = self.open_folder(relative)
        try:
            with os.scandir(handle) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(handle)

    def files(self, relative: str = "") -> Iterator[str]:
        """Paths of all regular files beneath a folder, sorted folder by folder; links are passed over."""
        handle = self.open_folder(relative)
        try:
            with os.scandir(handle) as entries:
                found = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False))
                    for entry in entries
                )
        finally:
            os.close(handle)
        for name, is_folder, is_file in found:
            path = f"{relative}/{name}" if relative else name
            if is_folder:
                yield from self.files(path)
            elif is_file:
                yield path

    def open_folder(self, relative: str = "", *, make: bool = False) -> int:
        """Handle of a folder beneath the root; the caller closes it.

        Args:
            relative: "" is the root itself.
            make: Make it, and those above it, where they are missing; on disk when this returns.

        Raises:
            PathEscape, FileNotFoundError, NotRegularFile, StorageIo: As ``open``.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY
        if relative:
            check_relative(relative)
        with self._typed(relative or self.path.name, folder=True):
            try:
                return openat2(self._handle, relative or ".", flags)
            except FileNotFoundError:
                if not make:
                    raise
            above, _, name = relative.rpartition("/")
            parent = self.open_folder(above, make=True)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=parent)
                    os.fsync(parent)
            finally:
                os.close(parent)
            return openat2(self._handle, relative, flags)

    def require_in_place(self) -> None:
        """Check that the root's path still leads to the folder that is held.

        Raises:
            StorageIo: The folder was moved or replaced: what is written into it would reach nobody.
        """
        held = os.fstat(self._handle)
        try:
            found = self.path.stat()
        except OSError as error:
            raise StorageIo(f"{self.path.name}: the folder is gone; start the service again") from error
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            raise StorageIo(f"{self.path.name}: the folder was replaced; start the service again")

    def _open_or_create(self, relative: str, flags: int, mode: int) -> int:
        create = bool(flags & os.O_CREAT)
        while True:
            if not (create and flags & os.O_EXCL):
                try:
                    return self._reopened(relative, flags & ~os.O_CREAT)
                except FileNotFoundError:
                    if not create:
                        raise
            try:
                return openat2(self._handle, relative, flags | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise

    def _reopened(self, relative: str, flags: int) -> int:
        """Open for real what was looked at: the very file, whatever stands at its path by now."""
        looked_at = self._checked(relative)
        try:
            # O_NONBLOCK: opening a FIFO or a lease-holding file must not wait for anybody.
            return os.open(f"/proc/self/fd/{looked_at}", flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        finally:
            os.close(looked_at)

    def _checked(self, relative: str) -> int:
        """O_PATH handle of a regular file with one name; it opens nothing: no FIFO waits, no device acts."""
        handle = openat2(self._handle, relative, os.O_PATH)
        try:
            check_regular(os.fstat(handle), relative)
        except BaseException:
            os.close(handle)
            raise
        return handle

    @contextlib.contextmanager
    def _typed(self, relative: str, *, folder: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise_typed(error, relative, folder=folder)


def check_regular(status: os.stat_result, relative: str) -> None:
    """Refuse all but regular files with one name.

    Raises:
        NotRegularFile: A folder, FIFO, device or socket.
        PathEscape: A hard link: its other name may lie outside.
    """
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFile(f"{relative}: not a regular file")
    if status.st_nlink > 1:
        raise PathEscape(f"{relative}: the file has another name (a hard link)")


def read_handle(handle: int, relative: str, limit_bytes: int = _LARGEST_FILE) -> FileState:
    """Read a file from its handle and close it."""
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise NotRegularFile(f"{relative}: larger than {limit_bytes} bytes")
    return FileState(content, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))


def raise_typed(error: OSError, relative: str, *, folder: bool = False) -> NoReturn:
    """Raise the typed error for a failed system call.

    Args:
        error: As raised by ``os`` or ``kernel``.
        relative: Path beneath the root, for the message.
        folder: Whether a folder was wanted.
    """
    if error.errno in (errno.EXDEV, errno.ELOOP):
        raise PathEscape(f"{relative}: the path leaves its folder or passes a link") from error
    if error.errno == errno.ENOTDIR and folder:
        raise NotRegularFile(f"{relative}: not a folder") from error
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        raise FileNotFoundError(errno.ENOENT, "no such file", relative) from error
    if error.errno == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, "the file exists", relative) from error
    if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ENOTEMPTY):
        raise NotRegularFile(f"{relative}: not a regular file") from error
    if error.errno == errno.EBADF:
        raise StorageIo(f"{relative}: the root is closed") from error
    raise file_error(error, relative) from error

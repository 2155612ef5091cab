"""Reading files of a tree that nobody vouches for: no link followed, nothing but regular files opened."""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unreadable(Exception):
    """A record that cannot be imported: `reason` in UPPER_SNAKE_CASE, `detail` without any of its content."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def open_folder(name: str, parent_fd: int | None = None) -> int:
    """Handle of a folder; raises OSError, also where the last component is a link."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)


class RunFolder:
    """An open run folder; remembers which files were read, for the fingerprint."""

    def __init__(self, parent_fd: int, name: str) -> None:
        self.fd = open_folder(name, parent_fd)
        self.names: list[str] = []
        self._folders: dict[str, int | None] = {}

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._folders.values():
            if fd is not None:
                os.close(fd)
        os.close(self.fd)

    def has_folder(self, name: str) -> bool:
        """Whether the folder holds a real subfolder of that name."""
        return self._subfolder(name) is not None

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """At most `limit_bytes` of a file "name" or "folder/name"; None where there is no such regular file.

        The name comes out of the record and may be anything; whatever is not a plain name below the run
        folder is treated as missing. Raises Unreadable for errors of the disk.
        """
        folder, slash, base = name.rpartition("/")
        if not base or base in (".", "..") or "\0" in name or "/" in folder or folder in (".", ".."):
            return None
        parent = self._subfolder(folder) if slash else self.fd
        if parent is None:
            return None
        try:
            fd = os.open(base, _FILE_FLAGS, dir_fd=parent)
        except OSError as error:
            # ELOOP: a link; ENXIO: a FIFO or socket; the others: not there or not a possible name.
            if error.errno in (
                errno.ENOENT,
                errno.ELOOP,
                errno.ENXIO,
                errno.ENAMETOOLONG,
                errno.ENOTDIR,
                errno.EINVAL,
            ):
                return None
            raise Unreadable("RECORD_UNREADABLE", os.strerror(error.errno or 0)) from error
        except ValueError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            self.names.append(name)
            data = os.read(fd, min(limit_bytes, status.st_size + 1))
            if len(data) < min(limit_bytes, status.st_size):
                parts = [data]
                size = len(data)
                while size < limit_bytes and (more := os.read(fd, limit_bytes - size)):
                    parts.append(more)
                    size += len(more)
                data = b"".join(parts)
        except OSError as error:
            raise Unreadable("RECORD_UNREADABLE", os.strerror(error.errno or 0)) from error
        finally:
            os.close(fd)
        return data

    def kind_of(self, name: str) -> str:
        """What stands there, unopened: "missing", "file", "link", "folder" or "special"."""
        try:
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
        except OSError:
            return "missing"
        if stat.S_ISREG(mode):
            return "file"
        if stat.S_ISLNK(mode):
            return "link"
        return "folder" if stat.S_ISDIR(mode) else "special"

    def is_empty(self) -> bool:
        """Whether the folder holds nothing at all."""
        with os.scandir(self.fd) as entries:
            return next(entries, None) is None

    def _subfolder(self, name: str) -> int | None:
        if name not in self._folders:
            try:
                self._folders[name] = open_folder(name, self.fd)
            except (OSError, ValueError):
                self._folders[name] = None
        return self._folders[name]

"""Records that the plane has not taken yet, on disk: bounded, crash-safe, shared by processes.

One file a record, ``{nanoseconds}-{pid}-{number}.{kind}``, mode 0600: a header line with length and
SHA-256, then the request's bytes. A record appears by rename, so a reader never sees half of one; what a
power failure leaves torn is known by its digest and set aside. Names sort by age. Delivering a record twice
does no harm (the plane's methods are idempotent), so no process locks another out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = ("run", "feedback")
MAX_REFUSED_FILES = 100

_MAGIC = b"NIGHTSHIFT-SPOOL 1 "
_NAME = re.compile(r"(\d{20})-(\d+)-(\d+)\.(run|feedback)")
_TEMPORARY = re.compile(r"\.(\d{20})-\d+-\d+\.(?:run|feedback)\.part")
# A temporary file older than this belongs to a process that died while writing.
_ABANDONED_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One waiting record."""

    name: str
    kind: str
    size_bytes: int


class SpoolFailed(OSError):
    """The spool cannot take a record: no folder, no space, no right."""


class Spool:
    """A folder of waiting records; thread-safe.

    When ``max_bytes`` would be passed, the oldest records go and ``dropped_count`` grows.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 64 * 1024 * 1024, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._folder = folder
        self._refused = folder / "refused"
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._unsynced: set[str] = set()
        self._scanned = False
        self.dropped_count = 0
        self.refused_count = 0

    @property
    def folder(self) -> Path:
        """Where the records lie."""
        return self._folder

    def __len__(self) -> int:
        with self._lock:
            self._scan_once()
            return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of the waiting files."""
        with self._lock:
            self._scan_once()
            return self._bytes

    def append(self, kind: str, payload: bytes) -> Entry:
        """Keeps one record: a crash of the process loses nothing then, ``sync`` holds against power.

        Raises:
            SpoolFailed: if it cannot be kept; it is counted as dropped.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        content = (
            b"%s%d %s\n" % (_MAGIC, len(payload), hashlib.sha256(payload).hexdigest().encode()) + payload
        )
        with self._lock:
            self._scan_once()
            if len(content) > self._max_bytes:
                self.dropped_count += 1
                raise SpoolFailed(f"a record of {len(content)} bytes is larger than the whole spool")
            self._make_room(len(content))
            name = f"{self._clock_ns():020d}-{os.getpid()}-{next(self._numbers)}.{kind}"
            try:
                self._write(name, content)
            except OSError as error:
                self.dropped_count += 1
                raise SpoolFailed(str(error)) from error
            entry = Entry(name, kind, len(content))
            self._entries[name] = entry
            self._bytes += entry.size_bytes
            self._unsynced.add(name)
            return entry

    def count_dropped(self) -> None:
        """Counts a record that never came as far as ``append``."""
        with self._lock:
            self.dropped_count += 1

    def sync(self) -> None:
        """Forces what was appended since the last time to the disk; called in the background."""
        with self._lock:
            names, self._unsynced = self._unsynced, set()
        for name in names:
            with contextlib.suppress(OSError):
                _fsync(self._folder / name, os.O_RDONLY)
        if names:
            with contextlib.suppress(OSError):
                _fsync(self._folder, os.O_RDONLY | os.O_DIRECTORY)

    @property
    def needs_sync(self) -> bool:
        """Whether ``sync`` has something to do."""
        return bool(self._unsynced)

    def rescan(self) -> None:
        """Looks at the folder anew: other processes append and deliver, too."""
        with self._lock:
            self._scanned = False
            self._scan_once()

    def oldest_first(self) -> list[Entry]:
        """The waiting records."""
        with self._lock:
            self._scan_once()
            return [self._entries[name] for name in sorted(self._entries)]

    def read(self, entry: Entry) -> bytes | None:
        """The request's bytes; None if it is gone already, or torn (it is then set aside)."""
        try:
            content = (self._folder / entry.name).read_bytes()
        except OSError:
            self._forget(entry)
            return None
        header, newline, payload = content.partition(b"\n")
        expected = b"%s%d %s" % (_MAGIC, len(payload), hashlib.sha256(payload).hexdigest().encode())
        if not newline or header != expected:
            self.set_aside(entry, "TORN")
            return None
        return payload

    def remove(self, entry: Entry) -> None:
        """Forgets a record that was delivered."""
        with contextlib.suppress(OSError):
            (self._folder / entry.name).unlink()
        self._forget(entry)

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Moves a record that will never be taken into ``refused/``, which keeps the last 100."""
        safe_reason = re.sub(r"[^A-Z0-9_]", "_", reason.upper())[:60] or "REFUSED"
        with contextlib.suppress(OSError):
            self._refused.mkdir(mode=0o700, exist_ok=True)
            (self._folder / entry.name).rename(self._refused / f"{entry.name}.{safe_reason}")
            kept = sorted(path.name for path in self._refused.iterdir())
            for name in kept[: max(0, len(kept) - MAX_REFUSED_FILES)]:
                (self._refused / name).unlink()
        with contextlib.suppress(OSError):
            # Where it could not be moved it must go all the same: it would be tried for ever.
            (self._folder / entry.name).unlink()
        self._forget(entry)
        with self._lock:
            self.refused_count += 1

    def after_fork(self) -> None:
        """Makes the lock new in a forked child."""
        self._lock = threading.Lock()
        self._unsynced = set()

    def _write(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}.part"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            # One by one: ``parents=True`` would make the folders above readable for others.
            for folder in (*reversed(self._folder.parents), self._folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(handle, view) :]
            finally:
                os.close(handle)
            temporary.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, size_bytes: int) -> None:
        for name in sorted(self._entries):
            if self._bytes + size_bytes <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
            self._bytes -= self._entries.pop(name).size_bytes
            self._unsynced.discard(name)
            self.dropped_count += 1

    def _forget(self, entry: Entry) -> None:
        with self._lock:
            if self._entries.pop(entry.name, None) is not None:
                self._bytes -= entry.size_bytes
            self._unsynced.discard(entry.name)

    def _scan_once(self) -> None:
        if self._scanned:
            return
        self._entries = {entry.name: entry for entry in self._files()}
        self._bytes = sum(entry.size_bytes for entry in self._entries.values())
        self._unsynced &= set(self._entries)
        self._scanned = True

    def _abandoned(self, name: str) -> bool:
        part = _TEMPORARY.fullmatch(name)
        return part is not None and (self._clock_ns() - int(part.group(1))) / 1e9 > _ABANDONED_AFTER_S

    def _files(self) -> Iterator[Entry]:
        try:
            with os.scandir(self._folder) as files:
                listed = list(files)
        except OSError:
            return
        for file in listed:
            match = _NAME.fullmatch(file.name)
            try:
                if match is not None and file.is_file(follow_symlinks=False):
                    yield Entry(file.name, match.group(4), file.stat(follow_symlinks=False).st_size)
                elif self._abandoned(file.name):
                    (self._folder / file.name).unlink()
            except OSError:
                continue


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

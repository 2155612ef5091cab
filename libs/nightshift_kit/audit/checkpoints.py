"""Signed checkpoints of the sealed chain: a file to copy elsewhere, so that a cut-off tail shows."""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nightshift_kit.canonical import canonical_json, sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import AuditBroken, NightshiftError
from nightshift_kit.storage.problems import file_error

if TYPE_CHECKING:
    from hashlib import _Hash

# Keeps a signature from meaning anything in another place.
_DOMAIN = b"nightshift audit checkpoint v1\0"
_KEYS = {"number", "time", "seq", "hash", "previous", "signature"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement: at this time the chain had this hash at this position.

    Attributes:
        number: Of the checkpoint, from 1.
        time: RFC 3339, UTC.
        seq: Position in the sealed chain.
        hash: Hash there, hex.
        previous: SHA-256 of the checkpoint line before, hex; "" for the first.
    """

    number: int
    time: str
    seq: int
    hash: str
    previous: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The beginning of a checkpoint file that was checked by this process, signatures and all.

    Attributes:
        size_bytes: How much of the file that is.
        sha256: Over these bytes; never updated where it stands.
        count: Checkpoints in it.
        last: The last of them; None where there is none.
        last_line: Its line.
        identity: The file as the kernel knew it when it ended there; () where that was not looked at.
        history: The same object as long as the file only grew under our own hands.
    """

    size_bytes: int
    sha256: _Hash
    count: int
    last: Checkpoint | None
    last_line: bytes
    identity: tuple[int, ...]
    history: object

    def and_line(self, line: bytes, mark: Checkpoint, identity: tuple[int, ...]) -> Checked:
        """With one line more; `line` without its end."""
        sha256 = self.sha256.copy()
        sha256.update(line + b"\n")
        size_bytes = self.size_bytes + len(line) + 1
        return Checked(size_bytes, sha256, self.count + 1, mark, line, identity, self.history)

    def begins(self, content: bytes) -> bool:
        """Whether a content begins with these bytes."""
        beginning = hashlib.sha256(memoryview(content)[: self.size_bytes])
        return len(content) >= self.size_bytes and beginning.digest() == self.sha256.digest()


class Checkpoints:
    """The checkpoint file: JSON Lines, appended with fsync.

    A signature is checked once in the life of a process: what was checked is kept as a digest, and only what
    is not the same bytes any more is checked anew. `append` asks the kernel alone whether anybody has touched
    the file since (another inode, size or time of change); `read` compares the bytes themselves, always.

    Args:
        path: Of the file.
        public_key: That its signatures must fit.
        fsync: The system call; a parameter so that tests can see what happens when it fails.
    """

    def __init__(
        self, path: Path, public_key: Ed25519PublicKey, *, fsync: Callable[[int], None] = os.fsync
    ) -> None:
        self._path = path
        self._public_key = public_key
        self._fsync = fsync
        # Replaced, never changed: `append` and `read` may be at work on two threads.
        self._checked: Checked | None = None

    @property
    def checked(self) -> Checked | None:
        """What of the file is known to be good; None before the first look at it."""
        return self._checked

    def append(self, seq: int, chain_hash: str, private_key: Ed25519PrivateKey, clock: Clock) -> Checkpoint:
        """Sign the chain's head and write it; on disk when it returns.

        Args:
            seq: Position in the sealed chain, not before the last checkpoint's.
            chain_hash: Hash there, hex.
            private_key: Of the plane's audit key.
            clock: Gives its time.

        Raises:
            AuditBroken: The file does not verify, or the chain is shorter than the last checkpoint says.
            DiskFull, StorageReadOnly, StorageIo: It could not be written.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = not self._path.exists()
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                checked = self._up_to_date(handle)
                last = checked.last
                if last and (seq < last.seq or (seq == last.seq and chain_hash != last.hash)):
                    raise AuditBroken(
                        f"the chain stands at {seq}, but checkpoint {last.number} signs {last.seq}",
                        metadata={"checkpoint": str(last.number)},
                    )
                unsigned = {
                    "number": checked.count + 1,
                    "time": clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z"),
                    "seq": seq,
                    "hash": chain_hash,
                    "previous": sha256_hex(checked.last_line) if checked.count else "",
                }
                signature = private_key.sign(_DOMAIN + canonical_json(unsigned))
                line = canonical_json({**unsigned, "signature": base64.b64encode(signature).decode()})
                write_all(handle, line + b"\n")
                self._fsync(handle)
                mark = Checkpoint(**unsigned)  # type: ignore[arg-type]
                self._checked = checked.and_line(line, mark, identity_of(handle))
            finally:
                os.close(handle)
            if new:
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise file_error(error, self._path.name) from error
        return mark

    def read(self) -> list[Checkpoint]:
        """All checkpoints, each with its signature and its place checked; [] where there is no file.

        Raises:
            AuditBroken: A line is unreadable, out of order, changed or not signed by our key. Metadata
                "checkpoint" is its number.
            StorageIo: The file cannot be read.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise file_error(error, self._path.name) from error
        if content and not content.endswith(b"\n"):
            raise _broken(content.count(b"\n") + 1, "the line is incomplete")
        return self._check(content)[1]

    def content(self, after_bytes: int = 0) -> bytes:
        """The file's whole lines after a position as they are, unchecked; b"" where there is no file.

        Raises:
            StorageIo: The file cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(after_bytes)
                content = file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise file_error(error, self._path.name) from error
        return content[: content.rfind(b"\n") + 1]

    def _up_to_date(self, handle: int) -> Checked:
        """What the file holds now, all of it checked; under its lock."""
        known = self._checked
        # Who changes the file within the very tick of the kernel's clock is found by `read`.
        if known is not None and known.identity == identity_of(handle):
            return known
        checked, _ = self._check(self._without_torn_tail(handle))
        self._checked = replace(checked, identity=identity_of(handle))
        return self._checked

    def _check(self, content: bytes) -> tuple[Checked, list[Checkpoint]]:
        """Checks whole lines: all links, and the signatures of those that were not the same before."""
        known = self._checked
        known_count, history = 0, object()
        if known is not None and known.begins(content):
            known_count, history = known.count, known.history
        marks: list[Checkpoint] = []
        previous, line = "", b""
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            mark = self._parse(number, line, signed=number > known_count)
            if mark.number != number or mark.previous != previous:
                raise _broken(number, "it does not follow the one before")
            last = marks[-1] if marks else mark
            if mark.seq < last.seq or (mark.seq == last.seq and mark.hash != last.hash):
                raise _broken(number, "it contradicts the one before")
            marks.append(mark)
            previous = sha256_hex(line)
        digest = hashlib.sha256(content)
        last_mark = marks[-1] if marks else None
        return Checked(len(content), digest, len(marks), last_mark, line, (), history), marks

    def _parse(self, number: int, line: bytes, *, signed: bool = True) -> Checkpoint:
        """One line; `signed` says whether its form and signature are still to be looked at."""
        try:
            raw: Mapping[str, Any] = json.loads(line)
            unsigned = {key: value for key, value in raw.items() if key != "signature"}
            if not signed:
                return Checkpoint(**unsigned)
            # Only one spelling is ever written; another one was made by somebody else.
            if canonical_json(raw) != line or set(raw) != _KEYS:
                raise _broken(number, "the line is not in its canonical form")
            signature = base64.b64decode(raw["signature"], validate=True)
            if base64.b64encode(signature).decode() != raw["signature"]:
                raise _broken(number, "the line is not in its canonical form")
            self._public_key.verify(signature, _DOMAIN + canonical_json(unsigned))
            return Checkpoint(**unsigned)
        except InvalidSignature as error:
            raise _broken(number, "the signature does not fit") from error
        except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise _broken(number, "the line is unreadable") from error

    def _without_torn_tail(self, handle: int) -> bytes:
        """Whole lines of the file; one that a crash cut short was never acknowledged and is taken off."""
        content = read_all(handle)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            try:
                self._parse(content.count(b"\n") + 1, content[whole:])
            except NightshiftError:
                os.ftruncate(handle, whole)
                content = content[:whole]
            else:
                # The crash took the newline alone.
                write_all(handle, b"\n")
                content += b"\n"
        return content


def identity_of(handle: int) -> tuple[int, ...]:
    """What changes when anybody else writes to a file, or puts another one in its place."""
    status = os.fstat(handle)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_all(handle: int) -> bytes:
    """Everything that an open file holds."""
    chunks: list[bytes] = []
    at = 0
    while chunk := os.pread(handle, 1 << 20, at):
        chunks.append(chunk)
        at += len(chunk)
    return b"".join(chunks)


def write_all(handle: int, data: bytes) -> None:
    """Writes all of it, in as many calls as the kernel wants."""
    while data:
        data = data[os.write(handle, data) :]


def _broken(number: int, what: str) -> AuditBroken:
    return AuditBroken(f"checkpoint {number}: {what}", metadata={"checkpoint": str(number)})

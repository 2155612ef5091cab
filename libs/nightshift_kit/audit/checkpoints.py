"""Signed checkpoints of the sealed chain: a file to copy elsewhere, so that a cut-off tail shows."""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nightshift_kit.canonical import canonical_json, sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import AuditBroken, NightshiftError
from nightshift_kit.storage.problems import file_error

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


class Checkpoints:
    """The checkpoint file: JSON Lines, appended with fsync.

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
                lines = self._without_torn_tail(handle)
                last = self._checked(lines)[-1:]
                if last and (seq < last[0].seq or (seq == last[0].seq and chain_hash != last[0].hash)):
                    raise AuditBroken(
                        f"the chain stands at {seq}, but checkpoint {last[0].number} signs {last[0].seq}",
                        metadata={"checkpoint": str(last[0].number)},
                    )
                unsigned = {
                    "number": len(lines) + 1,
                    "time": clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z"),
                    "seq": seq,
                    "hash": chain_hash,
                    "previous": sha256_hex(lines[-1]) if lines else "",
                }
                signature = private_key.sign(_DOMAIN + canonical_json(unsigned))
                line = canonical_json({**unsigned, "signature": base64.b64encode(signature).decode()})
                _write_all(handle, line + b"\n")
                self._fsync(handle)
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
        return Checkpoint(**unsigned)  # type: ignore[arg-type]

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
        return self._checked(content.split(b"\n")[:-1])

    def content(self) -> bytes:
        """The file's whole lines as they are, unchecked; b"" where there is no file. Raises StorageIo."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise file_error(error, self._path.name) from error
        return content[: content.rfind(b"\n") + 1]

    def _checked(self, lines: list[bytes]) -> list[Checkpoint]:
        checked: list[Checkpoint] = []
        previous = ""
        for number, line in enumerate(lines, 1):
            mark = self._parse(number, line)
            if mark.number != number or mark.previous != previous:
                raise _broken(number, "it does not follow the one before")
            last = checked[-1] if checked else mark
            if mark.seq < last.seq or (mark.seq == last.seq and mark.hash != last.hash):
                raise _broken(number, "it contradicts the one before")
            checked.append(mark)
            previous = sha256_hex(line)
        return checked

    def _parse(self, number: int, line: bytes) -> Checkpoint:
        try:
            raw: Mapping[str, Any] = json.loads(line)
            # Only one spelling is ever written; another one was made by somebody else.
            if canonical_json(raw) != line or set(raw) != _KEYS:
                raise _broken(number, "the line is not in its canonical form")
            unsigned = {key: value for key, value in raw.items() if key != "signature"}
            signature = base64.b64decode(raw["signature"], validate=True)
            if base64.b64encode(signature).decode() != raw["signature"]:
                raise _broken(number, "the line is not in its canonical form")
            self._public_key.verify(signature, _DOMAIN + canonical_json(unsigned))
            return Checkpoint(**unsigned)
        except InvalidSignature as error:
            raise _broken(number, "the signature does not fit") from error
        except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise _broken(number, "the line is unreadable") from error

    def _without_torn_tail(self, handle: int) -> list[bytes]:
        """Lines of the file; a last line that a crash cut short was never acknowledged and is taken off."""
        content = b""
        while chunk := os.pread(handle, 1 << 20, len(content)):
            content += chunk
        *lines, tail = content.split(b"\n")
        if tail:
            try:
                self._parse(len(lines) + 1, tail)
            except NightshiftError:
                os.ftruncate(handle, len(content) - len(tail))
            else:
                # The crash took the newline alone.
                _write_all(handle, b"\n")
                lines.append(tail)
        return lines


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _broken(number: int, what: str) -> AuditBroken:
    return AuditBroken(f"checkpoint {number}: {what}", metadata={"checkpoint": str(number)})

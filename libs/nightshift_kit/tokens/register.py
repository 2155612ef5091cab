"""The register: the digests of all tokens in one signed file, written by skills, read by every service.

The file is replaced as a whole and read anew when it changes, so a token that was revoked is refused by the
next call, and nobody has to ask skills. What cannot be read, or is not signed by skills, or is older than
what was read before, lets no token in.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nightshift_kit.canonical import canonical_json
from nightshift_kit.errors import TokenUnverifiable

REGISTER: Final = Path("tokens") / "register.json"

_DOMAIN: Final = b"nightshift token register 1\n"
_FORMAT: Final = 1
_LARGEST: Final = 4 * 1024 * 1024


class RegisterDamaged(ValueError):
    """The file is no register of this plane."""


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """What a service must know of a token.

    Attributes:
        id: UUID.
        digest: SHA-256 of the token's text, hex.
        person: Whom it was issued for, as in person/<role>/<name>.
        role: "viewer", "approver" or "admin".
        issuer: The person who issued it, by name.
        expire_time: From then on it is refused.
        revoke_time: When it was revoked; None if it was not.
    """

    id: str
    digest: str
    person: str
    role: str
    issuer: str
    expire_time: datetime
    revoke_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of the register; `generation` grows with each."""

    generation: int
    entries: Mapping[str, TokenEntry]


_EMPTY: Final = Snapshot(0, MappingProxyType({}))


def render(
    entries: Iterable[TokenEntry], *, plane: str, generation: int, private_key: Ed25519PrivateKey
) -> bytes:
    """The register as a file."""
    body = {
        "format": _FORMAT,
        "plane": plane,
        "generation": generation,
        "tokens": [
            {
                "id": entry.id,
                "sha256": entry.digest,
                "person": entry.person,
                "role": entry.role,
                "issuer": entry.issuer,
                "expires": entry.expire_time.astimezone(UTC).isoformat(),
                "revoked": entry.revoke_time.astimezone(UTC).isoformat() if entry.revoke_time else "",
            }
            for entry in entries
        ],
    }
    signature = private_key.sign(_DOMAIN + canonical_json(body))
    return canonical_json({"register": body, "signature": b64encode(signature).decode()})


def parse(content: bytes, *, plane: str, public_key: Ed25519PublicKey) -> Snapshot:
    """Reads a register. Raises RegisterDamaged."""
    try:
        document = orjson.loads(content)
        body = document["register"]
        public_key.verify(b64decode(document["signature"], validate=True), _DOMAIN + canonical_json(body))
        if body["format"] != _FORMAT or body["plane"] != plane:
            raise RegisterDamaged("it belongs to another plane, or another version wrote it")
        entries = {entry["id"]: _entry(entry) for entry in body["tokens"]}
        return Snapshot(int(body["generation"]), MappingProxyType(entries))
    except InvalidSignature:
        raise RegisterDamaged("it is not signed by skills") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegisterDamaged(f"it makes no sense ({type(error).__name__})") from error


class TokenRegister:
    """The register as a service reads it. Safe to use from several threads."""

    def __init__(self, path: Path, plane: str, public_key: Ed25519PublicKey) -> None:
        self._path = path
        self._plane = plane
        self._public_key = public_key
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._snapshot = _EMPTY
        self._problem = ""
        self._newest = 0

    def find(self, token_id: str) -> TokenEntry | None:
        """The token of an id, as the file has it at this moment.

        Raises:
            TokenUnverifiable: what stands in the file cannot be trusted.
        """
        stamp = self._present_stamp()
        if stamp != self._stamp:
            with self._lock:
                if stamp != self._stamp:
                    self._read(stamp)
        if self._problem:
            raise TokenUnverifiable(f"The register of tokens cannot be used: {self._problem}.")
        return self._snapshot.entries.get(token_id)

    def _present_stamp(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self, stamp: tuple[int, ...]) -> None:
        problem, snapshot = "", _EMPTY
        try:
            with self._path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            snapshot = parse(content, plane=self._plane, public_key=self._public_key)
        except FileNotFoundError:
            # None was issued yet, or somebody took them all back at once.
            snapshot = _EMPTY
        except (OSError, RegisterDamaged) as error:
            problem = str(error)
        else:
            if snapshot.generation < self._newest:
                problem, snapshot = "an older one was put in its place", _EMPTY
        self._newest = max(self._newest, snapshot.generation)
        self._problem, self._snapshot = problem, snapshot
        # Last: another thread that sees the new stamp must find what belongs to it. A file that was replaced
        # in between has another stamp and is read with the next call.
        self._stamp = stamp


class RegisterWriter:
    """The register as skills writes it.

    Several processes may have one at a time (a replica that was paused and does not lead any more): whoever
    comes with an older state than the file has leaves it as it is.
    """

    def __init__(self, path: Path, plane: str, private_key: Ed25519PrivateKey) -> None:
        self._path = path
        self._plane = plane
        self._key = private_key
        self._mine: tuple[int, int] | None = None

    @property
    def replaced(self) -> bool:
        """Whether the file is neither the one that was written last from here nor one found to be newer."""
        return self._mine is not None and self._present() != self._mine

    def generation(self) -> int:
        """Of the file as it is; 0 where there is none, or none of ours."""
        try:
            content = self._path.read_bytes()
            return parse(content, plane=self._plane, public_key=self._key.public_key()).generation
        except (OSError, RegisterDamaged):
            return 0

    def write(self, entries: Iterable[TokenEntry], generation: int) -> bool:
        """Replaces the file, durably, readable by its owner alone.

        Args:
            entries: Of all tokens that are known.
            generation: Grows with each change of them.

        Returns:
            False where a newer generation stands there, which is left.

        Raises:
            OSError: it could not be written; the one before stands.
        """
        content = render(entries, plane=self._plane, generation=generation, private_key=self._key)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self.generation() > generation:
                self._mine = self._present()
                return False
            self._replace(content)
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def _replace(self, content: bytes) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                # Readers notice a change by inode, size and time; the first two may come again.
                stamp = max(time.time_ns(), self._written_ns() + 1)
                os.utime(file.fileno(), ns=(stamp, stamp))
                os.fsync(file.fileno())
            mine = temporary.stat()
            temporary.replace(self._path)
            self._mine = (mine.st_ino, mine.st_mtime_ns)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _present(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)

    def _written_ns(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


def _entry(entry: Mapping[str, Any]) -> TokenEntry:
    texts = [entry[key] for key in ("id", "sha256", "person", "role", "issuer")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text that is none")
    token_id, digest, person, role, issuer = texts
    revoked = _instant(entry["revoked"]) if entry["revoked"] else None
    return TokenEntry(token_id, digest, person, role, issuer, _instant(entry["expires"]), revoked)


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return found

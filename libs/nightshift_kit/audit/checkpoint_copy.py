"""The second place of the signed checkpoints: a file with the same lines, on another disk or host.

Whoever can rewrite the chain, its checkpoints and even the key on the plane's machine does not reach a copy
that lies elsewhere: it only ever grows, and refuses to follow a file that is not its continuation.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nightshift_kit.audit.checkpoints import Checkpoint, Checkpoints, identity_of, read_all, write_all
from nightshift_kit.errors import AuditBroken
from nightshift_kit.storage.problems import file_error

FILE_NAME = "checkpoints.jsonl"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a copy stands to the first file.

    Attributes:
        marks: The longer of the two lists of checkpoints.
        first_bad_seq: Position in the chain of the first checkpoint about which they differ; 0 if none.
        detail: What is wrong; "" if the copy is the first file or an earlier state of it.
    """

    marks: list[Checkpoint]
    first_bad_seq: int = 0
    detail: str = ""


class CheckpointCopy:
    """A copy of a checkpoint file.

    Args:
        path: A file, or a folder that is there already (the file in it is `checkpoints.jsonl`).
        first: The file that it follows.
        reader: Reads the copy and checks its signatures; made from its path.
        fsync: The system call; a parameter so that tests can see what happens when it fails.
    """

    def __init__(
        self,
        path: Path,
        first: Checkpoints,
        reader: Callable[[Path], Checkpoints],
        *,
        fsync: Callable[[int], None] = os.fsync,
    ) -> None:
        self.path = path / FILE_NAME if path.is_dir() else path
        self._first = first
        self._reader = reader(self.path)
        self._fsync = fsync
        # How far it has followed which history of the first file, and the copy as the kernel knew it then.
        self._followed: tuple[object, int, tuple[int, ...]] | None = None

    def follow(self) -> int:
        """Adds what the first file has more; on disk when it returns. How many lines that were.

        Raises:
            AuditBroken: The copy is not the beginning of the first file: one of them was changed.
            DiskFull, StorageReadOnly, StorageIo: It could not be read or written.
        """
        try:
            # The folder is never made: on a disk that is not mounted the copy would lie in the wrong place.
            new = not self.path.exists()
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                checked = self._first.checked
                rest = self._rest(handle)
                if rest:
                    write_all(handle, rest)
                    self._fsync(handle)
                size_bytes = os.fstat(handle).st_size
                self._followed = None
                if checked is not None and checked.size_bytes == size_bytes:
                    self._followed = (checked.history, size_bytes, identity_of(handle))
            finally:
                os.close(handle)
            if new:
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise file_error(error, self.path.name) from error
        return rest.count(b"\n")

    def _rest(self, handle: int) -> bytes:
        """What the copy lacks; compared from the beginning, or from where both agreed at the last look."""
        checked = self._first.checked
        if checked is not None and self._followed is not None:
            history, size_bytes, identity = self._followed
            if history is checked.history and identity == identity_of(handle):
                return self._first.content(size_bytes)
        content = self._first.content()
        known = read_all(handle)
        whole = known[: known.rfind(b"\n") + 1]
        if not content.startswith(whole):
            raise AuditBroken(f"{self.path} is not the beginning of the plane's checkpoints")
        if known != whole:
            # A crash cut the line short; it was never acknowledged and is written anew.
            os.ftruncate(handle, len(whole))
            self._fsync(handle)
        return content[len(whole) :]

    def read(self) -> list[Checkpoint]:
        """The copy's checkpoints, checked as the first file's are.

        Raises:
            AuditBroken: A line is changed, out of order or not signed by our key.
            StorageIo: The copy cannot be read.
        """
        return self._reader.read()


def compare(marks: list[Checkpoint], copied: list[Checkpoint]) -> Comparison:
    """Holds the first file's checkpoints against the copy's, which were read before them.

    A copy that ends earlier is no finding: it may have been out of reach for a while.
    """
    for one, other in zip(marks, copied, strict=False):
        if one != other:
            seq = max(1, min(one.seq, other.seq))
            return Comparison(marks, seq, f"checkpoint {one.number} is another one in the copy")
    if len(copied) > len(marks):
        lost = copied[len(marks)]
        detail = f"the checkpoints end before checkpoint {lost.number}, which the copy has"
        return Comparison(copied, max(1, lost.seq), detail)
    return Comparison(marks)

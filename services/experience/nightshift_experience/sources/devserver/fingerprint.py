"""Whether a run folder is the one that was read last time.

Runs are mutable: late entities, files restored into old folders. The signature covers size, modification
and change time of every file that was read and of the folders around them (a file that was missing and
appears changes its folder), so an unchanged run costs a few stat calls. Where the signature differs, the
digest of the content decides whether anything happened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from nightshift_experience.sources.devserver.reading import RunFolder

# A file changed again within its clock tick keeps its times. A signature taken so soon after the last
# change proves nothing, so it is not kept and the run is read again next time. Linux ticks at least
# 100 times a second; file systems that round to seconds show it by their zeros.
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000

# Part of both digests: records are read again by a version that reads them differently.
READER_VERSION = 1

_FOLDERS = ("final", "prompting_process")


def names_to_watch(folder: RunFolder) -> list[str]:
    """Names whose times belong to the signature of a run that was just read."""
    watched = [name for name in _FOLDERS if folder.has_folder(name)]
    seen = dict.fromkeys(folder.names)
    return watched + list(seen)


def signature(folder: RunFolder, names: Sequence[str]) -> tuple[bytes, int]:
    """16 bytes over kind, size and times of the folder and of `names`; and the newest time in ns."""
    parts = [str(READER_VERSION)]
    newest = 0
    status = os.fstat(folder.fd)
    for name in ("", *names):
        if name:
            try:
                status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except OSError:
                parts.append("-")
                continue
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        newest = max(newest, changed)
        size = status.st_size if name else 0
        parts.append(f"{status.st_mode >> 12},{size},{status.st_mtime_ns},{status.st_ctime_ns}")
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).digest(), newest


def is_settled(newest_ns: int, read_began_ns: int) -> bool:
    """Whether a later change is sure to show in the times."""
    tick = _COARSE_TICK_NS if newest_ns % 1_000_000_000 == 0 else _TICK_NS
    return newest_ns + tick < read_began_ns


class ContentDigest:
    """Digest over the content that was read; text that may hold personal data is left out by its reader."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(str(READER_VERSION).encode())

    def add(self, name: str, data: bytes) -> None:
        """Add one file."""
        self._hash.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogatepass"))
        self._hash.update(data)

    def hex(self) -> str:
        """32 hexadecimal digits."""
        return self._hash.hexdigest()[:32]

"""Opening files that somebody named: a FIFO must not hang a thread, a huge file not fill the memory."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

# tokenizer.json of the largest vocabularies is about 35 MB.
_MOST_BYTES = 256 * 1024 * 1024


class NotPlain(OSError):
    """No regular file, or one too large to be what it should be."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


def open_plain(path: Path) -> BufferedReader:
    """Opens a regular file for reading, following links. Raises NotPlain, OSError."""
    # Without O_NONBLOCK opening a FIFO waits for somebody who writes; regular files do not mind it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlain(f"{path.name} is no regular file")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """The content of a small regular file. Raises NotPlain, OSError."""
    with open_plain(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise NotPlain(f"{path.name} is larger than {most_bytes} bytes")
    return content

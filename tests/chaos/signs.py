"""Signs by which a killer in another process sees that an effect has begun: inotify on what it touches."""

from __future__ import annotations

import ctypes
import os
import re
import select
import struct
import time
from pathlib import Path
from typing import Self

IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100

_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Waits for a change of a file with a fitting name in one of some folders."""

    def __init__(self, folders: list[Path], names: str, mask: int) -> None:
        """Args: folders (those that are missing are left out), a pattern of file names, kinds of change."""
        self._names = re.compile(names)
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for folder in folders:
            _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), ctypes.c_uint32(mask))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait(self, timeout_s: float) -> bool:
        """Blocks until it changes; whether it did in time."""
        ends_s = time.monotonic() + timeout_s
        while (left_s := ends_s - time.monotonic()) > 0:
            if not select.select([self._descriptor], [], [], left_s)[0]:
                return False
            if any(self._names.fullmatch(name) for name in self._changed()):
                return True
        return False

    def _changed(self) -> list[str]:
        data = os.read(self._descriptor, 1 << 16)
        names, at = [], 0
        while at < len(data):
            *_, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            names.append(os.fsdecode(data[at : at + size].rstrip(b"\0")))
            at += size
        return names

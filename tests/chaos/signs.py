"""Signs by which a killer sees that an effect has begun: inotify on what it touches.

The waiting and the killing are done by a small process of its own (`Assassin`): between the sign and the
signal lie some hundred microseconds, whatever the test's own loop is busy with.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100

_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Waits for a change of a file with a fitting name in one of some folders."""

    def __init__(self, folders: Sequence[str], names: str, mask: int) -> None:
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


class Assassin:
    """The process that waits for signs and kills."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def kill(
        self, pid: int, folders: Sequence[Path], names: str, mask: int, *, timeout_s: float, delay_s: float
    ) -> tuple[bool, bool]:
        """Waits for the sign, at most so long, then for the delay, and kills. Blocks.

        Returns:
            Whether the sign came, and whether there was still something to kill.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = [pid, [str(folder) for folder in folders], names, mask, timeout_s, delay_s]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        seen, killed = json.loads(self._process.stdout.readline())
        return bool(seen), bool(killed)

    def close(self) -> None:
        """Ends it."""
        self._process.communicate(timeout=10)


def main() -> None:
    """Takes one order a line until the end of the input."""
    with suppress(PermissionError):
        os.nice(-10)
    for line in sys.stdin:
        pid, folders, names, mask, timeout_s, delay_s = json.loads(line)
        with Watch(folders, names, mask) as watch:
            seen = watch.wait(timeout_s) if folders else True
        # Busy: a sleep of less than a millisecond lasts longer than asked for.
        until_s = time.perf_counter() + delay_s
        while time.perf_counter() < until_s:
            pass
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            killed = False
        else:
            killed = True
        sys.stdout.write(json.dumps([seen, killed]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Faults at the one boundary that is no part of us: system calls that the kernel makes fail, for good.

A seccomp filter answers chosen calls of this process with an error number. It cannot be taken off again, so
it belongs into a child process (``in_child``).
"""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import platform
import struct
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

_NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"write": 1, "pwrite64": 18, "fsync": 74, "fdatasync": 75, "renameat2": 316, "openat2": 437},
    "aarch64": {"write": 64, "pwrite64": 68, "fsync": 82, "fdatasync": 83, "renameat2": 276, "openat2": 437},
}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
_PR_SET_NO_NEW_PRIVS = 38
# linux/filter.h: load a word, jump if equal, return.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def fail_calls(names: tuple[str, ...], error_number: int) -> None:
    """From now on these calls fail in all threads of this process.

    Args:
        names: Of ``_NUMBERS``.
        error_number: What they answer, such as errno.EIO.
    """
    machine = platform.machine()
    numbers = [_NUMBERS[machine][name] for name in names]
    program = struct.pack("HBBI", _LOAD, 0, 0, 0)
    for index, number in enumerate(numbers):
        program += struct.pack("HBBI", _JUMP_EQUAL, len(numbers) - index, 0, number)
    program += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    program += struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | error_number)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.c_char_p(head)) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


def in_child(fn: Callable[..., Any], *args: Any) -> Any:
    """Run a function of a module in a process of its own and give its answer; its errors fail the test."""
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_call, args=(theirs, fn, args))
    process.start()
    theirs.close()
    try:
        good, answer = ours.recv() if ours.poll(60) else (False, "the child did not answer")
    except EOFError:
        good, answer = False, "the child died"
    process.join(20)
    if process.is_alive():
        process.kill()
        process.join()
    assert good, answer
    return answer


def _call(pipe: Connection, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = (True, fn(*args))
    except BaseException:  # noqa: BLE001 - shown by the parent
        answer = (False, traceback.format_exc())
    pipe.send(answer)

"""This process as other replicas of skills see it, and whether one of them is gone for sure.

A process is known by the boot, the pid namespace, its number and the tick at which it was started. Where boot
and namespace are our own, /proc tells whether it still is; of any other nothing is known.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ENDED = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of skills.

    Attributes:
        name: For people ("host-a:4711").
        process: As `is_gone` reads it.
        address: Where its main port listens ("127.0.0.1:7703").
        control_address: … and its control port.
    """

    name: str
    process: str
    address: str
    control_address: str

    @classmethod
    def here(cls, address: str, control_address: str) -> Self:
        """The process that asks."""
        return cls(f"{socket.gethostname()}:{os.getpid()}", this_process(), address, control_address)


def this_process() -> str:
    """How the process that asks is known: "boot/namespace/pid/start"."""
    pid = os.getpid()
    started, _ = _start_and_state(pid) or ("", "")
    return f"{_kernel()}/{pid}/{started}"


def is_gone(process: str) -> bool:
    """Whether a process has ended for sure; False where that cannot be told from here.

    Args:
        process: As `this_process` gave it there.
    """
    kernel, _, told = process.rpartition("/")[0].rpartition("/")
    if not kernel or kernel != _kernel() or not told.isdigit():
        return False
    found = _start_and_state(int(told))
    return found is None or found[0] != process.rpartition("/")[2] or found[1] in _ENDED


def _kernel() -> str:
    try:
        return f"{_BOOT.read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        # Without /proc nothing can be told of others, either.
        return ""


def _start_and_state(pid: int) -> tuple[str, str] | None:
    """Start in ticks since the boot, and the state's letter (proc_pid_stat(5)); None for no such process."""
    try:
        # The name, in brackets, may hold spaces and brackets of its own.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19], fields[0]

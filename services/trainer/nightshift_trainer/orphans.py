"""Workers that outlived their service: recorded while they run, killed when the next service starts.

The kernel kills a worker with its parent, and the dead man's switch follows; this is the third net.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

_RECORD = "worker.json"


def record_worker(job_folder: Path, pid: int) -> None:
    """Notes which process works in a job's folder.

    Its id and when it started, so that a reused id is told apart.
    """
    started = _start_ticks(pid)
    if started is not None:
        (job_folder / _RECORD).write_text(
            json.dumps({"pid": pid, "start_ticks": started, "boot": _boot_id()})
        )


def forget_worker(job_folder: Path) -> None:
    """Forgets it: it has exited."""
    (job_folder / _RECORD).unlink(missing_ok=True)


def kill_orphan(job_folder: Path) -> int | None:
    """Kills the recorded worker with its group where it still runs; answers its id then, else None."""
    try:
        record = json.loads((job_folder / _RECORD).read_bytes())
        pid, started, boot = int(record["pid"]), int(record["start_ticks"]), record["boot"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    killed = None
    if boot == _boot_id() and _start_ticks(pid) == started:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
            killed = pid
    forget_worker(job_folder)
    return killed


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None where it does not run.

    Field 22 of proc(5)'s stat, counted behind the command, which may hold anything.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    # A zombie has exited; there is nothing to kill.
    return None if fields[0] == "Z" else int(fields[19])

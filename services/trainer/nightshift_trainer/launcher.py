"""Starts worker processes: forked from a warm parent, or from nothing where CUDA forbids forking.

Everything here happens on one thread that lives as long as the service: the kernel ties a child's life to
the *thread* that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_trainer import frames

WORKER_MODULE = "nightshift_trainer.worker"
WARM_MODULE = "nightshift_trainer.worker.warm"


@dataclass(frozen=True)
class Launched:
    """A worker that runs: its process and its channel. `pidfd` becomes readable when it exits."""

    pid: int
    pidfd: int
    channel: socket.socket

    def kill(self) -> None:
        """Kills the whole process group; nothing happens where it has exited."""
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return
        # Alive a moment ago, so the number is still this process's; before it made its own group there is
        # none.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Closes channel and handle."""
        self.channel.close()
        os.close(self.pidfd)


class WorkerLog:
    """Opens a job's log for a worker's output."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> int:
        """A descriptor that appends."""
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def spawn(
    log: WorkerLog, environment: Mapping[str, str], module: str = WORKER_MODULE
) -> tuple[Launched, subprocess.Popen[bytes]]:
    """Starts a worker from nothing. Raises OSError."""
    ours, theirs = socket.socketpair()
    descriptor = log.open()
    try:
        process = _python(module, theirs, environment, descriptor)
        launched = Launched(process.pid, os.pidfd_open(process.pid), ours)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(descriptor)
    return launched, process


class WarmParent:
    """The process that has everything imported; see worker.warm.

    Raises OSError where it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], log: WorkerLog) -> None:
        self.channel, theirs = socket.socketpair()
        descriptor = log.open()
        try:
            self._process = _python(WARM_MODULE, theirs, environment, descriptor)
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()
            os.close(descriptor)
        self._decoder = frames.FrameDecoder()
        self.ready = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that are there, or None where the parent has died. Never waits."""
        try:
            # Whoever was told that something is there may find that somebody else has read it meanwhile.
            data = self.channel.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        messages = self._decoder.feed(data)
        self.ready = self.ready or any(message["kind"] == "ready" for message in messages)
        return messages

    def fork(self, log: WorkerLog) -> socket.socket:
        """Asks for a worker; its channel is answered at once, its pid comes as a "started" message.

        Raises OSError.
        """
        ours, theirs = socket.socketpair()
        descriptor = log.open()
        try:
            socket.send_fds(
                self.channel, [frames.encode({"command": "start"})], [theirs.fileno(), descriptor]
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(descriptor)
        return ours

    def close(self) -> None:
        """Ends the parent; workers of it that still run die with it."""
        self.channel.close()
        self._process.kill()
        self._process.wait()


def _python(
    module: str, channel: socket.socket, environment: Mapping[str, str], log: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and modules
        [sys.executable, "-m", module, str(channel.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=dict(environment),
        pass_fds=[channel.fileno()],
    )


def worker_environment(threads: int, caches: Path) -> dict[str, str]:
    """Environment of workers.

    Nothing is fetched, nothing is written outside `caches`, and one thread adds up in one order, which is
    what makes sums reproducible.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NIGHTSHIFT_", "HF_")) and "TOKEN" not in name and "SECRET" not in name
    }
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(caches / "huggingface"),
        "HF_DATASETS_CACHE": str(caches / "datasets"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "UNSLOTH_COMPILE_LOCATION": str(caches / "unsloth"),
        "PYTHONHASHSEED": "0",
        # cuBLAS is deterministic only with a workspace of its own.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }

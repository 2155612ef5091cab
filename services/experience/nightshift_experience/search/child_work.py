"""Heavy background work in a child process that can be killed at any moment.

The child gets its work as bytes on standard input and answers with bytes on standard output. It must leave
everything that it touches in a state that being killed does not spoil.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys

from nightshift_kit.errors import Internal

from ..embedding.errors import EmbeddingStopped

_EXCEPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{2,80}(?=:|$)")


class ChildWork:
    """Runs modules as child processes; ``stop`` kills those that run."""

    def __init__(self) -> None:
        self._running: dict[int, int] = {}
        self._stops = 0

    async def run(self, module: str, work: bytes, *arguments: str) -> bytes:
        """Runs ``python -m module`` and returns its output.

        Raises:
            EmbeddingStopped: stop() was called meanwhile.
            Internal: The child failed. Of its standard error only the exception's name is told: a child works
                on users' words, and an exception's text may hold some.
        """
        stops = self._stops
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "ignore",
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        # A pidfd cannot hit a stranger with a recycled number, and does not reap.
        pidfd = os.pidfd_open(process.pid)
        self._running[process.pid] = pidfd
        try:
            output, errors = await process.communicate(work)
        finally:
            del self._running[process.pid]
            if process.returncode is None:
                _kill(pidfd)
                await process.wait()
            os.close(pidfd)
        if self._stops != stops:
            raise EmbeddingStopped("background work was told to stop")
        if process.returncode != 0:
            raise Internal(f"{module} ended with status {process.returncode}{_kind_of(errors)}.")
        return output

    def stop(self) -> None:
        """Kills every child that runs."""
        self._stops += 1
        for pidfd in self._running.values():
            _kill(pidfd)


def _kind_of(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines() or [""]
    name = _EXCEPTION.match(lines[-1])
    return f" ({name[0]})" if name is not None else ""


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

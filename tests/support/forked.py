"""Services as processes that start at once: forked from a parent that has imported everything already.

    async with Forks(["nightshift_skills", "nightshift_lab"]) as forks:
        child = await forks.start("nightshift_skills", {"NIGHTSHIFT_HOME": …})
        await child.kill()                            # SIGKILL; returns when the kernel has ended it

A child runs the service's whole `__main__`, and to a SIGKILL it is a process like any other: memory, threads,
files and connections are its own. Only the half second of imports is spared. Nothing has a thread, a channel
or a database open before the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Fork:
    """A running service."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # Stands for this very process, whoever gets its number afterwards.
        self._handle = os.pidfd_open(pid)

    async def kill(self) -> None:
        """SIGKILL, and until it is dead."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and until it has ended."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self._handle < 0:
            return
        handle, self._handle = self._handle, -1
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)


class Forks:
    """The parent of the forks; with it they die."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Args: packages of services, each with a `__main__` that has `wire`."""
        self._modules = tuple(modules)
        self._parent: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._parent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.forked",
            *self._modules,
            cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._parent is not None
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        await self._parent.wait()

    async def start(self, module: str, environment: Mapping[str, str]) -> Fork:
        """Starts a service under further variables; it does not serve yet."""
        parent = self._parent
        assert parent is not None
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps([module, dict(environment)]).encode() + b"\n")
        await parent.stdin.drain()
        return Fork(int(await parent.stdout.readline()))


def main(modules: Sequence[str]) -> None:
    """Imports, and forks for each line of the input until its end."""
    for module in modules:
        importlib.import_module(f"{module}.__main__")
    # Ended children leave no zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent_pid = os.getpid()
    for line in sys.stdin.buffer:
        module, environment = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(module, environment, parent_pid)
        os.write(1, f"{pid}\n".encode())


def _become(module: str, environment: Mapping[str, str], parent_pid: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    os.environ.update(environment)
    run = importlib.import_module("nightshift_kit.rpc.serve").run
    wire = importlib.import_module(f"{module}.__main__").wire
    name = module.removeprefix("nightshift_")
    status = 1
    try:
        status = run(name, wire, [f"--parent-pid={parent_pid}"])
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])

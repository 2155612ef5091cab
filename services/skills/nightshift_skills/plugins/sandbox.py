"""One child: made, handed its socket, watched, killed. What it says is the broker's matter."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from nightshift_skills.errors import PluginRefused
from nightshift_skills.plugins import frames, seccomp
from nightshift_skills.plugins.interpreter import Interpreter
from nightshift_skills.plugins.layers import Cgroups, kill_cgroup
from nightshift_skills.plugins.lookout import Lookout
from nightshift_skills.plugins.syscalls import SystemCalls

_log = structlog.get_logger("nightshift.skills.plugins")

_INSIDE: Final = Path(__file__).parent / "inside"
SCRATCH_BYTES: Final = 16 << 20
# Threads included; new processes are the filter's matter.
MOST_TASKS: Final = 32
# A user outside for each child, so that its limits count its own processes and no other may touch them. Far
# above what systems hand out, below the 2^31 that some programs mistake for negative.
_FIRST_UID: Final = 2_000_000_000
_uids = itertools.count(os.getpid() % 100_000 * 1_000)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one child may use. Time in seconds of wall clock; the same number of CPU seconds."""

    timeout_s: float
    memory_bytes: int


class Cell:
    """A running sandbox. `kill` is for any thread; the rest belongs to the loop that made it."""

    def __init__(self, process: subprocess.Popen[bytes], broker: socket.socket, group: Path | None) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._guard = os.pidfd_open(process.pid)
        self._first: int | None = None
        self._listener: int | None = None
        self._group = group
        self._closed = False
        self.broker = broker
        self.cause = ""
        self.exit_code: int | None = None

    def adopt(self, pid: int) -> None:
        """The sandbox's first process, as it is numbered here."""
        with self._lock:
            if self.cause:
                return
            try:
                first = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            # A number may be given anew once its process is gone; the guard's child is the one that we mean.
            if _parent(pid) == self._process.pid:
                self._first = first
            else:
                os.close(first)

    def listen(self, listener: int) -> None:
        """Takes the listener of forbidden calls over; it is closed with the cell."""
        with self._lock:
            if not self._closed:
                self._listener, listener = listener, -1
        if listener >= 0:
            os.close(listener)

    def kill(self, cause: str) -> None:
        """Kills all of it at once; the first cause counts."""
        with self._lock:
            if self._closed:
                return
            self.cause = self.cause or cause
            if self._group is not None:
                kill_cgroup(self._group)
            for descriptor in (self._first, self._guard):
                if descriptor is not None:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def wait(self, timeout_s: float) -> None:
        """Lets the guard say how the child ended, at most so long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def close(self) -> None:
        """Waits for the end and gives everything back."""
        self.kill("over")
        self._process.wait()
        with self._lock:
            self._closed = True
            for descriptor in (self._first, self._guard, self._listener):
                if descriptor is not None:
                    os.close(descriptor)
        self.broker.close()
        if self._group is not None:
            with suppress(OSError):
                self._group.rmdir()


class Sandbox:
    """Makes children."""

    def __init__(
        self,
        *,
        base: Path,
        interpreter: Interpreter,
        layers: Callable[[], tuple[str, ...]],
        cgroups: Cgroups,
        calls: SystemCalls | None,
        guarded: Sequence[str] = (),
    ) -> None:
        """Args: an empty folder to mount the root on, what to show in it, the layers in force.

        `guarded` are folders outside whose very name in a call is a violation.
        """
        self._base = base
        self._interpreter = interpreter
        self._layers = layers
        self._cgroups = cgroups
        self._calls = calls
        self._guarded = tuple(guarded)
        self._endings: set[asyncio.Future[None]] = set()

    def probe(self) -> Mapping[str, str]:
        """Tries each layer; its name → why it is missing, "" where it is there. Blocks for about 0.1 s."""
        self._base.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        number = self._calls.seccomp_number if self._calls else -1
        bundle = _bundle(
            {"base": str(self._base), "uid": _next_uid(), "seccomp_number": number, "files": []}, {}
        )
        problems: dict[str, str] = {"cgroup": self._cgroups.problem()}
        try:
            process = self._spawn("probe", bundle, writer)
        finally:
            os.close(writer)
            os.close(bundle)
        with os.fdopen(reader) as file:
            for line in file:
                told = json.loads(line)
                problems[told["layer"]] = told["error"]
        process.wait()
        return problems

    @asynccontextmanager
    async def cell(
        self, files: Mapping[str, bytes], bounds: Bounds, on_start: Callable[[Cell], None]
    ) -> AsyncIterator[Cell]:
        """A child whose first process waits for its start frame; dead and gone on leaving.

        Args:
            files: Absolute path in the sandbox → content.
            bounds: What it may use.
            on_start: Hears of it as soon as it can be killed.

        Raises:
            PluginRefused: the sandbox could not be put up.
        """
        self._base.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        group = None
        try:
            if "cgroup" in self._layers():
                group = self._cgroups.make(
                    f"nightshift-plugin-{uuid.uuid4().hex[:12]}",
                    memory_bytes=bounds.memory_bytes,
                    processes=MOST_TASKS,
                )
            bundle = _bundle(self._config(bounds, files, group), files)
            try:
                process = self._spawn("run", bundle, writer, theirs.fileno())
            finally:
                os.close(bundle)
        except OSError as error:
            ours.close()
            os.close(reader)
            raise PluginRefused(f"The sandbox could not be started: {error.strerror}.") from error
        finally:
            theirs.close()
            os.close(writer)
        cell = Cell(process, ours, group)
        on_start(cell)
        # Each thread that uses the descriptors ends before they are closed, whoever is cancelled meanwhile.
        starting = asyncio.ensure_future(asyncio.to_thread(_await_start, reader, cell))
        try:
            await asyncio.shield(starting)
            yield cell
        finally:
            cell.kill("over")
            ending = asyncio.ensure_future(_end(starting, reader, cell))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)

    def start_frame(self, context: Mapping[str, Any], module: str, attribute: str) -> dict[str, Any]:
        """What the child is told first."""
        layers = self._layers()
        program = b""
        if "seccomp" in layers and self._calls is not None:
            program = seccomp.program(self._calls)
        return {
            "type": "start",
            "path": ["/plugin", "/sdk"],
            "module": module,
            "attribute": attribute,
            "context": dict(context),
            "landlock": "landlock" in layers,
            "seccomp": program.hex(),
            "seccomp_number": self._calls.seccomp_number if self._calls else -1,
            "readable": list(self._readable),
        }

    async def hand_over(self, cell: Cell, start: Mapping[str, Any], timeout_s: float) -> int | None:
        """Sends the start frame and takes the listener of forbidden calls; None where there is no filter.

        The listener is the cell's, which closes it.

        Raises:
            EOFError: the child died before.
        """
        return await asyncio.to_thread(_hand_over, cell, frames.encode(start), timeout_s)

    def lookout(self, cell: Cell, listener: int | None) -> Lookout:
        """Watches what the kernel tells of a child, from entering it to leaving it."""
        return Lookout(
            listener,
            self._calls,
            guarded=self._guarded,
            readable=self._readable,
            kill=lambda: cell.kill("violation"),
        )

    @property
    def _readable(self) -> tuple[str, ...]:
        return (*self._interpreter.binds, "/plugin", "/sdk")

    def _config(self, bounds: Bounds, files: Mapping[str, bytes], group: Path | None) -> dict[str, Any]:
        cpu_s = max(1, round(bounds.timeout_s))
        return {
            "parent": os.getpid(),
            "base": str(self._base),
            "uid": _next_uid(),
            # Host name and the view of cgroups have no meaning of their own; they go where the others go.
            "layers": [*self._layers(), "uts", "cgroup_namespace"],
            "cgroup": str(group) if group else "",
            "python": self._interpreter.python,
            "binds": self._interpreter.binds,
            "links": self._interpreter.links,
            "hidden": self._interpreter.hidden,
            "scratch_bytes": SCRATCH_BYTES,
            "limits": {
                "CPU": cpu_s,
                "AS": bounds.memory_bytes,
                "NOFILE": 64,
                "NPROC": MOST_TASKS,
                "FSIZE": SCRATCH_BYTES,
                "CORE": 0,
                "MEMLOCK": 0,
                "MSGQUEUE": 0,
            },
            "files": [[path, len(content)] for path, content in files.items()],
        }

    def _spawn(self, what: str, *descriptors: int) -> subprocess.Popen[bytes]:
        # In the caller's thread on purpose: PR_SET_PDEATHSIG speaks of the thread that made the child.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and launcher
            [
                os.path.realpath(sys.executable),
                *("-I", "-S", "-B", str(_INSIDE / "launcher.py"), what),
                *map(str, descriptors),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
            cwd="/",
            env={},
        )


def child_files() -> dict[str, bytes]:
    """Our own part of what lies in the sandbox: child.py and the SDK."""
    import nightshift_plugin

    sdk = Path(nightshift_plugin.__file__)
    return {
        "/sandbox/child.py": (_INSIDE / "child.py").read_bytes(),
        "/sdk/nightshift_plugin/__init__.py": sdk.read_bytes(),
    }


def _next_uid() -> int:
    return _FIRST_UID + next(_uids) % 100_000_000


def _bundle(config: Mapping[str, Any], files: Mapping[str, bytes]) -> int:
    """A sealed-off file in memory with the config and the files (see launcher.load)."""
    descriptor = os.memfd_create("nightshift-plugin")
    head = json.dumps(config).encode()
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(struct.pack(">Q", len(head)) + head)
        for content in files.values():
            file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _await_start(reader: int, cell: Cell) -> None:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(reader, 1)
        if not part:
            raise PluginRefused("The sandbox could not be put up: its guard died.")
        line += part
    told = json.loads(line)
    if "failed" in told:
        raise PluginRefused(
            f"The sandbox could not be put up: {told['detail']}.", metadata={"missing": told["failed"]}
        )
    cell.adopt(told["started"])


async def _end(starting: asyncio.Future[None], reader: int, cell: Cell) -> None:
    await asyncio.wait([starting])
    if not starting.cancelled():
        # Whoever waits for the start has it, too, unless it was cancelled.
        starting.exception()
    await asyncio.to_thread(_finish, reader, cell)


def _parent(pid: int) -> int:
    """Parent of a process; -1 where it is gone. The name in "stat" may hold spaces and brackets."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[1])


def _finish(reader: int, cell: Cell) -> None:
    cell.close()
    with os.fdopen(reader, "rb") as file:
        for line in file.read().splitlines():
            with suppress(ValueError):
                cell.exit_code = json.loads(line).get("ended", cell.exit_code)


def _hand_over(cell: Cell, start: bytes, timeout_s: float) -> int | None:
    try:
        cell.broker.settimeout(timeout_s)
        cell.broker.sendall(start)
        mark, descriptors, _, _ = socket.recv_fds(cell.broker, 1, 1)
    except OSError as error:
        raise EOFError from error
    for descriptor in descriptors:
        cell.listen(descriptor)
    if mark == b"":
        raise EOFError
    return descriptors[0] if descriptors else None

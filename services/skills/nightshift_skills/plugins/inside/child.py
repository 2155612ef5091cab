"""First thing in the sandbox: seccomp, Landlock, then the plug-in's `plan`. Only the SDK is imported.

Speaks with skills over descriptor 3: frames of 4 bytes of length (big-endian) and JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import socket
import struct
import sys
import threading
import traceback
from typing import Any

BROKER = 3
_LONGEST_WORD = 400
# LANDLOCK_ACCESS_FS_READ_FILE | READ_DIR, and what else there is to a folder for writing (linux/landlock.h).
_READ = 1 << 2 | 1 << 3
_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13
_FIRST_ABI = (1 << 13) - 1
_SINCE = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_ours = ("nightshift", "nightshift_kit", "nightshift_client", "nightshift_skills", "nightshift_lab")
_acts = {
    "socket.__new__",
    "socket.connect",
    "socket.bind",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.killpg",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "signal.pthread_kill",
}


class Broker:
    """The one way out."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = 0

    def send(self, **message: Any) -> None:
        """Sends a frame."""
        data = json.dumps(message, allow_nan=False).encode()
        with self._lock:
            view = memoryview(struct.pack(">I", len(data)) + data)
            while view:
                view = view[os.write(BROKER, view) :]

    def receive(self) -> dict[str, Any]:
        """Waits for a frame; ends the process where nobody is there any more."""
        (length,) = struct.unpack(">I", self._exactly(4))
        message = json.loads(self._exactly(length))
        assert isinstance(message, dict)
        return message

    def ask(self, method: str, arguments: Any) -> dict[str, Any]:
        """A read that skills makes."""
        from nightshift_plugin import ReadFailed

        with self._lock:
            self._count += 1
            self.send(type="read", id=self._count, method=method, arguments=dict(arguments))
            answer = self.receive()
        if answer["type"] == "failed":
            raise ReadFailed(answer["reason"], answer["message"])
        value: dict[str, Any] = answer["value"]
        return value

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(BROKER, count)
            if not part:
                os._exit(3)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def filter_calls(libc: Any, number: int, program: bytes) -> int:
    """Installs the filter on this process for good; the descriptor that notifies of forbidden calls."""
    code = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    prepared = _Program(len(program) // 8, ctypes.addressof(code))
    # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER.
    listener: int = libc.syscall(number, 1, 8, ctypes.byref(prepared))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def restrict_files(libc: Any, readable: list[str], writable: list[str]) -> None:
    """Landlock: these to read, those to write, nothing else; no TCP, no signals or sockets outside."""
    abi = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        raise OSError(ctypes.get_errno(), "landlock")
    handled = _FIRST_ABI
    for since, right in _SINCE:
        handled |= right if abi >= since else 0
    net = 3 if abi >= 4 else 0
    scoped = 3 if abi >= 6 else 0
    attributes = struct.pack("=QQQ", handled, net, scoped)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc.syscall(444, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    for paths, wanted in ((readable, _READ), (writable, (_READ | _WRITE | 1 << 14) & handled)):
        for path in paths:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = wanted if os.path.isdir(path) else wanted & (1 << 2 | 1 << 1)
            rule = struct.pack("=Qi", rights, folder)
            if libc.syscall(445, ruleset, 1, rule, 0) < 0:
                raise OSError(ctypes.get_errno(), "landlock rule")
            os.close(folder)
    if libc.syscall(446, ruleset, 0) < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(ruleset)


def watch(broker: Broker, allowed: list[str]) -> None:
    """Tells skills of attempts that end in nothing. Visibility alone: what holds is the kernel's."""
    roots = tuple(path.rstrip("/") for path in allowed)
    inside = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(inside, "busy", False):
            return
        detail = ""
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.normpath(os.path.join("/scratch", os.fsdecode(arguments[0])))
            if path in roots or path.startswith(tuple(root + "/" for root in roots)):
                return
            detail = path
        elif event == "import":
            detail = arguments[0].partition(".")[0]
            if detail not in _ours:
                return
        elif event not in _acts:
            return
        inside.busy = True
        try:
            broker.send(type="attempt", what=event, detail=detail[:_LONGEST_WORD])
        finally:
            inside.busy = False

    sys.addaudithook(hook)


def plan(broker: Broker, start: dict[str, Any]) -> None:
    """The plug-in's own code, and its answer."""
    from nightshift_plugin import Context, Nothing, Plan

    function = importlib.import_module(start["module"])
    for name in start["attribute"].split("."):
        function = getattr(function, name)
    answer = function(Context(**start["context"], ask=broker.ask))  # type: ignore[operator]
    if isinstance(answer, Nothing):
        broker.send(type="nothing", reason=answer.reason)
    elif isinstance(answer, Plan):
        broker.send(
            type="plan",
            subject=answer.subject,
            summary=answer.summary,
            calls=[{"method": call.method, "arguments": dict(call.arguments)} for call in answer.calls],
            base_versions=dict(answer.base_versions),
            evidence=list(answer.evidence),
            reasoning=answer.reasoning,
            cost_usd=float(answer.cost_usd),
            vram_bytes=answer.vram_bytes,
            duration_s=float(answer.duration_s),
        )
    else:
        raise TypeError(f"plan answered with {type(answer).__name__}; expected Plan or Nothing")


def main() -> None:
    """Closes the sandbox from inside, then plans."""
    broker = Broker()
    start = broker.receive()
    os.chdir("/scratch")
    sys.path[:0] = start["path"]
    libc = ctypes.CDLL(None, use_errno=True)
    way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=BROKER)
    if start["seccomp"]:
        listener = filter_calls(libc, start["seccomp_number"], bytes.fromhex(start["seccomp"]))
        socket.send_fds(way, [b"L"], [listener])
        os.close(listener)
    else:
        way.send(b"N")
    way.detach()
    if start["landlock"]:
        restrict_files(libc, start["readable"], ["/scratch"])
    watch(broker, [*start["readable"], "/scratch"])
    try:
        plan(broker, start)
    except BaseException as error:  # noqa: BLE001 - skills is told, whatever it is
        lines = traceback.format_exception_only(error)
        broker.send(type="error", kind=type(error).__name__[:80], message=lines[-1].strip()[:_LONGEST_WORD])


if __name__ == "__main__":
    main()
    os._exit(0)

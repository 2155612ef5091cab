"""`python -m nightshift_kit.processes`: the plane in the foreground, or detached.

Prints each service's address when all are healthy. SIGINT and SIGTERM stop it. With `--detach` the command
returns when the plane is healthy (exit status 0) or has failed (1); `HOME/plane.pid` names the process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nightshift_kit.errors import NightshiftError
from nightshift_kit.processes.plane import Plane, PlaneRunning, StartFailed, run_plane
from nightshift_kit.processes.table import SERVICES, NoFreePorts
from nightshift_kit.settings import PlaneSettings, plane_settings
from nightshift_kit.telemetry import configure_logging


def main(arguments: list[str] | None = None, complain: Callable[[object], int] | None = None) -> int:
    """Runs the command. Returns the exit status.

    Args:
        arguments: Of the command line.
        complain: Told why the plane did not start; its answer is the exit status. Left out: a line on stderr.
    """
    complain = complain or _complain
    parser = argparse.ArgumentParser(prog="nightshift up", description="Start the plane.")
    parser.add_argument("--detach", action="store_true", help="return when the plane is healthy")
    parser.add_argument("--port-base", type=int, help="ports are counted from here; 0 takes a free block")
    parser.add_argument(
        "--insecure-loopback",
        action="store_true",
        help="also listen without TLS, for viewers on this machine",
    )
    chosen = parser.parse_args(arguments)
    os.umask(0o077)
    overrides = {"insecure_loopback": True} if chosen.insecure_loopback else {}
    try:
        settings = plane_settings(**overrides)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (NightshiftError, OSError) as error:
        return complain(error)
    if chosen.detach:
        return _detached(settings, chosen.port_base, complain)
    return _run(settings, chosen.port_base, complain)


def _run(
    settings: PlaneSettings,
    port_base: int | None,
    complain: Callable[[object], int],
    ready_descriptor: int | None = None,
) -> int:
    configure_logging("plane", settings.home / "logs", level=settings.log_level)
    plane = Plane(settings, SERVICES, port_base=port_base)

    def report() -> None:
        lines = [f"{one.name:<11} {plane.address(one.name)}" for one in plane.status()]
        text = "\n".join([*lines, f"home        {settings.home}", ""])
        if ready_descriptor is not None:
            os.write(ready_descriptor, b"+" + text.encode())
            os.close(ready_descriptor)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    try:
        asyncio.run(run_plane(plane, report))
    except (NightshiftError, PlaneRunning, StartFailed, NoFreePorts, OSError, RuntimeError) as error:
        if ready_descriptor is not None:
            os.write(ready_descriptor, b"-" + str(error).encode())
        return complain(error)
    return 0


def _detached(settings: PlaneSettings, port_base: int | None, complain: Callable[[object], int]) -> int:
    """Forks twice, so that the plane belongs to no terminal, and waits for word from it."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setsid()
        if os.fork() == 0:
            _become_daemon(settings, port_base, writing)
        os._exit(0)
    os.close(writing)
    os.wait()
    with os.fdopen(reading, "rb") as pipe:
        word = pipe.read().decode()
    if not word.startswith("+"):
        return complain(word[1:] or f"the plane ended; see {settings.home / 'logs' / 'plane.out'}")
    sys.stdout.write(word[1:])
    return 0


def _become_daemon(settings: PlaneSettings, port_base: int | None, writing: int) -> NoReturn:
    status = 1
    try:
        logs = settings.home / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        out = os.open(logs / "plane.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(Path("/"))
        status = _run(settings, port_base, _complain, writing)
    finally:
        os._exit(status)


def _complain(problem: object) -> int:
    sys.stderr.write(f"nightshift: {problem}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

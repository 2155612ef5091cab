"""A PostgreSQL server of the tests' own: private folder, private socket, ordinary user, gone at the end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.programs import required_under_ci

_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 60.0


class PostgresUnavailable(Exception):
    """The server programs are not on this machine, or would not start."""


@dataclass
class PostgresServer:
    """A running server; ``database()`` makes and drops databases in it."""

    folder: Path
    process: subprocess.Popen[bytes]
    _count: int = field(default=0)

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://nightshift@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run one statement outside a transaction, as the server's superuser."""
        with psycopg.connect(
            host=str(self.folder), user="nightshift", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """URL of a fresh database that is dropped at the end, with whoever is still connected."""
        self._count += 1
        name = f"test_{os.getpid()}_{self._count}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def programs() -> Path:
    """Folder of ``initdb`` and ``postgres``.

    Raises:
        PostgresUnavailable: They are not there.
    """
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major, reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresUnavailable("initdb and postgres are not on this machine")


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server, stop it at the end.

    Raises:
        PostgresUnavailable: There is none, or it does not start.
    """
    binaries = programs()
    # Not pytest's folder: the ordinary user could not enter it. Short, since a socket's path is.
    folder = Path(tempfile.mkdtemp(prefix="ns-pg-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        who = _ordinary_user(folder)
        data = folder / "data"
        options = ["-U", "nightshift", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        made = subprocess.run(
            [str(binaries / "initdb"), "-D", str(data), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            cwd=folder,
            **who,
        )
        if made.returncode != 0:
            raise PostgresUnavailable(f"initdb failed: {made.stderr.decode(errors='replace')[-500:]}")
        # Crashes of the machine are no subject of these tests, so the server need not wait for the disk.
        quick = ["fsync=off", "full_page_writes=off", "max_connections=60", "shared_buffers=32MB"]
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", *quick]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    str(binaries / "postgres"),
                    "-D",
                    str(data),
                    *(part for name in settings for part in ("-c", name)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                preexec_fn=_die_with_parent,
                **who,
            )
        server = PostgresServer(folder, process)
        _wait_until_ready(server)
        yield server
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session; without one the test is skipped, or fails where it is required."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running_server())
        except PostgresUnavailable as error:
            required_under_ci(f"PostgreSQL ({error})")
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh PostgreSQL database."""
    with postgres_server.database() as url:
        yield url


def _major(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def _ordinary_user(folder: Path) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise PostgresUnavailable("there is no ordinary user to run the server as")


def _die_with_parent() -> None:
    # So that a killed test run leaves no server behind: SIGINT is its fast shutdown.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _wait_until_ready(server: PostgresServer) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(errors="replace")[-500:]
                raise PostgresUnavailable(f"the server did not start: {log}") from error
            time.sleep(0.05)
        else:
            return

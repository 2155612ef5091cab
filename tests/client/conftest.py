"""Planes to speak with: well, stopped, deaf and mad."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.plane import Plane, write_endpoints


@pytest.fixture(scope="session")
def template_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with certificates, made once."""
    plane = Plane(tmp_path_factory.mktemp("home") / "home")
    plane.close()
    return plane.home


@pytest.fixture
def home(template_home: Path, tmp_path: Path) -> Path:
    """A home of this test alone, without a running plane."""
    import shutil

    path = tmp_path / "home"
    shutil.copytree(template_home, path)
    return path


@pytest.fixture
def plane(home: Path) -> Iterator[Plane]:
    """A plane that works."""
    running = Plane(home)
    running.start()
    yield running
    running.close()


@pytest.fixture
def child_plane(home: Path) -> Iterator[Callable[[int], None]]:
    """A plane in a process of its own; call with a signal to send it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.client.plane", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        while process.stdout.readline().strip() != b"ready":
            assert process.poll() is None
        yield process.send_signal
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture
def black_hole(home: Path) -> Iterator[None]:
    """Ports that take connections and never say a word."""
    sockets = []
    for _ in range(2):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        sockets.append(listener)
    write_endpoints(
        home, {name: s.getsockname()[1] for name, s in zip(("experience", "skills"), sockets, strict=True)}
    )
    yield
    for listener in sockets:
        listener.close()


class Talker:
    """A server that answers each connection with what ``speak`` does."""

    def __init__(self, speak: Callable[[socket.socket], None]) -> None:
        self._speak = speak
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(5)
            self._speak(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def garbage(home: Path) -> Iterator[None]:
    """Ports that speak nonsense at once, in the clear."""
    noise = random.Random(7)

    def speak(connection: socket.socket) -> None:
        for _ in range(200):
            connection.sendall(noise.randbytes(512))

    talkers = [Talker(speak), Talker(speak)]
    write_endpoints(home, {name: t.port for name, t in zip(("experience", "skills"), talkers, strict=True)})
    yield
    for talker in talkers:
        talker.close()


@pytest.fixture
def mad_http2(home: Path) -> Iterator[None]:
    """Servers with the right certificate that negotiate HTTP/2 and then send broken frames."""
    talkers = []
    for name in ("experience", "skills"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = home / "credentials" / "service"
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        context.set_alpn_protocols(["h2"])

        def speak(connection: socket.socket, context: ssl.SSLContext = context) -> None:
            with context.wrap_socket(connection, server_side=True) as secured:
                # An empty SETTINGS frame, and then frames of unknown kinds on streams that nobody opened.
                secured.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
                while secured.recv(65536):
                    secured.sendall(b"\x00\x00\x08\x01\x05\x00\x00\x00\x01" + b"\xff" * 8)

        talkers.append(Talker(speak))
    write_endpoints(home, {name: t.port for name, t in zip(("experience", "skills"), talkers, strict=True)})
    yield
    for talker in talkers:
        talker.close()

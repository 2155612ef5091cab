"""The real plane: five processes, mutual TLS, the detector of idleness, a platform, restarts.

async with real_plane(tmp_path) as plane:
    skills = plane.stub(SkillsServiceStub, "skills")                  # as person/<uid>, an admin
    experience = plane.stub(ExperienceServiceStub, "experience", "platform/default")
    os.kill(plane.pid("lab"), signal.SIGKILL)
    await plane.until_ready("lab")

Its settings are short (`SHORT`), so that idle work really happens within seconds. The platform is a copy of
`examples/platform` with the example app running beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from nightshift_kit.processes import Plane
from nightshift_kit.rpc.channels import channel_to, credential_for
from nightshift_kit.settings import PlaneSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
PERSON = f"person/{os.getuid()}"
PLATFORM = "platform/default"
PRODUCTION = Path("schemas/configs/interception")

SHORT: Mapping[str, str] = {
    "NIGHTSHIFT_MONITOR_QUIET_S": "1",
    "NIGHTSHIFT_MONITOR_PROBE_INTERVAL_S": "2",
    "NIGHTSHIFT_MONITOR_RECHECK_INTERVAL_S": "0.5",
    "NIGHTSHIFT_SKILLS_TICK_S": "0.5",
    "NIGHTSHIFT_SKILLS_BACKOFF_FIRST_S": "0.2",
    "NIGHTSHIFT_SKILLS_BACKOFF_MAX_S": "1",
    "NIGHTSHIFT_SKILLS_FAILED_REST_S": "1",
    "NIGHTSHIFT_SKILLS_MIN_PRODUCTION_RUNS": "50",
    "NIGHTSHIFT_SKILLS_MAX_BACKGROUND_RUNS": "3",
    "NIGHTSHIFT_SKILLS_CALL_RETRY_S": "10",
    "NIGHTSHIFT_SKILLS_CHECKPOINT_INTERVAL_S": "1",
    "NIGHTSHIFT_SKILLS_COOLDOWNS_S": '{"aggregate_experience": 1, "build_embeddings": 1,'
    ' "detect_opportunities": 5, "propose_config": 1}',
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


class RealPlane:
    """A running plane and its platform.

    Attributes:
        plane: The process table.
        home: NIGHTSHIFT_HOME.
        platform_root: The copy of the platform's tree.
        platform_url: Where the example app answers; "" where it does not run.
    """

    def __init__(self, plane: Plane, platform_root: Path, platform_url: str) -> None:
        self.plane = plane
        self.platform_root = platform_root
        self.platform_url = platform_url
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    @property
    def home(self) -> Path:
        return self.plane.settings.home

    @property
    def production(self) -> Path:
        """Production's folder."""
        return self.platform_root / PRODUCTION

    def database(self, service: str) -> Path:
        """A service's SQLite file."""
        return self.home / service / f"{service}.db"

    def stub(self, stub_class: Any, service: str, identity: str = PERSON) -> Any:
        """A stub under an identity; its channel is kept over restarts of the service."""
        key = (service, identity)
        if key not in self._channels:
            credential = credential_for(self.plane.settings, identity)
            self._channels[key] = channel_to(self.plane.address(service), service, credential)
        return stub_class(self._channels[key])

    def state(self, service: str) -> str:
        """ "ready", "restarting", "starting" or "stopped"."""
        return next(one.state for one in self.plane.status() if one.name == service)

    def pid(self, service: str) -> int:
        """Process of a service; of its last one while it is being started again."""
        return next(one.pid for one in self.plane.status() if one.name == service)

    async def until_ready(self, *services: str, timeout_s: float = 60.0) -> None:
        """Waits until these services (all where none is named) are healthy."""
        wanted = services or tuple(one.name for one in self.plane.status())
        async with asyncio.timeout(timeout_s):
            while any(self.state(name) != "ready" for name in wanted):
                await asyncio.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Every process on this machine that belongs to this home, whoever is its parent."""
        return [process for process in psutil.process_iter() if _belongs(process, str(self.home))]

    def orphans(self) -> list[psutil.Process]:
        """Those of them that do not descend from this test."""
        return [process for process in self.processes() if os.getpid() not in _ancestors(process)]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


@asynccontextmanager
async def real_plane(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    platform_app: bool = True,
    restart_first_s: float = 0.2,
    restart_last_s: float = 0.4,
) -> AsyncIterator[RealPlane]:
    """Starts a plane in `folder` on free ports; stops it, and whatever it left, afterwards.

    Args:
        folder: Takes `home` and `platform`; both may be there already (a plane that is started again).
        settings: Environment of the services, over SHORT.
        platform_app: Whether the example app runs; a plane whose platform is gone does nothing by itself.
        restart_first_s: Pause before a service that died is started again; doubled up to `restart_last_s`.
        restart_last_s: See restart_first_s.
    """
    home, platform_root = folder / "home", folder / "platform"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not platform_root.exists():
        shutil.copytree(EXAMPLES / "platform", platform_root, ignore=shutil.ignore_patterns("__pycache__"))
    port = _free_port() if platform_app else 0
    url = f"http://127.0.0.1:{port}" if platform_app else ""
    environment = {**SHORT, "NIGHTSHIFT_MONITOR_PLATFORM_URL": url, **(settings or {})}
    app = _start_app(home, folder, port, environment) if platform_app else None
    plane = Plane(
        PlaneSettings(home=home, platform_root=platform_root),
        port_base=0,
        environment=environment,
        restart_first_s=restart_first_s,
        restart_last_s=restart_last_s,
    )
    running = RealPlane(plane, platform_root, url)
    try:
        if app is not None:
            await asyncio.to_thread(_await_app, app, url)
        await plane.start()
        try:
            yield running
        finally:
            await running.close()
            await plane.stop()
    finally:
        if app is not None:
            app.terminate()
            await asyncio.to_thread(app.wait, 20)
        for process in running.processes():
            process.kill()


def tree_of(root: Path) -> dict[str, str]:
    """Every path below a folder with its kind, permission bits and content's digest."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = f"-> {path.readlink()}"
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(root))] = f"{status.st_mode:o} {content}"
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _start_app(
    home: Path, folder: Path, port: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    program = EXAMPLES / "platform" / "app.py"
    log = (folder / "platform.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, program, "--port", str(port), "--exports", folder / "exports"],
            env={**os.environ, **environment, "NIGHTSHIFT_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _await_app(app: subprocess.Popen[bytes], url: str) -> None:
    request = urllib.request.Request(f"{url}/api/settings/safety-level", headers={"X-Nightshift-Probe": "1"})
    for _ in range(300):
        assert app.poll() is None, "the example platform ended"
        try:
            with urllib.request.urlopen(request, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the example platform does not answer at {url}")


def _belongs(process: psutil.Process, home: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            return False
        words = [*process.cmdline(), *process.environ().values()]
    except (psutil.Error, OSError):
        return False
    return any(home in word for word in words)


def _ancestors(process: psutil.Process) -> Iterator[int]:
    try:
        yield from (parent.pid for parent in process.parents())
    except psutil.Error:
        # It has just ended.
        yield os.getpid()

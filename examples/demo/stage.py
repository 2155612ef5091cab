"""Where the demo plays: a workshop, a platform, a plane, and the command line as its user types it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from examples.demo.narrator import DemoFailedError

EXAMPLES = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("nightshift")


class CommandFailedError(DemoFailedError):
    """A nightshift command exited non-zero; `error` is what it printed as JSON."""

    def __init__(self, arguments: tuple[str, ...], code: int, output: str, errors: str) -> None:
        super().__init__(
            f"nightshift {' '.join(arguments)} exited {code}: {errors.strip() or output.strip()}"
        )
        self.code = code
        self.output = output
        self.errors = errors


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tree_digest(root: Path) -> str:
    """SHA-256 over every file's path, mode and content below a folder."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        total.update(f"{path.relative_to(root)}\0{path.lstat().st_mode}\0".encode())
        if path.is_file() and not path.is_symlink():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class Stage:
    """Folders and processes of one demo; `close` ends what `open` began."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.workshop = folder / "workshop"
        self.platform_root = folder / "platform"
        self.platform_port = free_port()
        self.environment = {
            **os.environ,
            "NIGHTSHIFT_HOME": str(self.home),
            "NIGHTSHIFT_PLATFORM_ROOT": str(self.platform_root),
            "NIGHTSHIFT_MONITOR_PLATFORM_URL": f"http://127.0.0.1:{self.platform_port}",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **settings,
        }
        self._platform: subprocess.Popen[bytes] | None = None

    def prepare(self, runs: int, seed: int) -> dict[str, Any]:
        """Generate the workshop and copy the platform's tree; return the workshop's truth."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        simulator = EXAMPLES / "workshop" / "workshop_exports.py"
        subprocess.run(
            [sys.executable, simulator, "--out", self.workshop, "--runs", str(runs), "--seed", str(seed)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.copytree(
            EXAMPLES / "platform", self.platform_root, ignore=shutil.ignore_patterns("__pycache__")
        )
        truth: dict[str, Any] = json.loads((self.workshop / "truth.json").read_text(encoding="utf-8"))
        return truth

    def start_platform(self) -> None:
        """Start the example platform and wait until it answers."""
        with (self.folder / "platform.log").open("ab") as log:
            self._platform = subprocess.Popen(
                [
                    sys.executable,
                    EXAMPLES / "platform" / "app.py",
                    "--port",
                    str(self.platform_port),
                    "--exports",
                    self.folder / "exports",
                ],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        url = f"http://127.0.0.1:{self.platform_port}/api/settings/safety-level"
        request = urllib.request.Request(url, headers={"X-Nightshift-Probe": "1"})
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(request, timeout=1):
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise DemoFailedError(f"the example platform does not answer at {url}") from error
                time.sleep(0.1)

    def command(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `nightshift ARGUMENTS` and return what became of it, whatever that is."""
        return subprocess.run(
            [COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def nightshift(self, *arguments: str, timeout_s: float = 120) -> Any:
        """Run `nightshift ARGUMENTS --json`; return the answer (a list for several lines).

        Raises:
            CommandFailedError: it exited non-zero.
        """
        done = self.command(*arguments, "--json", timeout_s=timeout_s)
        if done.returncode != 0:
            raise CommandFailedError(arguments, done.returncode, done.stdout, done.stderr)
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """Where the services listen, by name."""
        found: dict[str, dict[str, Any]] = json.loads((self.home / "endpoints.json").read_text())["services"]
        return found

    @property
    def platform_pid(self) -> int | None:
        """Process id of the example platform, while it runs."""
        return self._platform.pid if self._platform else None

    def close(self) -> None:
        """Stop the plane and the platform; fails where the plane does not stop cleanly."""
        done = self.command("down") if (self.home / "plane.pid").exists() else None
        if self._platform is not None:
            self._platform.terminate()
            self._platform.wait(timeout=20)
            self._platform = None
        if done is not None and done.returncode != 0:
            raise DemoFailedError(f"the plane did not stop cleanly: {done.stderr or done.stdout}")

"""Which backend trains: asked of a child process, since importing unsloth changes whoever imports it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping

_log = logging.getLogger(__name__)

# Unsloth raises ImportError, NotImplementedError or RuntimeError where it cannot work; any of them ends the
# probe.
_PROBE = "import unsloth"


class BackendChoice:
    """Chooses once for CUDA and remembers it. `wanted` is "auto", "trl" or "unsloth"."""

    def __init__(self, wanted: str, environment: Mapping[str, str], timeout_s: float = 180.0) -> None:
        self._wanted = wanted
        self._environment = environment
        self._timeout_s = timeout_s
        self._unsloth_works: bool | None = None

    def choose(self, device: str) -> str:
        """Names the backend for a device. May take long the first time; call it in a thread."""
        if device != "cuda" or self._wanted == "trl":
            return "trl"
        if self._wanted == "unsloth":
            return "unsloth"
        if self._unsloth_works is None:
            self._unsloth_works = self._probe()
        return "unsloth" if self._unsloth_works else "trl"

    def _probe(self) -> bool:
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and text
                [sys.executable, "-c", _PROBE],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.info("unsloth is not used: %s", type(error).__name__)
            return False
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
            _log.info("unsloth is not used: %s", last[:300])
        return done.returncode == 0

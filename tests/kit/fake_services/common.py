"""A service that serves nothing but its health and does what files in its home tell it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from nightshift_kit.rpc.serve import Wiring, run


def note(home: Path, what: str) -> None:
    with (home / "journal").open("a") as journal:
        journal.write(f"{time.monotonic():.3f} {what}\n")


def main(name: str) -> int:
    async def wire(wiring: Wiring) -> None:
        home = wiring.settings.home
        if (home / f"{name}.fails").exists():
            raise RuntimeError("told to fail")
        note(home, f"{name} wires {os.getpid()}")
        if (home / f"{name}.slow").exists():
            await asyncio.sleep(0.5)
        wiring.on_stop(lambda: note(home, f"{name} stops"))

        async def deaf() -> None:
            if (home / f"{name}.deaf").exists():
                asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

        wiring.spawn("deaf", deaf)

    return run(name, wire)

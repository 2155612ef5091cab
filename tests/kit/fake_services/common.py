"""A service that serves nothing but its health and does what files in its home tell it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from nightshift_kit.errors import Code, NightshiftError
from nightshift_kit.rpc.serve import Wiring, run


class Elsewhere(NightshiftError):
    """Another replica leads."""

    code = Code.UNAVAILABLE
    reason = "ELSEWHERE"

    @classmethod
    def now(cls) -> Elsewhere:
        return cls("ask elsewhere", retry_after_s=1.0)


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

        async def turn() -> None:
            while (home / f"{name}.standby").exists():
                await asyncio.sleep(0.02)

        if (home / f"{name}.standby").exists():
            await wiring.stand_by(turn, refusal=Elsewhere.now, main=())
            note(home, f"{name} leads")

        async def deaf() -> None:
            if (home / f"{name}.deaf").exists():
                asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

        wiring.spawn("deaf", deaf)

    return run(name, wire)

"""Users of the example platform: each generation stops background work and is recorded through the SDK."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request

from tests.chaos.flights import Flights
from tests.chaos.journal import Journal
from tests.support.plane import RealPlane


class Visitors:
    """People who come by every few seconds."""

    def __init__(self, plane: RealPlane, flights: Flights, journal: Journal, source: random.Random) -> None:
        self._url = f"{plane.platform_url}/api/generate"
        self._flights = flights
        self._journal = journal
        self._source = source

    async def come_by(self, stop: asyncio.Event, pause_s: tuple[float, float]) -> None:
        """Generates; what the platform answered must reach experience sooner or later."""
        while not stop.is_set():
            await asyncio.sleep(self._source.uniform(*pause_s))
            seed = self._source.getrandbits(31)
            with self._flights.under_way("generate"):
                run_id = await asyncio.to_thread(self._generate, seed)
            self._journal.acknowledged("generate", run_id=run_id, seed=seed)

    def _generate(self, seed: int) -> str:
        wish = {"prompt": "a visitor's lamp", "config": "farbhunger", "seed": seed}
        request = urllib.request.Request(
            self._url, json.dumps(wish).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            run_id: str = json.load(answer)["run_id"]
            return run_id

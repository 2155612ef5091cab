"""Reading work that a stop must end, although no grant stands behind it: what uses the GPU or money."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from nightshift_kit.errors import Preempted
from nightshift_kit.rpc.stop import StopHub, Work

_T = TypeVar("_T")


class Stoppable:
    """Runs such work under the fence in force, so that the next pre-emption or lock ends it."""

    def __init__(self, hub: StopHub) -> None:
        self._hub = hub

    async def run(self, name: str, work: Coroutine[Any, Any, _T]) -> _T:
        """Awaits `work`, unless a stop comes.

        Raises:
            Preempted: a stop came, or skills has not told the fence yet.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        causes: list[str] = []

        def stop(cause: str) -> None:
            causes.append(cause)
            loop.call_soon_threadsafe(task.cancel)

        known = Work(name=name, skill_run="", fence=self._hub.gate.highest, stop=stop)
        with self._hub.running(known):
            if not self._hub.gate.is_open:
                task.cancel()
                causes.append("not open yet")
            try:
                return await task
            except asyncio.CancelledError:
                if not causes:
                    # The caller went away.
                    task.cancel()
                    await asyncio.wait([task])
                    raise
                raise Preempted(f"Stopped: {causes[0]}.", metadata={"cause": causes[0]}) from None

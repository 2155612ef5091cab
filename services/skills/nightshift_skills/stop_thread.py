"""The stop loop: a thread whose event loop holds nothing but the channels to the control ports.

Neither the load of the main server nor a long planning step can delay a STOP or a lease here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger("nightshift.skills.stops")


class StopThread:
    """Runs coroutines on a loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="skills-stops", daemon=True)
        self._closers: list[Callable[[], Awaitable[object]]] = []
        self._background: list[asyncio.Task[None]] = []
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, for `call_soon_threadsafe`."""
        return self._loop

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it here, on any other loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets a coroutine run there until the thread is closed."""

        async def start() -> None:
            self._background.append(asyncio.create_task(work))

        await self.call(start())

    def on_close(self, close: Callable[[], Awaitable[object]]) -> None:
        """Awaits something there when the thread is closed."""
        self._closers.append(close)

    async def close(self) -> None:
        """Cancels what is kept, closes, and ends the thread."""
        await self.call(self._end())
        self._loop.call_soon_threadsafe(self._closing.set)
        await asyncio.to_thread(self._thread.join)

    async def _end(self) -> None:
        for task in self._background:
            task.cancel()
        for outcome in await asyncio.gather(*self._background, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("kept work broke", error=repr(outcome))
        for close in reversed(self._closers):
            await close()

    def _run(self) -> None:
        # The runner cancels what is still under way (a STOP that is sent again, a stream half read) and
        # closes the loop; a call that outlived its loop would fail when it is collected.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run_until_closed())

    async def _run_until_closed(self) -> None:
        await self._closing.wait()

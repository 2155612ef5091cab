"""The GPUs for whoever watches them: NVML is asked each few seconds while somebody does, not otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

from nightshift_monitor.board import Board, Posted
from nightshift_monitor.observations import GpuReading


class GpuReader(Protocol):
    """Reads the GPUs."""

    async def read(self) -> GpuReading:
        """All GPUs now."""
        ...


class GpuWatch:
    """One reading for any number of watchers."""

    def __init__(self, reader: GpuReader, *, interval_s: float, keep_alive_s: float) -> None:
        self._reader = reader
        self._interval_s = interval_s
        self._keep_alive_s = keep_alive_s
        self._board = Board(GpuReading((), "NVML was not asked yet"))
        self._watchers = 0
        self._asking: asyncio.Task[None] | None = None

    @property
    def latest(self) -> GpuReading:
        """The last reading."""
        return self._board.newest.state

    async def read(self) -> GpuReading:
        """All GPUs now; watchers hear of a change."""
        reading = await self._reader.read()
        if reading != self._board.newest.state:
            self._board.post(reading)
        return reading

    async def watch(self, after_seq: int) -> AsyncIterator[Posted[GpuReading]]:
        """The GPUs first (or only changes after ``after_seq``), then each change, and keep-alives."""
        await self.read()
        self._watchers += 1
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_for_ever(), name="watch GPUs")
        try:
            async with aclosing(self._board.watch(after_seq, keep_alive_s=self._keep_alive_s)) as posts:
                async for posted in posts:
                    yield posted
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._asking is not None:
                self._asking.cancel()
                self._asking = None

    def close(self) -> None:
        """Ends all watching."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._board.close()

    async def _ask_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.read()

"""The reading process, seen from the service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

from nightshift_experience.importing.framing import pack, read_frame
from nightshift_experience.store.import_state import PathState

# The child goes on reading while a batch is being written; at most this much waits.
_BUFFER_BYTES = 16 * 1024 * 1024
_TERMINATE_S = 2.0


class ReadingProcess:
    """One child; `start`, then `know` until done, then `frames`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, directory: str, zone: str, content_checks: Sequence[str]) -> None:
        """Start the child and tell it what to read."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "nightshift_experience.importing.reader",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_BUFFER_BYTES,
        )
        await self._send(
            pack({"directory": directory, "zone": zone, "content_checks": sorted(content_checks)})
        )

    async def know(self, states: Sequence[PathState]) -> None:
        """Tell it folders that were read before; an empty list ends that."""
        rows = [
            (s.path, s.run_id, s.signature.hex(), s.names, s.content_digest.hex(), s.skip_reason)
            for s in states
        ]
        await self._send(pack(rows))

    async def frames(self) -> AsyncIterator[bytes]:
        """What it tells, until it ends."""
        stream = self._running().stdout
        assert stream is not None
        while (frame := await read_frame(stream)) is not None:
            yield frame

    async def stop(self) -> None:
        """End it, by force if it must be; does nothing where it has ended."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.wait_closed()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _TERMINATE_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _send(self, data: bytes) -> None:
        stream = self._running().stdin
        assert stream is not None
        # A child that died early shows by the end of its frames.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stream.write(data)
            await stream.drain()

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

"""The daemon log: what the monitor sees, as JSON lines for tools that read files only.

``NIGHTSHIFT_HOME/monitor/status.jsonl``, one object a line with ``time`` (UTC) and ``event``:

- ``status`` each tick: ``idle``, ``platform_up``, ``probes`` (name → state), ``gpus``, ``incidents`` (how
  many);
- ``idleness`` at each change of the verdict: ``idle``, ``reasons`` (codes);
- ``incident`` when one begins, changes its state, gets worse or flaps: ``incident``, ``probe``, ``state``,
  ``worst``, ``flap_count``. People's comments are not in it.

A line is written with one write. The file is rotated by size, and a bounded number of files is kept; a torn
last line, which a crash may leave, is cut off at the next start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightshift_kit.clock import Clock
from nightshift_monitor.board import Posted
from nightshift_monitor.incidents import Incident
from nightshift_monitor.status import StatusView

_LOG = logging.getLogger(__name__)

# Lines that wait for a slow disk; beyond that the oldest are given up, for the monitor must not wait.
MAX_WAITING = 1_000
_CHUNK = 65_536


class LineFile:
    """A file of whole lines, rotated by size."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        """``files`` are kept at most: ``path`` itself, then ``path.1`` … from newer to older.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._descriptor = -1
        self._size_bytes = 0
        self._open()

    def append(self, line: bytes) -> None:
        """Writes a line, without its end in ``line``; a line that does not fit whole is taken back.

        Raises:
            OSError: it could not be written.
        """
        if self._descriptor < 0:
            self._open()
        data = line + b"\n"
        if self._size_bytes and self._size_bytes + len(data) > self._max_bytes:
            self._rotate()
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            os.ftruncate(self._descriptor, self._size_bytes)
            raise
        if written != len(data):
            os.ftruncate(self._descriptor, self._size_bytes)
            raise OSError("the line did not fit on the disk")
        self._size_bytes += written

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            self._size_bytes = _whole_lines(descriptor)
            os.ftruncate(descriptor, self._size_bytes)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            if newer.exists():
                newer.replace(self._path.with_name(f"{self._path.name}.{number}"))
        if self._files == 1:
            self._path.unlink(missing_ok=True)
        self._open()


class DaemonLog:
    """Writes the lines, in a thread, in their order."""

    def __init__(self, file: LineFile, *, clock: Clock, interval_s: float) -> None:
        self._file = file
        self._clock = clock
        self._interval_s = interval_s
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)
        self._broken = ""

    async def run(
        self, newest: Callable[[], StatusView], watch: Callable[[int], AsyncIterator[Posted[StatusView]]]
    ) -> None:
        """Writes until cancelled; what waits then is written still."""
        tasks = [
            asyncio.create_task(self._tick(newest), name="daemon log: ticks"),
            asyncio.create_task(self._follow(watch), name="daemon log: idleness"),
        ]
        try:
            while True:
                await self._write(await self._waiting.get())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while not self._waiting.empty():
                self._append(self._waiting.get_nowait())
            self._file.close()

    def note_incident(self, incident: Incident) -> None:
        """Writes what happened with an incident."""
        self._put(
            "incident",
            incident=incident.name,
            probe=incident.probe,
            state=incident.state.name,
            worst=incident.worst.name,
            flap_count=incident.flap_count,
        )

    async def _tick(self, newest: Callable[[], StatusView]) -> None:
        while True:
            view = newest()
            self._put(
                "status",
                idle=view.idleness.idle,
                platform_up=view.idleness.platform_up,
                probes={
                    probe.declaration.name: probe.latest.state.name if probe.latest else "UNSPECIFIED"
                    for probe in view.probes
                },
                gpus=[
                    {
                        "index": gpu.index,
                        "name": gpu.display_name,
                        "used_bytes": gpu.used_bytes,
                        "total_bytes": gpu.total_bytes,
                        "utilization_percent": gpu.utilization_percent,
                        "failed": gpu.failed,
                    }
                    for gpu in view.gpus.gpus
                ],
                incidents=len(view.incidents),
            )
            await asyncio.sleep(self._interval_s)

    async def _follow(self, watch: Callable[[int], AsyncIterator[Posted[StatusView]]]) -> None:
        told: tuple[object, ...] | None = None
        async for posted in watch(0):
            idleness = posted.state.idleness
            codes = [reason.code for reason in idleness.reasons if not reason.allows_idle]
            verdict = (idleness.idle, tuple(codes))
            if verdict != told:
                told = verdict
                self._put("idleness", idle=idleness.idle, reasons=codes)

    def _put(self, event: str, **fields: Any) -> None:
        line = {"time": _stamp(self._clock.now()), "event": event, **fields}
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode())

    async def _write(self, line: bytes) -> None:
        # Shielded: a line that a thread has begun is not begun again by the last ones.
        await asyncio.shield(asyncio.to_thread(self._append, line))

    def _append(self, line: bytes) -> None:
        try:
            self._file.append(line)
        except OSError as error:
            # A full disk must not stop the monitor; it is said once, until a line is written again.
            if str(error) != self._broken:
                self._broken = str(error)
                _LOG.warning("the daemon log cannot be written: %s", error)
        else:
            self._broken = ""


def _whole_lines(descriptor: int) -> int:
    """Size of the file up to the end of its last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _CHUNK)
        chunk = os.pread(descriptor, end - start, start)
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _stamp(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

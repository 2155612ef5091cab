"""Progress points of a job: appended to files, read from any place that is still kept, waited for.

    points/00000000000000000001.jsonl   named by the first point in it; the oldest are dropped
    points/00000000000000010001.jsonl

Points are what watchers see; what a training needs to go on lies in its checkpoints. So they are written
through to the kernel but not synced: they survive the death of the process, and after a power cut the last
ones may be missing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from nightshift_trainer.errors import SeqGone

SEGMENT_POINTS = 10_000

# Points kept in memory for those who follow closely.
_RECENT_POINTS = 4096


@dataclass(frozen=True, slots=True)
class Point:
    """One point; the fields of ProgressPoint. `kind` is "step", "phase" or "event", `time_s` Unix time."""

    seq: int
    time_s: float
    kind: str
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float = 0.0
    smoothed_loss: float = 0.0
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    eta_s: float | None = None
    phase: str = ""
    event: str = ""
    message: str = ""


class PointLog:
    """Points of one job. Appended by one thread, read by many."""

    def __init__(
        self, folder: Path, *, kept_points: int = 200_000, segment_points: int = SEGMENT_POINTS
    ) -> None:
        self._folder = folder
        self._kept_points = kept_points
        self._segment_points = segment_points
        self._lock = threading.Lock()
        self._recent: deque[Point] = deque(maxlen=_RECENT_POINTS)
        self._file: BinaryIO | None = None
        self._segments = self._recover()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def last_seq(self) -> int:
        """Number of the newest point, 0 where there is none."""
        return self._last_seq

    def append(self, points: Sequence[dict[str, Any]]) -> list[Point]:
        """Numbers points, writes them, wakes who waits. Raises OSError."""
        with self._lock:
            made = []
            for values in points:
                self._last_seq += 1
                made.append(Point(seq=self._last_seq, **values))
            for begin in range(0, len(made), self._segment_points):
                self._write(made[begin : begin + self._segment_points])
            self._recent.extend(made)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return made

    def read(self, after_seq: int, limit: int) -> list[Point]:
        """Points after a number, oldest first. Raises SeqGone where some of them are no longer kept."""
        with self._lock:
            oldest = self._segments[0] if self._segments else 1
            if after_seq < oldest - 1:
                raise SeqGone(
                    f"Points before {oldest} are no longer kept; watch from after {oldest - 1}.",
                    metadata={"oldest_seq": str(oldest), "last_seq": str(self._last_seq)},
                )
            if after_seq >= self._last_seq:
                return []
            if self._recent and self._recent[0].seq <= after_seq + 1:
                begin = after_seq + 1 - self._recent[0].seq
                return [self._recent[index] for index in range(begin, min(begin + limit, len(self._recent)))]
            segments = list(self._segments)
        return self._read_files(segments, after_seq, limit)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls `listener` after each append, on the appending thread; the answer ends that."""
        with self._lock:
            self._listeners.add(listener)

        def forget() -> None:
            with self._lock:
                self._listeners.discard(listener)

        return forget

    def wake(self) -> None:
        """Wakes who waits without a point: the job itself has changed."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def close(self) -> None:
        """Closes the file; what was read stays readable."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, points: list[Point]) -> None:
        if self._file is None or points[0].seq - self._segments[-1] >= self._segment_points:
            if self._file is not None:
                self._file.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path(points[0].seq).open("ab", buffering=0)
            self._segments.append(points[0].seq)
            self._drop_oldest()
        data = b"".join(orjson.dumps(point, option=orjson.OPT_APPEND_NEWLINE) for point in points)
        self._file.write(data)

    def _drop_oldest(self) -> None:
        while len(self._segments) > 2 and self._last_seq - self._segments[1] >= self._kept_points:
            self._path(self._segments.pop(0)).unlink(missing_ok=True)

    def _path(self, first_seq: int) -> Path:
        return self._folder / f"{first_seq:020d}.jsonl"

    def _recover(self) -> list[int]:
        """Finds the segments and the last point; cuts off a line that a crash left half."""
        self._last_seq = 0
        segments = sorted(int(path.stem) for path in self._folder.glob("*.jsonl") if path.stem.isdigit())
        for first in reversed(segments):
            path = self._path(first)
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                with path.open("r+b") as file:
                    file.truncate(whole)
            if whole:
                begin = data.rfind(b"\n", 0, whole - 1) + 1
                self._last_seq = int(orjson.loads(data[begin:whole])["seq"])
                break
            path.unlink()
            segments.remove(first)
        if segments:
            self._file = self._path(segments[-1]).open("ab", buffering=0)
        return segments

    def _read_files(self, segments: list[int], after_seq: int, limit: int) -> list[Point]:
        points: list[Point] = []
        for first, following in zip(segments, [*segments[1:], None], strict=True):
            if following is not None and following <= after_seq + 1:
                continue
            try:
                data = self._path(first).read_bytes()
            except FileNotFoundError:
                # Dropped since; the next read says so.
                break
            for line in data[: data.rfind(b"\n") + 1].splitlines():
                point = Point(**orjson.loads(line))
                if point.seq > after_seq:
                    points.append(point)
                    if len(points) == limit:
                        return points
        return points


class Follower:
    """Waits for news of a log on an event loop."""

    def __init__(self, log: PointLog) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._forget = log.listen(self._wake)

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def wait(self, timeout_s: float) -> bool:
        """Waits for news since the last wait; False where none came."""
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def close(self) -> None:
        """Stops listening."""
        self._forget()

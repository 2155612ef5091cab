"""Logs as JSON lines with trace and request ids. Contents of requests never get here.

`configure_logging` sends structlog and the standard library's logging to one sink: every record as a JSON
line in HOME/logs/<service>.jsonl, and shortly on stderr. Libraries and services use `structlog.get_logger()`.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import re
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import orjson
import structlog

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
# Names of traces have to differ, not to be secret; the kernel's generator is a system call for each.
_IDS: Final = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_IDS.seed)
_ROTATE_BYTES: Final = 32 * 1024 * 1024
_KEEP_FILES: Final = 3


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a piece of work stands in a trace (W3C Trace Context) and which request it belongs to.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits; of this piece of work.
        request_id: At most 64 letters, digits and punctuation.
        sampled: Whether spans of the trace are exported.
        parent_span_id: Of the work that called for this one; "" where the trace begins here.
    """

    trace_id: str
    span_id: str
    request_id: str
    sampled: bool = True
    parent_span_id: str = ""

    @property
    def traceparent(self) -> str:
        """Header for calls made within this work."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def within(self) -> Trace:
        """A piece of work inside this one."""
        return Trace(self.trace_id, _span_id(), self.request_id, self.sampled, self.span_id)

    def unsampled(self) -> Trace:
        """The same, of which no spans are exported."""
        return Trace(self.trace_id, self.span_id, self.request_id, False, self.parent_span_id)


_TRACE: ContextVar[Trace | None] = ContextVar("nightshift_trace", default=None)


def begin_trace(traceparent: str | None = None, request_id: str | None = None) -> Trace:
    """A trace for a call that comes in; continues the caller's where it sent a valid one."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is not None and found[1] != "0" * 32 and found[2] != "0" * 16:
        trace_id, sampled, parent_span_id = found[1], int(found[3], 16) & 1 == 1, found[2]
    else:
        trace_id, sampled, parent_span_id = f"{_IDS.getrandbits(128) or 1:032x}", True, ""
    if not request_id or _REQUEST_ID.fullmatch(request_id) is None:
        request_id = f"{_IDS.getrandbits(64):016x}"
    return Trace(trace_id, _span_id(), request_id, sampled, parent_span_id)


def _span_id() -> str:
    # All zeros is no id.
    return f"{_IDS.getrandbits(64) or 1:016x}"


def set_trace(trace: Trace | None) -> None:
    """Makes it the trace of this task or thread."""
    _TRACE.set(trace)


def current_trace() -> Trace | None:
    """The trace of this task, None outside of one."""
    return _TRACE.get()


class LogSink:
    """Writes records to a file (whole lines, rotated by size) and shortly to a stream. Thread-safe.

    Args:
        path: JSON lines; None writes no file.
        stream: Short lines for people; None writes none.
        level: Lowest level for the file; the stream shows from `stream_level`.
    """

    def __init__(
        self,
        service: str,
        path: Path | None,
        stream: TextIO | None,
        *,
        level: str = "info",
        stream_level: str = "warning",
    ) -> None:
        self._service = service
        self._path = path
        self._stream = stream
        self._level = _LEVELS[level.lower()]
        self._stream_level = _LEVELS[stream_level.lower()]
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size_bytes = 0
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open(path)

    def emit(self, level: str, event: str, fields: MutableMapping[str, Any], *, show: bool = False) -> None:
        """Writes one record.

        Args:
            level: "debug", "info", "warning", "error" or "critical".
            event: What happened, in a few words.
            fields: Values that orjson can write; others become their `str`.
            show: Whether the stream gets it whatever its level.
        """
        rank = _LEVELS.get(level, 20)
        if rank < self._level:
            return
        now = time.time()
        trace = _TRACE.get()
        record: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "service": self._service,
            "event": event,
        }
        if trace is not None:
            record["trace_id"] = trace.trace_id
            record["request_id"] = trace.request_id
        record.update(fields)
        if self._path is not None:
            self._write(
                orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
            )
        if self._stream is not None and (show or rank >= self._stream_level):
            self._print(level, event, fields, now)

    def close(self) -> None:
        """Closes the file. Later records reach the stream only."""
        with self._lock:
            self._path = None
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._descriptor).st_size

    def _write(self, line: bytes) -> None:
        with self._lock:
            if self._descriptor is None or self._path is None:
                return
            try:
                # One write for a line, so that lines of several processes do not mix.
                os.write(self._descriptor, line)
                self._size_bytes += len(line)
                if self._size_bytes > _ROTATE_BYTES:
                    self._rotate(self._path)
            except OSError as error:
                # A full disk must not stop a service from answering.
                if self._stream is not None:
                    print(f"log file: {error}", file=self._stream)

    def _rotate(self, path: Path) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
        for number in range(_KEEP_FILES - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))
        self._open(path)

    def _print(self, level: str, event: str, fields: MutableMapping[str, Any], now: float) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        words = " ".join(f"{key}={value}" for key, value in fields.items() if key != "exception")
        text = f"{clock} {self._service:<10} {level:<7} {event} {words}".rstrip()
        if "exception" in fields and _LEVELS.get(level, 20) >= 40:
            text += "\n" + str(fields["exception"]).rstrip()
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            # Whoever read stderr has gone; the file still has the record.
            self._stream = None


class _StdlibHandler(logging.Handler):
    def __init__(self, sink: LogSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        self._sink.emit(record.levelname.lower(), record.getMessage(), fields)


class _StructlogTarget:
    """What structlog's last processor hands its result to."""

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink

    def msg(self, *, level: str, event: str, show: bool = False, **fields: Any) -> None:
        self._sink.emit(level, event, fields, show=show)

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = msg


def _flatten(
    _logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> tuple[tuple[Any, ...], MutableMapping[str, Any]]:
    level = {"warn": "warning", "exception": "error", "failure": "error", "fatal": "critical"}
    event_dict["level"] = level.get(method_name, method_name)
    event_dict["event"] = str(event_dict.get("event", ""))
    return (), event_dict


def configure_logging(
    service: str, logs: Path | None, *, level: str = "info", stream: TextIO | None = None
) -> LogSink:
    """Sends structlog and the standard library's logging of this process to one sink. For `__main__` only.

    Args:
        service: Name in each record.
        logs: Folder of the log files (HOME/logs), None for stderr only.
        level: Lowest level that is kept.
        stream: For short lines; stderr where None.
    """
    path = logs / f"{service}.jsonl" if logs is not None else None
    sink = LogSink(service, path, stream or sys.stderr, level=level)
    target = _StructlogTarget(sink)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, _flatten],
        logger_factory=lambda *_: target,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level.lower()]),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_StdlibHandler(sink)]
    root.setLevel(max(logging.WARNING, _LEVELS[level.lower()]))
    logging.captureWarnings(True)
    return sink

"""Spans: what is told of a piece of work when it has ended, and which traces may begin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from nightshift_kit.telemetry import Trace, begin_trace, current_trace, set_trace

_BURST: Final = 10.0
_MOST_NAMES: Final = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of work that has ended.

    Attributes:
        name: Of a method or of a kind of work; few different ones.
        trace: Where it stood.
        end_ns: Unix time at its end.
        duration_ns: How long it took, by a clock that does not jump.
        attributes: Names and values; ids and constants, never anything that a person wrote.
        served: Whether it answered a call from outside of the process.
        failed: Whether the service itself is at fault.
    """

    name: str
    trace: Trace
    end_ns: int
    duration_ns: int
    attributes: tuple[tuple[str, str], ...] = ()
    served: bool = False
    failed: bool = False


class SpanSink(Protocol):
    """Where spans go. Called on event loops, from several threads: it must not block."""

    @property
    def roots_per_minute(self) -> float:
        """How many traces may begin a minute with one frequent method."""
        ...

    def finished(self, span: Span) -> None:
        """Takes a span."""
        ...


class Roots:
    """A budget for each name: ten at once, then so many a minute. Used on one event loop only."""

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_minute / 60
        self._burst = _BURST if per_minute > 0 else 0.0
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> bool:
        """Whether there is one left."""
        now_s = time.monotonic()
        left, since_s = self._left.get(name, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_s)
        if left < 1:
            # The time stays: what has grown since is not lost.
            return False
        if len(self._left) >= _MOST_NAMES and name not in self._left:
            self._left.clear()
        self._left[name] = (left - 1, now_s)
        return True


@contextmanager
def working(sink: SpanSink | None, name: str, attributes: tuple[tuple[str, str], ...]) -> Iterator[None]:
    """Makes a block of this task a piece of work: calls made within belong to it, in logs and in spans.

    Work that a call started is part of that call's trace; other work begins one.

    Args:
        sink: Hears of it at its end; None where nothing is exported.
        name: Of the kind of work.
        attributes: As of a span.
    """
    outer = current_trace()
    trace = begin_trace() if outer is None else outer.within()
    set_trace(trace)
    began_ns = time.perf_counter_ns()
    try:
        yield
    finally:
        set_trace(outer)
        if sink is not None and trace.sampled:
            sink.finished(Span(name, trace, time.time_ns(), time.perf_counter_ns() - began_ns, attributes))

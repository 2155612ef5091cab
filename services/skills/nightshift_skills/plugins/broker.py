"""The conversation with one plug-in: its reads made for it, its plan taken, everything else refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format

from nightshift_kit.canonical import message_to_dict
from nightshift_kit.errors import NightshiftError
from nightshift_skills.errors import (
    PluginFailed,
    PluginKilled,
    PluginRefused,
    PluginStopped,
    PluginViolation,
)
from nightshift_skills.plans import PlannedCall, request_class
from nightshift_skills.plugins import frames
from nightshift_skills.plugins.frames import (
    AttemptFrame,
    ErrorFrame,
    FrameReader,
    NothingFrame,
    PlanFrame,
    ReadFrame,
)
from nightshift_skills.plugins.sandbox import Bounds, Cell, Sandbox
from nightshift_skills.plugins.withheld import withhold
from nightshift_skills.ports import ActingPort

MOST_READS: Final = 64
MOST_ANSWER_BYTES: Final = 4 << 20
_READ_TIMEOUT_S: Final = 10.0
_LAST_WORDS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Permits:
    """What one plug-in may ask for and plan: its manifest, as the settings tighten it."""

    reads: frozenset[str]
    methods: frozenset[str]


@dataclass(frozen=True, slots=True)
class Errand:
    """One planning."""

    module: str
    attribute: str
    files: Mapping[str, bytes]
    context: Mapping[str, Any]
    permits: Permits
    bounds: Bounds


class Broker:
    """Speaks with plug-ins."""

    def __init__(self, sandbox: Sandbox, acting: ActingPort) -> None:
        self._sandbox = sandbox
        self._acting = acting

    async def plan(self, errand: Errand, on_start: Callable[[Cell], None]) -> PlanFrame | NothingFrame:
        """What the plug-in would do. The child is dead when this returns or raises.

        Args:
            errand: Which plug-in, with what.
            on_start: Hears of the child, to kill it from elsewhere.

        Raises:
            PluginViolation, PluginKilled, PluginFailed, PluginRefused, PluginStopped.
        """
        cells: list[Cell] = []

        def started(cell: Cell) -> None:
            cells.append(cell)
            on_start(cell)

        try:
            async with (
                asyncio.timeout(errand.bounds.timeout_s),
                self._sandbox.cell(errand.files, errand.bounds, started) as cell,
            ):
                return await self._converse(cell, errand)
        except TimeoutError as error:
            raise PluginKilled(
                f"The plug-in did not answer within {errand.bounds.timeout_s:g} s and was killed.",
                metadata={"cause": "deadline"},
            ) from error
        except (EOFError, PluginRefused) as error:
            if cells and cells[0].cause == "stop":
                raise PluginStopped("The plug-in was stopped for a user, or by the lock.") from error
            if isinstance(error, PluginRefused):
                raise
            raise PluginKilled(
                f"The plug-in died before it answered (exit code {cells[0].exit_code}).",
                metadata={"cause": "died", "exit_code": str(cells[0].exit_code)},
            ) from error

    async def _converse(self, cell: Cell, errand: Errand) -> PlanFrame | NothingFrame:
        start = self._sandbox.start_frame(errand.context, errand.module, errand.attribute)
        listener = await self._sandbox.hand_over(cell, start, errand.bounds.timeout_s)
        with self._sandbox.lookout(cell, listener) as lookout:
            try:
                return await self._listen(cell, errand)
            except EOFError:
                if lookout.violation is not None:
                    raise lookout.violation from None
                if not cell.cause:
                    await asyncio.to_thread(cell.wait, _LAST_WORDS_S)
                raise

    async def _listen(self, cell: Cell, errand: Errand) -> PlanFrame | NothingFrame:
        cell.broker.setblocking(False)
        stream, writer = await asyncio.open_connection(sock=cell.broker, limit=frames.MOST_BYTES)
        reader = FrameReader(stream)
        reads = 0
        try:
            while True:
                match await reader.read():
                    case ReadFrame() as frame:
                        reads += 1
                        writer.write(frames.encode(await self._read(frame, errand.permits, reads)))
                        with suppress(ConnectionError):
                            await writer.drain()
                    case AttemptFrame() as frame:
                        raise PluginViolation(
                            f"The plug-in tried {frame.what}; it was killed.",
                            metadata={
                                "violation": "attempt",
                                "what": frame.what,
                                "detail": _plain(frame.detail),
                            },
                        )
                    case ErrorFrame() as frame:
                        raise PluginFailed(
                            f"The plug-in raised {_plain(frame.message)}",
                            metadata={"error": _plain(frame.kind)},
                        )
                    case PlanFrame() | NothingFrame() as frame:
                        return frame
        finally:
            writer.transport.abort()

    async def _read(self, frame: ReadFrame, permits: Permits, count: int) -> dict[str, Any]:
        if frame.method not in permits.reads:
            raise PluginViolation(
                f"The plug-in asked for {frame.method}, which it may not read.",
                metadata={"violation": "undeclared_read", "what": frame.method},
            )
        if count > MOST_READS:
            raise PluginViolation(
                f"The plug-in asked more than {MOST_READS} times.", metadata={"violation": "flood"}
            )
        try:
            request = json_format.ParseDict(frame.arguments, request_class(frame.method)())
            answer = await self._acting.call(frame.method, request, "", timeout_s=_READ_TIMEOUT_S)
        except (json_format.ParseError, RecursionError) as error:
            return _failed(frame, "ARGUMENTS_INVALID", str(error)[:400])
        except NightshiftError as error:
            return _failed(frame, error.reason, error.message)
        withhold(answer)
        if answer.ByteSize() > MOST_ANSWER_BYTES:
            return _failed(frame, "ANSWER_TOO_LARGE", f"more than {MOST_ANSWER_BYTES} bytes; ask for less")
        return {"type": "answer", "id": frame.id, "value": message_to_dict(answer)}


def calls_of(frame: PlanFrame, permits: Permits) -> tuple[PlannedCall, ...]:
    """The plan's calls, each as the real request.

    Raises:
        PluginViolation: a method that it may not plan.
        PluginFailed: arguments that are no request of that method.
    """
    calls = []
    for call in frame.calls:
        if call.method not in permits.methods:
            raise PluginViolation(
                f"The plug-in planned {call.method}, which it may not.",
                metadata={"violation": "undeclared_method", "what": call.method},
            )
        try:
            request = json_format.ParseDict(call.arguments, request_class(call.method)())
        except (json_format.ParseError, RecursionError) as error:
            raise PluginFailed(
                f"The plug-in planned arguments that {call.method} has not.", metadata={"error": "arguments"}
            ) from error
        calls.append(PlannedCall.of(call.method, request))
    return tuple(calls)


def _failed(frame: ReadFrame, reason: str, message: str) -> dict[str, Any]:
    return {"type": "failed", "id": frame.id, "reason": reason, "message": message}


def _plain(text: str) -> str:
    """A plug-in's words without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]

"""One log line for each call: who, what, how it ended. Never what the request said."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog

from nightshift_kit.rpc.passage import Passage
from nightshift_kit.rpc.policies import Kind

# Successful reads and platform writes come by thousands a second; more lines than this tell nobody more.
_LINES_PER_SECOND: Final = 50

_QUIET: Final = frozenset({Kind.READ, Kind.PLATFORM_WRITE, Kind.CONTROL})
_SERVER_FAULTS: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})


class AccessLog:
    """Writes the lines; drops those that come in floods above a rate and says how many."""

    def __init__(self) -> None:
        self._logger: Any = structlog.get_logger()
        self._second = 0
        self._lines = 0
        self._dropped = 0

    def write(self, passage: Passage, code: str, reason: str, duration_s: float) -> None:
        """Notes a finished call."""
        # A flood of refusals must not become a flood on the disk.
        frequent = reason == "OVERLOADED" or (code == "OK" and passage.rule.kind in _QUIET)
        if frequent and not self._room():
            self._dropped += 1
            return
        fields: dict[str, Any] = {
            "method": passage.rule.name,
            "code": code,
            "duration_ms": round(duration_s * 1e3, 3),
            "caller": passage.identity.actor if passage.identity is not None else "unknown",
        }
        if reason:
            fields["reason"] = reason
        if passage.identity is not None and passage.identity.token:
            fields["token"] = f"tokens/{passage.identity.token}"
        if passage.skill_run:
            fields["skill_run"] = passage.skill_run
        if self._dropped:
            fields["lines_dropped"], self._dropped = self._dropped, 0
        if code in _SERVER_FAULTS:
            self._logger.error("rpc", **fields)
        else:
            self._logger.info("rpc", **fields)

    def _room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= _LINES_PER_SECOND

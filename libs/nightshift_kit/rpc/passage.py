"""One call on its way through the guard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import METADATA_KEY
from nightshift_kit.rpc.identity import Identity
from nightshift_kit.rpc.policies import MethodRule
from nightshift_kit.telemetry import Trace, begin_trace, set_trace
from nightshift_kit.tokens import METADATA_KEY as TOKEN_KEY

REQUEST_ID_KEY: Final = "x-request-id"
TRACEPARENT_KEY: Final = "traceparent"

ServicerContext = grpc.aio.ServicerContext[Any, Any]


class Passage:
    """What is known about a call while it runs; its task can be interrupted with a reason."""

    __slots__ = (
        "_error",
        "_finished",
        "_loop",
        "_task",
        "context",
        "grant_token",
        "identity",
        "rule",
        "skill",
        "skill_run",
        "started_s",
        "tokens",
        "trace",
    )

    def __init__(
        self,
        rule: MethodRule,
        context: ServicerContext,
        begins_trace: Callable[[MethodRule], bool] | None = None,
    ) -> None:
        """Args: `begins_trace` says whether spans of a trace that begins with this call are exported."""
        self.rule = rule
        self.context = context
        self.identity: Identity | None = None
        self.skill = ""
        self.skill_run = ""
        self.started_s = time.perf_counter()
        self.grant_token: str | None = None
        # Local tokens as they came: secrets, for the token door alone.
        self.tokens: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._error: NightshiftError | None = None
        self._finished = False
        traceparent = request_id = None
        for key, value in context.invocation_metadata() or ():
            if key == TRACEPARENT_KEY:
                traceparent = value
            elif key == REQUEST_ID_KEY:
                request_id = value
            elif key == METADATA_KEY:
                self.grant_token = value if isinstance(value, str) else value.decode("ascii", "replace")
            elif key == TOKEN_KEY:
                self.tokens.append(value if isinstance(value, str) else value.decode("ascii", "replace"))
        self.trace: Trace = begin_trace(
            traceparent if isinstance(traceparent, str) else None,
            request_id if isinstance(request_id, str) else None,
        )
        if begins_trace is not None and not self.trace.parent_span_id and not begins_trace(rule):
            self.trace = self.trace.unsampled()
        set_trace(self.trace)

    def interrupt(self, error: NightshiftError) -> None:
        """Cancels the call's task; the caller is told the error. On the call's own event loop only."""
        if not self._finished and self._error is None and self._task is not None:
            self._error = error
            self._task.cancel()

    def interrupt_threadsafe(self, error: NightshiftError) -> None:
        """As interrupt, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.interrupt, error)
        except RuntimeError:
            # The loop is closed, and the call with it.
            return

    def interruption(self) -> NightshiftError | None:
        """Why the call was interrupted; takes the cancellation back so that the refusal can be sent."""
        if self._error is not None and self._task is not None:
            self._task.uncancel()
        return self._error

    def finish(self) -> float:
        """From now on an interruption changes nothing. Returns how long the call took, in seconds."""
        self._finished = True
        return time.perf_counter() - self.started_s

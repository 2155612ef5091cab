"""The call that is being served, for handlers that need more than their request."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from nightshift_kit.clock import Clock
from nightshift_kit.grants import Effect, FenceGate, Grant
from nightshift_kit.rpc.identity import Identity

_CALL: ContextVar[Call] = ContextVar("nightshift_call")


@dataclass(slots=True, kw_only=True)
class Call:
    """One call, as far as it has been checked.

    Attributes:
        method: Full name ("nightshift.lab.v1.LabService/PromoteProposal").
        identity: Who calls.
        request_id: From the caller's `x-request-id`, or a new one.
        deadline_s: Seconds that the caller granted at the beginning, None for no limit (streams).
        grant: Verified; None for methods that do not act.
        arguments_digest: SHA-256 (hex) over the request of an acting call, "" otherwise.
    """

    method: str
    identity: Identity
    request_id: str
    trace_id: str
    deadline_s: float | None
    clock: Clock
    grant: Grant | None = None
    arguments_digest: str = ""
    single_use: bool = False
    gate: FenceGate | None = None
    started_s: float = field(default_factory=time.monotonic)

    @property
    def actor(self) -> str:
        """Who stands behind the call, for audit events: the grant's initiator, else the caller."""
        if self.grant is not None and self.grant.initiator:
            return self.grant.initiator
        return self.identity.actor

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None for no limit."""
        if self.deadline_s is None:
            return None
        return max(0.0, self.deadline_s - (time.monotonic() - self.started_s))

    def effect(self) -> Effect:
        """The right to the effect of this acting call. Raises RuntimeError where no grant was needed."""
        if self.grant is None:
            raise RuntimeError(f"{self.method} does not act; it has no effect to redeem")
        return Effect(
            self.grant,
            self.method,
            self.arguments_digest,
            self.single_use,
            self.actor,
            self.clock.now,
            self.gate,
        )


def current_call() -> Call:
    """The call in whose task this runs. Raises LookupError outside of one."""
    return _CALL.get()


def enter_call(call: Call) -> None:
    """Makes it the current call of this task; gRPC runs each call in a task of its own."""
    _CALL.set(call)


def call_or_none() -> Call | None:
    """The current call, None outside of one."""
    return _CALL.get(None)

"""One span for each call, and which traces may begin with one.

A plane at rest makes some calls a second to itself (leases, outboxes, states), and platforms report by the
thousand: each of them would begin a trace of one span. So traces begin freely only with commands and acting
calls; of anything else, and of refusals, some for each method. What a caller traces is the caller's choice.
"""

from __future__ import annotations

import time
from typing import Final

from nightshift_kit.otlp import Roots, Span, SpanSink
from nightshift_kit.rpc.passage import Passage
from nightshift_kit.rpc.policies import Kind, MethodRule

_RARE: Final = frozenset({Kind.COMMAND, Kind.ACTING})
# Where the server is at fault, as OpenTelemetry's conventions for gRPC have it.
_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """The spans of one server; used on its event loop only."""

    def __init__(self, sink: SpanSink) -> None:
        self._sink = sink
        self._roots = Roots(sink.roots_per_minute)

    def begins(self, rule: MethodRule) -> bool:
        """Whether a trace that begins with a call of this method is kept."""
        return rule.kind in _RARE or self._roots.take(rule.name)

    def finished(self, passage: Passage, code: str, reason: str, duration_s: float) -> None:
        """Hands on the span of a call that has ended, if it is to be kept."""
        trace, name = passage.trace, passage.rule.name
        keep = trace.sampled
        if code != "OK" and not trace.parent_span_id:
            keep = self._roots.take(f"{name} {reason or code}")
        if not keep:
            return
        attributes = [("rpc.system.name", "grpc"), ("rpc.method", name), ("rpc.response.status_code", code)]
        if code != "OK":
            attributes.append(("error.type", reason or code))
        if passage.identity is not None:
            attributes.append(("nightshift.caller", _caller(passage)))
        if passage.skill_run:
            attributes.append(("nightshift.skill", passage.skill))
            attributes.append(("nightshift.skill_run", passage.skill_run))
        self._sink.finished(
            Span(
                name,
                trace,
                end_ns=time.time_ns(),
                duration_ns=round(duration_s * 1e9),
                attributes=tuple(attributes),
                served=True,
                failed=code in _FAULTS,
            )
        )


def _caller(passage: Passage) -> str:
    """A service by its name, of others only what they are: names of persons and machines stay here."""
    identity = passage.identity
    assert identity is not None
    if identity.kind == "service":
        return f"service/{identity.name}"
    return f"{identity.kind}/{identity.role}" if identity.role else identity.kind

"""Proof of what was done: each service's outbox, the sealed chain over all of them, signed checkpoints."""

from nightshift_kit.audit.event import Event
from nightshift_kit.audit.outbox import Outbox

__all__ = ["Event", "Outbox"]

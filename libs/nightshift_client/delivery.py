"""What became of a record."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DeliveryState(enum.Enum):
    """Where a record is now."""

    STORED = "stored"
    """The plane has it on its disk."""
    SPOOLED = "spooled"
    """It waits on our disk and is delivered in the background."""
    REFUSED = "refused"
    """The plane, or the client itself, will never take it; ``reason`` says why."""
    DROPPED = "dropped"
    """It could neither be delivered nor kept."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a record; true if it is not lost."""

    state: DeliveryState
    reason: str = ""
    message: str = ""

    def __bool__(self) -> bool:
        return self.state in (DeliveryState.STORED, DeliveryState.SPOOLED)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of one client since it began."""

    stored: int
    spooled: int
    refused: int
    dropped: int
    delivered_later: int
    waiting: int
    reports_sent: int
    reports_lost: int
    experience_breaker: str
    control_breaker: str

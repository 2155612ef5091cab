"""Back-off after repeated pre-emption: 30 s, doubling to 15 min, forgotten after a clean hour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class BackoffRule:
    """Spans in seconds."""

    first_s: float = 30.0
    maximum_s: float = 900.0
    clean_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long background work stays away. `last` is the last pre-emption that stopped work."""

    rule: BackoffRule
    span_s: float = 0.0
    last: datetime | None = None

    @property
    def until(self) -> datetime | None:
        """Until when background work stays away; None if it need not."""
        return None if self.last is None else self.last + timedelta(seconds=self.span_s)

    def preempted(self, now: datetime) -> Backoff:
        """After a pre-emption that stopped work."""
        clean = self.last is None or (now - self.last).total_seconds() >= self.rule.clean_s
        span_s = self.rule.first_s if clean else min(self.span_s * 2, self.rule.maximum_s)
        return replace(self, span_s=span_s, last=now)

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

    def remaining_s(self, now: datetime) -> float:
        """How long background work still stays away, in seconds; never longer than the span.

        A wall clock that was set back since would tell more: whoever has a boot clock measures by that.
        """
        if self.last is None:
            return 0.0
        return min(self.span_s, max(0.0, self.span_s - (now - self.last).total_seconds()))

    def preempted(self, now: datetime, since_last_s: float | None = None) -> Backoff:
        """After a pre-emption that stopped work.

        Args:
            now: When it began.
            since_last_s: Time since the one before, in seconds, by a clock that does not jump; None takes
                the wall clock's word.
        """
        if since_last_s is None and self.last is not None:
            since_last_s = (now - self.last).total_seconds()
        clean = self.last is None or (since_last_s or 0.0) >= self.rule.clean_s
        span_s = self.rule.first_s if clean else min(self.span_s * 2, self.rule.maximum_s)
        return replace(self, span_s=span_s, last=now)

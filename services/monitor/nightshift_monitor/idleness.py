"""Whether the machine counts as idle, with reasons: a pure function of facts and an instant.

Idle means: quiet for ``quiet_s`` since the last activity, nothing in flight, no back-off, the platform
known to be up, and no configured corroboration that speaks against it.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import datetime

from nightshift_monitor.activity import NANOSECONDS


class PlatformState(enum.Enum):
    """The platform as its probes show it."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    STARTING = "starting"


@dataclass(frozen=True, slots=True)
class PlatformFact:
    """The platform's state; from ``valid_until_ns`` (boot clock) on the last look is too old."""

    state: PlatformState
    detail: str
    valid_until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class UseFact:
    """What another witness says: ``in_use`` None means that it could not be asked and is not counted."""

    code: str
    in_use: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class ExportsFact:
    """The newest file under the export folder; ``newest_ns`` on the boot clock, None where there is none."""

    newest_ns: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a verdict rests on; instants in nanoseconds of the boot clock."""

    quiet_ns: int
    quiet_since_ns: int
    activity_known: bool
    in_flight_starts_ns: tuple[int, ...]
    in_flight_timeout_ns: int
    quiet_until_ns: int
    platform: PlatformFact
    uses: tuple[UseFact, ...] = ()
    exports: ExportsFact | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """One condition: a stable code, whether it allows idleness, and a sentence."""

    code: str
    allows_idle: bool
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict at one instant.

    ``quiet_remaining_ns`` is what time alone still has to bring, 0 if time is not what is missing.
    ``next_change_ns`` is the earliest instant at which time alone may change a condition, None for never.
    """

    idle: bool
    reasons: tuple[Reason, ...]
    quiet_remaining_ns: int
    platform_up: bool
    next_change_ns: int | None


@dataclass(frozen=True, slots=True)
class Idleness:
    """A verdict as it is shown; times UTC."""

    idle: bool
    reasons: tuple[Reason, ...]
    since: datetime
    last_activity: datetime | None
    quiet_remaining_s: float
    platform_up: bool
    predicted_busy: datetime | None = None
    """Beginning of the next hour in which users are expected; None while too little is known."""


def judge(facts: Facts, now_ns: int) -> Judgement:
    """Weighs the facts at one instant. Reasons against idleness come first."""
    reasons: list[Reason] = []
    ends: list[int] = []
    remaining_ns = 0

    quiet_end = facts.quiet_since_ns + facts.quiet_ns
    quiet_for = _span(now_ns - facts.quiet_since_ns)
    if now_ns < quiet_end:
        missing = quiet_end - now_ns
        remaining_ns = max(remaining_ns, missing)
        ends.append(quiet_end)
        if facts.activity_known:
            reasons.append(
                Reason(
                    "ACTIVITY",
                    False,
                    f"A user was active {quiet_for} ago; {_span(missing)} of quiet are missing.",
                )
            )
        else:
            reasons.append(
                Reason(
                    "STARTING",
                    False,
                    f"No activity is known: the start counts as one; {_span(missing)} of quiet are missing.",
                )
            )
    else:
        what = (
            "since the last activity" if facts.activity_known else "since the start, and no activity is known"
        )
        reasons.append(
            Reason("QUIET", True, f"Quiet for {quiet_for} {what}; {_span(facts.quiet_ns)} are asked for.")
        )

    flying = [start for start in facts.in_flight_starts_ns if now_ns - start < facts.in_flight_timeout_ns]
    if flying:
        noun = "generation is" if len(flying) == 1 else "generations are"
        reasons.append(
            Reason(
                "IN_FLIGHT",
                False,
                f"{len(flying)} {noun} running, the oldest for {_span(now_ns - min(flying))}.",
            )
        )
        ends.append(min(flying) + facts.in_flight_timeout_ns)

    if now_ns < facts.quiet_until_ns:
        missing = facts.quiet_until_ns - now_ns
        remaining_ns = max(remaining_ns, missing)
        ends.append(facts.quiet_until_ns)
        reasons.append(
            Reason(
                "BACKOFF",
                False,
                f"Users came back repeatedly; background work waits another {_span(missing)}.",
            )
        )

    platform_reason = _platform_reason(facts.platform, now_ns)
    reasons.append(platform_reason)
    if facts.platform.valid_until_ns is not None and now_ns < facts.platform.valid_until_ns:
        ends.append(facts.platform.valid_until_ns)

    for use in facts.uses:
        reasons.append(Reason(use.code, use.in_use is not True, use.detail))
    if facts.exports is not None:
        exports_reason, exports_end = _exports_reason(facts.exports, facts.quiet_ns, now_ns)
        reasons.append(exports_reason)
        if exports_end is not None:
            remaining_ns = max(remaining_ns, exports_end - now_ns)
            ends.append(exports_end)

    reasons.sort(key=lambda reason: reason.allows_idle)
    return Judgement(
        idle=all(reason.allows_idle for reason in reasons),
        reasons=tuple(reasons),
        quiet_remaining_ns=remaining_ns,
        platform_up=platform_reason.allows_idle,
        next_change_ns=min(ends, default=None),
    )


def _platform_reason(fact: PlatformFact, now_ns: int) -> Reason:
    if fact.valid_until_ns is not None and now_ns >= fact.valid_until_ns:
        return Reason("PLATFORM_UNKNOWN", False, "The last look at the platform is too old to count.")
    match fact.state:
        case PlatformState.UP:
            return Reason("PLATFORM_UP", True, f"The platform is up: {fact.detail}")
        case PlatformState.DOWN:
            return Reason("PLATFORM_DOWN", False, f"The platform is gone: {fact.detail}")
        case PlatformState.STARTING:
            return Reason("STARTING", False, f"The platform was not looked at yet: {fact.detail}")
        case PlatformState.UNKNOWN:
            return Reason(
                "PLATFORM_UNKNOWN", False, f"Whether the platform is up cannot be known: {fact.detail}"
            )


def _exports_reason(fact: ExportsFact, quiet_ns: int, now_ns: int) -> tuple[Reason, int | None]:
    if fact.newest_ns is None:
        return Reason("EXPORTS_WRITTEN", True, fact.detail), None
    age_ns = max(0, now_ns - fact.newest_ns)
    message = f"The platform last wrote an export {_span(age_ns)} ago."
    if age_ns < quiet_ns:
        return Reason("EXPORTS_WRITTEN", False, message), fact.newest_ns + quiet_ns
    return Reason("EXPORTS_WRITTEN", True, message), None


def _span(nanoseconds: int) -> str:
    """A span for people: 0.4 s, 12 s, 3 min 5 s, 2 h 4 min."""
    seconds = max(0.0, nanoseconds / NANOSECONDS)
    if seconds < 10:
        return f"{math.ceil(seconds * 10) / 10:g} s"
    whole = math.ceil(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"

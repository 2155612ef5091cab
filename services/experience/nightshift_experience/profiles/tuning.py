"""Auto-tune: which recommendations a run takes over, and what becomes of those that runs took over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from nightshift_experience.profiles.advice import (
    Category,
    Confidence,
    CurrentSettings,
    Recommendation,
    Rules,
)
from nightshift_experience.profiles.evidence import Evidence, compare
from nightshift_experience.profiles.recommending import recommend
from nightshift_experience.profiles.statistics import GroupStatistics, Profile, Weights

FIELDS = {
    Category.MODE: "mode",
    Category.STRATEGY: "strategy",
    Category.ROUNDS: "max_rounds",
    Category.COST: "max_cost_usd",
}
_WORSE = 0.80
_BETTER = 0.95
_LEAST_RUNS = 5


class TuningState(IntEnum):
    """What became of a tuned value; the numbers are those of the proto."""

    WATCHED = 1
    CONFIRMED = 2
    REVERTED = 3


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """What a project lets be tuned."""

    enabled: bool = False
    apply_safely: bool = True
    min_runs: int = 5
    threshold: Confidence = Confidence.MEDIUM
    # 0 as long as nobody changed anything.
    version: int = 0
    update_us: int | None = None


# The switch above all projects: only `enabled` of it counts.
GLOBAL = TuningSettings(enabled=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A tuned value, its runs against those without it, and what became of it."""

    field: str
    original: str
    tuned: str
    state: TuningState
    runs: GroupStatistics
    baseline: GroupStatistics
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Tuned:
    """Settings to run with.

    `changes` are (field, value before, value taken, why), `declined` (field, value advised, why not).
    """

    settings: CurrentSettings
    changes: tuple[tuple[str, str, str, str], ...] = ()
    declined: tuple[tuple[str, str, str], ...] = ()
    reason: str = ""


def outcomes(profile: Profile, only: Collection[tuple[str, str, str]] | None = None) -> list[Outcome]:
    """What became of each value that runs took over; of some (field, original, tuned) alone with `only`."""
    found = []
    for (field, original, taken), runs, baseline in profile.tuned:
        if only is not None and (field, original, taken) not in only:
            continue
        evidence = compare(baseline, runs, Weights())
        state = TuningState.WATCHED
        if runs.runs >= _LEAST_RUNS and evidence.worse >= _WORSE:
            state = TuningState.REVERTED
        elif runs.runs >= _LEAST_RUNS and evidence.better >= _BETTER:
            state = TuningState.CONFIRMED
        found.append(Outcome(field, original, taken, state, runs, baseline, evidence))
    return found


def tune(
    profile: Profile,
    current: CurrentSettings,
    own: TuningSettings,
    everywhere: TuningSettings,
    *,
    explicit: Collection[str] = (),
    skip: bool = False,
    advised: Sequence[Recommendation] | None = None,
) -> Tuned:
    """Recommendations that a run takes over; `current` stays as it is.

    Args:
        profile: The project's.
        current: Settings that the run would have.
        own: What the project lets be tuned.
        everywhere: The global switch.
        explicit: Fields that were set for this very run.
        skip: Whether the run wants none of it.
        advised: What is recommended for `current`, where that is known already.
    """
    for is_so, reason in (
        (skip, "SKIPPED"),
        (not everywhere.enabled, "GLOBALLY_OFF"),
        (not own.enabled, "OFF"),
        (profile.total.runs < own.min_runs, "TOO_FEW_RUNS"),
    ):
        if is_so:
            return Tuned(current, reason=reason)
    if advised is None:
        advised = recommend(profile, current, Rules())
    wanted = {(FIELDS[one.category], one.current, one.recommended) for one in advised}
    reverted = {
        (outcome.field, outcome.original, outcome.tuned)
        for outcome in outcomes(profile, wanted)
        if outcome.state == TuningState.REVERTED
    }
    return take_over(advised, current, own, explicit=explicit, reverted=reverted)


def take_over(
    advised: Iterable[Recommendation],
    current: CurrentSettings,
    own: TuningSettings,
    *,
    explicit: Collection[str] = (),
    reverted: Collection[tuple[str, str, str]] = (),
) -> Tuned:
    """The settings with what may be taken over; nothing of low confidence where it is to be safe."""
    least = max(own.threshold, Confidence.MEDIUM) if own.apply_safely else own.threshold
    changes, declined = [], []
    settings = current
    for one in advised:
        field = FIELDS[one.category]
        why_not = ""
        if field in explicit:
            why_not = "EXPLICIT"
        elif one.confidence < least:
            why_not = "CONFIDENCE"
        elif (field, one.current, one.recommended) in reverted:
            why_not = "REVERTED"
        if why_not:
            declined.append((field, one.recommended, why_not))
            continue
        settings = _with(settings, one)
        changes.append((field, one.current, one.recommended, one.explanation))
    return Tuned(settings, tuple(changes), tuple(declined))


def _with(settings: CurrentSettings, one: Recommendation) -> CurrentSettings:
    match one.category:
        case Category.MODE:
            return replace(settings, mode=one.recommended)
        case Category.STRATEGY:
            return replace(settings, strategy=one.recommended)
        case Category.ROUNDS:
            return replace(settings, max_rounds=int(one.recommended))
        case Category.COST:
            return replace(settings, max_cost_usd=float(one.recommended))

"""What a recommendation is, what it needs, and how far evidence lets its confidence go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nightshift_experience.profiles.statistics import Weights

# Room for the rounding of fractions in comparisons with thresholds: 0.80 - 0.75 is a little below 0.05.
EPSILON = 1e-9


class Category(IntEnum):
    """What it is about; the numbers are those of the proto."""

    MODE = 1
    ROUNDS = 2
    COST = 3
    STRATEGY = 4


class Confidence(IntEnum):
    """How sure; the numbers are those of the proto."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class CurrentSettings:
    """What is set now. "" and None: not known, then nothing is said about it."""

    mode: str = ""
    strategy: str = ""
    max_rounds: int | None = None
    max_cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Necessary conditions. Shares are fractions: 0.05 of quality is 5 points, 0.15 of cost is 15 %."""

    weights: Weights = Weights()  # noqa: RUF009 - frozen
    # Modes and strategies: runs of each, least saving, largest loss of quality, least gain of quality.
    min_runs: int = 3
    min_saving: float = 0.15
    max_quality_loss: float = 0.05
    min_quality_gain: float = 0.05
    # "No more cost": dearer by less than can be told apart in practice.
    cost_tolerance: float = 0.06
    # Strategies: by how much the score must be better.
    min_score_gain: float = 0.10
    # Rounds: share that ends early, distance of the limit from the median, quality, share at the limit.
    rounds_early: float = 0.95
    rounds_distance: int = 2
    rounds_quality: float = 0.80
    rounds_cut: float = 0.20
    # Cost: the limit as a multiple of the dearest run, and from which multiple on it is too high.
    cost_headroom: float = 1.2
    cost_slack: float = 1.3
    # Caps by evidence.
    high_probability: float = 0.95
    medium_probability: float = 0.80


@dataclass(frozen=True, slots=True)
class Impact:
    """What following it is expected to change; None where that cannot be told."""

    # By run, in $ and as a share of what it is now; negative saves.
    cost_usd: float | None = None
    cost_share: float | None = None
    # Of the pass rate.
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An advised change of one setting."""

    category: Category
    current: str
    recommended: str
    explanation: str
    confidence: Confidence
    impact: Impact
    # Runs behind either value; for rounds and cost all runs that tell of it, twice.
    current_runs: float
    recommended_runs: float
    # P(better) under the model, and the score that a wrong switch is expected to cost.
    probability: float
    expected_loss: float
    # What the table alone would have said, before evidence capped it.
    uncapped: Confidence


def capped(table: Confidence, probability: float, rules: Rules) -> Confidence:
    """The table's confidence, no higher than evidence allows."""
    if probability >= rules.high_probability:
        return table
    if probability >= rules.medium_probability:
        return min(table, Confidence.MEDIUM)
    return Confidence.LOW


def dollars(amount: float) -> str:
    """An amount as people read it: cents, or three digits where it is smaller."""
    return f"${amount:.2f}" if abs(amount) >= 0.1 or amount == 0 else f"${amount:.3g}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share * 100:.0f} %"


def count(number: float) -> str:
    """A number of runs; weighted ones with one decimal."""
    return str(int(number)) if number == int(number) else f"{number:.1f}"

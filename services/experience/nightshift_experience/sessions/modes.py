"""Engagement modes: what a session was after, as a distribution with the evidence for each mode.

A mode is described by what sessions after it do: for each such thing a membership between 0 (not at all) and
1 (plainly), and a weight. The strength of a mode is the weighted mean of the memberships; strengths become
probabilities by a softmax that is flatter for short sessions, which show less. Nothing is learnt from labels:
the bounds say what the words mean ("quick" is under a minute from run to run).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nightshift_experience.sessions.signals import Signals


class EngagementMode(IntEnum):
    """What a session was after; the numbers are those of the proto's EngagementMode."""

    IDENTITY_EXPRESSION = 1
    AESTHETIC_SEARCH = 2
    DECONSTRUCTION = 3
    EXPLORATION = 4
    BOUNDARY_TESTING = 5
    SELF_ARTICULATION = 6
    OPTIMIZATION = 7

    @property
    def words(self) -> str:
        """As people write it."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One observation for or against a mode.

    Attributes:
        signal: What was measured.
        value: The measure: a share, or seconds, or a correlation.
        strength: How plainly it speaks for the mode, 0 (against) to 1.
        weight: How much it counts among the mode's observations; they sum to 1.
        text: In words, with the numbers.
    """

    signal: str
    value: float
    strength: float
    weight: float
    text: str


@dataclass(frozen=True, slots=True)
class ModeWeight:
    """One mode of a session's distribution, with its evidence, weightiest first."""

    mode: EngagementMode
    probability: float
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class _Measure:
    value: Callable[[Signals], float]
    text: Callable[[Signals], str]


@dataclass(frozen=True, slots=True)
class _Trait:
    signal: str
    weight: float
    # Membership is 0 at `none`, 1 at `plain`, straight between; none > plain where less speaks for the mode.
    none: float
    plain: float

    def strength(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.none) / (self.plain - self.none)))


def _of(share: float, runs: int) -> str:
    return f"{round(share * runs)} of {runs} runs"


_MEASURES: Final[dict[str, _Measure]] = {
    "config_changes": _Measure(
        lambda s: s.config_changes,
        lambda s: f"The config changes on {s.config_changes:.0%} of the steps ({s.configs} configs).",
    ),
    "median_gap_s": _Measure(
        lambda s: s.median_gap_s, lambda s: f"Half of the runs follow within {s.median_gap_s:.0f} s."
    ),
    "distinct_prompts": _Measure(
        lambda s: s.distinct, lambda s: f"{s.distinct_prompts} different prompts in {s.runs} runs."
    ),
    "cohesion": _Measure(
        lambda s: s.cohesion, lambda s: f"Neighbouring prompts share {s.cohesion:.0%} of their wording."
    ),
    "favorites": _Measure(
        lambda s: s.favorites, lambda s: f"{_of(s.favorites, s.runs)} were marked as favourites."
    ),
    "repeated": _Measure(
        lambda s: s.repeated, lambda s: f"{_of(s.repeated, s.runs)} repeat a request with a new seed."
    ),
    "same_seed": _Measure(
        lambda s: s.same_seed, lambda s: f"{_of(s.same_seed, s.runs)} keep prompt and seed of an earlier one."
    ),
    "stopped": _Measure(
        # A run that left nothing may have been stopped, or may have been left: it counts half.
        lambda s: s.blocked + s.unfinished / 2,
        lambda s: (
            f"{_of(s.blocked, s.runs)} were stopped by a check, {_of(s.unfinished, s.runs)} "
            "left nothing behind."
        ),
    ),
    "personal": _Measure(
        lambda s: s.personal, lambda s: f"{s.personal:.0%} of the prompts speak of their writer."
    ),
    "growth": _Measure(
        lambda s: s.growth,
        lambda s: f"Rank correlation of a prompt's place with its length: {s.growth:+.2f}.",
    ),
}

_TRAITS: Final[dict[EngagementMode, tuple[_Trait, ...]]] = {
    EngagementMode.IDENTITY_EXPRESSION: (
        _Trait("repeated", 3.0, 0.2, 0.5),
        _Trait("personal", 1.5, 0.1, 0.7),
        _Trait("config_changes", 1.5, 0.6, 0.1),
        _Trait("median_gap_s", 0.5, 600, 180),
    ),
    EngagementMode.AESTHETIC_SEARCH: (
        _Trait("cohesion", 2.0, 0.3, 0.5),
        _Trait("favorites", 1.0, 0.0, 0.2),
        _Trait("distinct_prompts", 1.0, 0.3, 0.55),
        _Trait("config_changes", 1.0, 0.9, 0.5),
        _Trait("repeated", 1.0, 0.0, 0.15),
        _Trait("median_gap_s", 1.0, 350, 200),
        _Trait("stopped", 1.0, 0.25, 0.1),
    ),
    EngagementMode.DECONSTRUCTION: (
        _Trait("config_changes", 2.5, 0.6, 0.95),
        _Trait("median_gap_s", 2.0, 45, 62),
        _Trait("cohesion", 1.0, 0.1, 0.25),
        _Trait("favorites", 1.0, 0.1, 0.0),
        _Trait("distinct_prompts", 1.0, 0.5, 0.8),
    ),
    EngagementMode.EXPLORATION: (
        _Trait("config_changes", 2.5, 0.6, 0.95),
        _Trait("median_gap_s", 2.5, 65, 45),
        _Trait("cohesion", 1.5, 0.35, 0.18),
        _Trait("distinct_prompts", 1.0, 0.5, 0.9),
    ),
    EngagementMode.BOUNDARY_TESTING: (
        _Trait("stopped", 4.0, 0.04, 0.25),
        _Trait("distinct_prompts", 1.0, 0.3, 0.7),
        _Trait("config_changes", 1.0, 0.9, 0.6),
        _Trait("median_gap_s", 1.0, 180, 90),
    ),
    EngagementMode.SELF_ARTICULATION: (
        _Trait("median_gap_s", 3.0, 170, 300),
        _Trait("growth", 2.0, 0.2, 0.7),
        _Trait("personal", 1.5, 0.1, 0.6),
        _Trait("config_changes", 1.0, 0.6, 0.1),
        _Trait("distinct_prompts", 1.0, 0.5, 0.8),
    ),
    EngagementMode.OPTIMIZATION: (
        _Trait("same_seed", 4.0, 0.1, 0.45),
        _Trait("distinct_prompts", 2.0, 0.5, 0.25),
        _Trait("config_changes", 0.5, 0.6, 0.1),
    ),
}

# A strength that leads by a tenth is worth e to the power of this; the runs at which half of it holds.
_SHARPNESS: Final = 14.0
_HALF_RUNS: Final = 3.0


def distribution(signals: Signals) -> list[ModeWeight]:
    """The seven modes, likeliest first; probabilities sum to 1."""
    told = {mode: _evidence(signals, traits) for mode, traits in _TRAITS.items()}
    sharpness = _SHARPNESS * signals.runs / (signals.runs + _HALF_RUNS)
    powers = {
        mode: math.exp(sharpness * sum(one.weight * one.strength for one in evidence))
        for mode, evidence in told.items()
    }
    total = sum(powers.values())
    return sorted(
        (ModeWeight(mode, powers[mode] / total, told[mode]) for mode in told),
        key=lambda one: (-one.probability, one.mode),
    )


def _evidence(signals: Signals, traits: Sequence[_Trait]) -> tuple[Evidence, ...]:
    total = sum(trait.weight for trait in traits)
    found = []
    for trait in traits:
        measure = _MEASURES[trait.signal]
        value = measure.value(signals)
        found.append(
            Evidence(trait.signal, value, trait.strength(value), trait.weight / total, measure.text(signals))
        )
    return tuple(sorted(found, key=lambda one: -one.weight))

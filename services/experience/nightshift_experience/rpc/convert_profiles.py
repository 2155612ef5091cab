"""From requests about profiles to what the core takes."""

from __future__ import annotations

import math

from nightshift.experience.v1 import profiles_pb2 as pb
from nightshift_experience.errors import RulesInvalid
from nightshift_experience.profiles.advice import Rules
from nightshift_experience.profiles.statistics import Weights
from nightshift_kit.errors import FieldInvalid

_DEFAULTS = Rules()
_LEVEL = 0.9
_LONGEST_HALF_LIFE_S = 100 * 365 * 86_400
_SHARES = (
    "min_saving",
    "max_quality_loss",
    "min_quality_gain",
    "cost_tolerance",
    "min_score_gain",
    "high_probability",
    "medium_probability",
)


def rules_of(message: pb.RecommendationRules) -> Rules:
    """Thresholds and weights, the usual ones where none are told. Raises RulesInvalid."""
    told: dict[str, float] = {}
    for name in _SHARES:
        if message.HasField(name):  # type: ignore[arg-type]
            told[name] = _share(getattr(message, name), f"rules.{name}")
    quality = _DEFAULTS.weights.quality
    if message.HasField("quality_weight"):
        quality = _share(message.quality_weight, "rules.quality_weight")
    runs = message.min_runs if message.HasField("min_runs") else _DEFAULTS.min_runs
    if not 1 <= runs <= 1000:
        raise RulesInvalid.at("rules.min_runs", "is from 1 to 1000")
    rules = Rules(weights=Weights(quality, 1 - quality), min_runs=runs, **told)  # type: ignore[arg-type]
    if rules.medium_probability > rules.high_probability:
        raise RulesInvalid.at("rules.medium_probability", "must not be above high_probability")
    return rules


def half_life_us(request: pb.ListRecommendationsRequest) -> int | None:
    """The half-life, None where none is told. Raises FieldInvalid."""
    if not request.HasField("half_life"):
        return None
    span = request.half_life
    microseconds = span.seconds * 1_000_000 + span.nanos // 1000
    if microseconds <= 0 or span.seconds > _LONGEST_HALF_LIFE_S or abs(span.nanos) >= 1_000_000_000:
        raise FieldInvalid.at("half_life", "must be above 0 and at most 100 years")
    return microseconds


def level_of(level: float) -> float:
    """The level of an interval, 0.9 for 0. Raises FieldInvalid."""
    if level == 0:
        return _LEVEL
    if not 0.5 <= level <= 0.99:
        raise FieldInvalid.at("level", "is from 0.5 to 0.99")
    return level


def _share(value: float, field: str) -> float:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise RulesInvalid.at(field, "is a fraction from 0 to 1")
    return value

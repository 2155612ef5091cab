"""What the next run will cost, by the costs of runs like it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nightshift_experience.profiles.sketch import Costs
from nightshift_experience.profiles.statistics import GroupStatistics, Profile

# Fewer costs than this say less of a mode than all runs do.
_ENOUGH = 10


@dataclass(frozen=True, slots=True)
class CostPrediction:
    """Median and interval in $; the level that the runs allow, how many they are, and which."""

    median_usd: float
    lower_usd: float
    upper_usd: float
    level: float
    runs: int
    basis: str


def predict_cost(profile: Profile, mode: str, strategy: str, level: float) -> CostPrediction | None:
    """From the runs of the mode, else of the strategy, else of all; None where no run tells a cost.

    Of n exchangeable costs and the next one, each order of all n+1 is as likely, so the next lies between the
    i-th and the j-th smallest with probability (j-i)/(n+1), whatever the distribution. With few runs even the
    whole range is not enough for `level`; then the level is (n-1)/(n+1).
    """
    named = (("mode", mode, profile.modes), ("strategy", strategy, profile.strategies))
    for word, key, groups in named:
        for group in groups:
            if key and group.key == key and group.costs.weight >= _ENOUGH:
                return _predict(group, f"{word} {key}", level)
    return _predict(profile.total, "all runs", level) if profile.total.costs.buckets else None


def _predict(group: GroupStatistics, basis: str, level: float) -> CostPrediction:
    costs, runs = group.costs, int(group.costs.weight)
    outside = math.floor((runs + 1) * (1 - level) / 2 + 1e-9)
    first = max(1, outside)
    reached = (runs + 1 - 2 * first) / (runs + 1)
    return CostPrediction(
        costs.median,
        _ranked(costs, first),
        _ranked(costs, runs + 1 - first),
        max(0.0, reached),
        runs,
        basis,
    )


def _ranked(costs: Costs, rank: int) -> float:
    """The cost with this rank, from 1; the outermost exactly."""
    if rank <= 1:
        return costs.least_usd
    if rank >= costs.weight:
        return costs.most_usd
    reached = 0.0
    for cost, weight in costs.buckets:
        reached += weight
        if reached >= rank:
            return cost
    return costs.most_usd

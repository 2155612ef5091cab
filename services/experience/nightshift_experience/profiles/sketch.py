"""Costs in buckets: sums that can be taken back, and quantiles within a stated bound.

A bucket holds the costs (in 10⁻⁹ $) that share their 8 leading bits, so it is at most 1/128 as wide as its
lower end; below 256 each value has its own. A bucket keeps a count and a sum and is taken for its mean: where
all its costs are equal that is exact, else a quantile is off by less than 0.8 %. Leading bits are integer
arithmetic: a run taken back finds the bucket that it was put into, on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LEADING_BITS = 8
NANOS = 1_000_000_000
# Largest relative error of a quantile.
ERROR_BOUND = 1 / (1 << (_LEADING_BITS - 1))


def nanos_of(cost_usd: float) -> int:
    """A cost > 0 in 10⁻⁹ $, at least 1."""
    return max(1, round(cost_usd * NANOS))


def bucket_of(nanos: int) -> int:
    """Number of the bucket of a cost ≥ 1; grows with it."""
    shift = max(0, nanos.bit_length() - _LEADING_BITS)
    return (shift << (_LEADING_BITS - 1)) + (nanos >> shift)


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a group: (mean cost in $, weight) by bucket, cheapest first; weights are > 0.

    `least_usd` and `most_usd` are exact where they were looked up, else those of the outermost buckets.
    """

    buckets: tuple[tuple[float, float], ...] = ()
    least_usd: float = 0.0
    most_usd: float = 0.0

    @property
    def weight(self) -> float:
        """How many costs there are."""
        return sum(weight for _, weight in self.buckets)

    @property
    def mean(self) -> float:
        """Mean in $, 0 without costs."""
        weight = self.weight
        return sum(cost * each for cost, each in self.buckets) / weight if weight else 0.0

    @property
    def median(self) -> float:
        """Median in $, the mean of the two middle ones for an even count; 0 without costs."""
        if not self.buckets:
            return 0.0
        half = self.weight / 2
        reached = 0.0
        for place, (cost, weight) in enumerate(self.buckets):
            reached += weight
            if reached > half:
                return cost
            if reached == half:
                return (cost + self.buckets[place + 1][0]) / 2
        return self.buckets[-1][0]

    def quantile(self, share: float) -> float:
        """Smallest cost with at least `share` (0 to 1) of the weight at or below it; 0 without costs."""
        if not self.buckets:
            return 0.0
        wanted = share * self.weight
        reached = 0.0
        for cost, weight in self.buckets:
            reached += weight
            if reached >= wanted * (1 - 1e-12):
                return cost
        return self.buckets[-1][0]


def costs_of(weighted: Sequence[tuple[float, float]]) -> Costs:
    """Costs out of (cost in $ > 0, weight > 0) in any order, each kept as it is."""
    ordered = tuple(sorted(weighted))
    if not ordered:
        return Costs()
    return Costs(ordered, ordered[0][0], ordered[-1][0])

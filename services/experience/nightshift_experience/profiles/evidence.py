"""How sure it is that one way of working is better than another, and what a wrong switch would cost.

The model, stated: before any run the other one is the same with 1/5, worse or better with 2/5 each; for
quality and for cost separately. Where it differs,

    quality   the pass rates differ by N(0, 1) on the log-odds scale, around log-odds ~ N(0, 1.5²)
    cost      the log of the ratio of typical costs is N(0, 0.5²); the logs of costs scatter normally (with
              Student's t for the unknown spread, by Welch), never by less than the sketch can tell

"Better" means a higher score (quality · pass rate + cost · cheaper / own cost). "The same" has a weight of
its own, so P(better) grows by a Bayes factor against it, which is a martingale where both are the same:
looking after every run does not pile up false alarms as a p-value does (G. Shafer, "Testing by betting",
JRSS A 184 (2021), 407-431). All integrals are sums over fixed grids: the same numbers give the same answer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from nightshift_experience.profiles.sketch import Costs
from nightshift_experience.profiles.statistics import GroupStatistics, Weights

_SAME = 1 / 5
_LOG_ODDS_SPREAD = 1.5
_LOG_ODDS_DIFFERENCE = 1.0
_LOG_COST_DIFFERENCE = 0.5
# Relative scatter of costs that is assumed at least: a hundredth, a little more than the sketch's bound.
_LEAST_SCATTER = 0.01
_POINTS = 81
# Log of the largest ratio of costs that is told apart from larger ones: twelve times.
_FARTHEST = 2.5

_Grid = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for the other one. Losses are in units of the score (0.7 is all of quality)."""

    # P(its score is higher), P(its score is lower); the rest is P(the same).
    better: float
    worse: float
    # Expected loss of score by switching, and by staying.
    switch_loss: float
    stay_loss: float


def compare(current: GroupStatistics, other: GroupStatistics, weights: Weights) -> Evidence:
    """Evidence for `other`. Unknown verdicts, or costs of fewer than two runs, say nothing."""
    gains, gain_weights = _quality(current.passed, current.judged, other.passed, other.judged)
    ratios, ratio_weights = _cost(current.costs, other.costs)
    # The score's difference on the grid of both; "same" is the exact 0 of either axis.
    savings = np.where(ratios > 0, np.exp(-ratios) - 1, 1 - np.exp(ratios))
    difference = weights.quality * gains[:, None] + weights.cost * savings[None, :]
    chance = gain_weights[:, None] * ratio_weights[None, :]
    return Evidence(
        better=min(1.0, float(chance[difference > 0].sum())),
        worse=min(1.0, float(chance[difference < 0].sum())),
        switch_loss=float((chance * np.maximum(-difference, 0.0)).sum()),
        stay_loss=float((chance * np.maximum(difference, 0.0)).sum()),
    )


def at_most(count: float, total: float, share: float) -> float:
    """P(true share ≤ `share`) after `count` of `total`, by Jeffreys' Beta(½, ½)."""
    return float(special.betainc(count + 0.5, total - count + 0.5, share))


@functools.cache
def _rate_grid() -> tuple[_Grid, _Grid, _Grid, _Grid, _Grid]:
    """(log p of the current, log 1-p, of the other the same, differences p_other - p_current, prior).

    Rows are common log-odds, columns differences of log-odds.
    """
    centres = np.linspace(-6.0, 6.0, _POINTS)
    halves = np.linspace(-4.0, 4.0, _POINTS) / 2
    first, second = centres[:, None] - halves[None, :], centres[:, None] + halves[None, :]
    prior = np.exp(
        -0.5 * (centres[:, None] / _LOG_ODDS_SPREAD) ** 2
        - 0.5 * (2 * halves[None, :] / _LOG_ODDS_DIFFERENCE) ** 2
    )
    # The very middle is "the same", which has its own weight.
    prior[:, _POINTS // 2] = 0.0
    return first, second, special.expit(second) - special.expit(first), prior / prior.sum(), centres


def _quality(passed: float, judged: float, other_passed: float, other_judged: float) -> tuple[_Grid, _Grid]:
    """Differences of the pass rate and their posterior weights; the first is "the same"."""
    first, second, difference, prior, centres = _rate_grid()
    log_likelihood = (
        passed * special.log_expit(first)
        + (judged - passed) * special.log_expit(-first)
        + other_passed * special.log_expit(second)
        + (other_judged - other_passed) * special.log_expit(-second)
    )
    both_passed, both_failed = passed + other_passed, judged + other_judged - passed - other_passed
    log_same = both_passed * special.log_expit(centres) + both_failed * special.log_expit(-centres)
    highest = max(float(log_likelihood.max()), float(log_same.max()))
    same_prior = np.exp(-0.5 * (centres / _LOG_ODDS_SPREAD) ** 2)
    same = _SAME * float((np.exp(log_same - highest) * same_prior).sum() / same_prior.sum())
    differing = (1 - _SAME) * np.exp(log_likelihood - highest) * prior
    # Points that differ by about as much go together: the joint grid stays small.
    edges = np.linspace(-1.0, 1.0, 2 * _POINTS + 2)
    sums, _ = np.histogram(difference, bins=edges, weights=differing)
    means = (edges[1:] + edges[:-1]) / 2
    # The middle bin lies around 0: halve it by sign instead of calling it the same.
    middle = len(means) // 2
    up = float(differing[(difference > 0) & (difference < edges[middle + 1])].sum())
    values = np.concatenate([[0.0], np.delete(means, middle), [edges[middle + 1] / 2, edges[middle] / 2]])
    weighted = np.concatenate([[same], np.delete(sums, middle), [up, float(sums[middle]) - up]])
    return values, weighted / weighted.sum()


def _cost(current: Costs, other: Costs) -> tuple[_Grid, _Grid]:
    """Logs of the ratio other / current and their posterior weights; the first is "the same"."""
    ratios = np.linspace(-_FARTHEST, _FARTHEST, 2 * _POINTS)
    prior = np.exp(-0.5 * (ratios / _LOG_COST_DIFFERENCE) ** 2)
    prior /= prior.sum()
    first, second = _log_moments(current), _log_moments(other)
    values = np.concatenate([[0.0], ratios])
    if first is None or second is None:
        return values, np.concatenate([[_SAME], (1 - _SAME) * prior])
    parts = (first.variance / first.count, second.variance / second.count)
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (first.count - 1) + parts[1] ** 2 / (second.count - 1))
    # Farther apart than the grid reaches is as far as it reaches.
    found = float(np.clip(second.mean - first.mean, -_FARTHEST, _FARTHEST))
    step = ratios[1] - ratios[0]
    # A point stands for its cell: with many runs the density is narrower than a cell.
    edges = np.concatenate([ratios - step / 2, [ratios[-1] + step / 2]])
    cells = np.diff(special.stdtr(freedom, (edges - found) / error)) / step * error
    same = _SAME * _student_density(found / error, freedom)
    weighted = np.concatenate([[same], (1 - _SAME) * cells * prior])
    return values, weighted / weighted.sum()


def _student_density(value: float, freedom: float) -> float:
    """Density of Student's t. `scipy.stats` has it too, for 50 MB of every process that imports it."""
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return math.exp(log_scale - (freedom + 1) / 2 * math.log1p(value * value / freedom))


@dataclass(frozen=True, slots=True)
class _Moments:
    count: float
    mean: float
    variance: float


def _log_moments(costs: Costs) -> _Moments | None:
    """Count, mean and variance of the logs of costs; None for fewer than two."""
    count = costs.weight
    if count < 2:
        return None
    logs = np.log([cost for cost, _ in costs.buckets])
    weights = np.array([weight for _, weight in costs.buckets])
    mean = float((logs * weights).sum() / count)
    scatter = float((weights * (logs - mean) ** 2).sum()) / (count - 1)
    return _Moments(count, mean, max(scatter, _LEAST_SCATTER**2))

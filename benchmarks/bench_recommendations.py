"""How often a recommendation is wrong, and how often what is better is found, beside the predecessor's rule.

    python -m benchmarks.bench_recommendations [--trials 4000]

Two modes are drawn many times, n runs of each: whether a run passes is a coin, costs scatter log-normally
around their median. "high" is the share of trials in which a switch to the other mode is advised with high
confidence, "medium+" with at least medium. The predecessor's rule: from 3 runs each, quality higher by 5
points, or not lower by 5 and cheaper by 15 %, is "high", cheaper by 5 % "medium"; its candidate is the mode
with the higher 0.7 · pass rate + 0.3 / median cost. Seeded: the same trials every time. Ends with status 1
where a bound is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nightshift_experience.profiles.advice import Category, Confidence, CurrentSettings, Rules
from nightshift_experience.profiles.recommending import recommend
from nightshift_experience.profiles.sketch import costs_of
from nightshift_experience.profiles.statistics import GroupStatistics, Profile

RUNS = (3, 5, 10, 20, 40, 200)
# Scatter of the logs of costs: two thirds of the costs lie within 35 % of the median.
NOISE = 0.3
SEED = 20_261_125


@dataclass(frozen=True)
class Way:
    """How a mode truly is."""

    pass_rate: float
    median_usd: float
    noise: float = NOISE


@dataclass(frozen=True)
class Scenario:
    """Two modes; what may be advised is a switch from `current` to `other`.

    `bound` is the largest share of "high" that is allowed, `power` the least of at least medium at 200 runs.
    """

    name: str
    current: Way
    other: Way
    bound: float | None = None
    power: float | None = None


SCENARIOS = (
    Scenario("identical", Way(0.8, 1.0), Way(0.8, 1.0), bound=0.02),
    Scenario("identical, passing 95 %", Way(0.95, 1.0), Way(0.95, 1.0), bound=0.02),
    Scenario("identical, passing half", Way(0.5, 1.0), Way(0.5, 1.0), bound=0.02),
    Scenario("identical, costs twice as noisy", Way(0.8, 1.0, 0.6), Way(0.8, 1.0, 0.6), bound=0.02),
    Scenario("other 15 points worse", Way(0.85, 1.0), Way(0.70, 1.0), bound=0.005),
    Scenario("other 43 % dearer", Way(0.8, 0.7), Way(0.8, 1.0), bound=0.005),
    Scenario("other 15 points worse and 43 % dearer", Way(0.85, 0.7), Way(0.70, 1.0), bound=0.005),
    Scenario("other 15 points better (85 %)", Way(0.70, 1.0), Way(0.85, 1.0), power=0.8),
    Scenario("other 15 points better (70 %)", Way(0.55, 1.0), Way(0.70, 1.0), power=0.8),
    Scenario("other 30 % cheaper (80 % pass)", Way(0.8, 1.0), Way(0.8, 0.7), power=0.8),
    Scenario("other 30 % cheaper (60 % pass)", Way(0.6, 1.0), Way(0.6, 0.7), power=0.8),
)


@dataclass(frozen=True)
class Shares:
    """Shares of the trials by confidence."""

    high: float
    medium_up: float
    low: float


def draw(scenario: Scenario, runs: int, generator: np.random.Generator) -> Iterator[GroupStatistics]:
    """`runs` of either mode."""
    for key, way in (("current", scenario.current), ("other", scenario.other)):
        passed = int(generator.binomial(runs, way.pass_rate))
        costs = way.median_usd * np.exp(generator.normal(0.0, way.noise, runs))
        yield GroupStatistics(
            key=key,
            runs=runs,
            passed=passed,
            failed=runs - passed,
            costs=costs_of([(float(cost), 1.0) for cost in costs]),
        )


def ours(current: GroupStatistics, other: GroupStatistics) -> Confidence | None:
    """What is advised."""
    found = recommend(Profile(modes=(current, other)), CurrentSettings(mode="current"), Rules())
    return next((one.confidence for one in found if one.category == Category.MODE), None)


def predecessors(current: GroupStatistics, other: GroupStatistics) -> Confidence | None:
    """What the predecessor's rule would have advised."""

    def score(group: GroupStatistics) -> float:
        return 0.7 * (group.pass_rate or 0.0) + 0.3 / (group.costs.median + 0.01)

    if min(current.runs, other.runs) < 3 or score(other) <= score(current):
        return None
    gain = (other.pass_rate or 0.0) - (current.pass_rate or 0.0)
    saving = 1 - other.costs.median / current.costs.median
    if gain < -0.05:
        return None
    if gain >= 0.05 or saving > 0.15:
        return Confidence.HIGH
    return Confidence.MEDIUM if saving > 0.05 else None


def simulate(scenario: Scenario, runs: int, trials: int) -> tuple[Shares, Shares]:
    """(ours, the predecessor's) over the same draws; equal arguments, equal shares."""
    place = [one.name for one in SCENARIOS].index(scenario.name)
    generator = np.random.default_rng([SEED, place, runs])
    found: tuple[list[Confidence | None], list[Confidence | None]] = ([], [])
    for _ in range(trials):
        current, other = draw(scenario, runs, generator)
        found[0].append(ours(current, other))
        found[1].append(predecessors(current, other))
    return _shares(found[0]), _shares(found[1])


def peeking(runs: int, trials: int) -> float:
    """Share of trials of identical modes that ever said "high", looked at after every run up to `runs`."""
    generator = np.random.default_rng([SEED, 999, runs])
    scenario = SCENARIOS[0]
    ever = 0
    for _ in range(trials):
        verdicts = generator.random((2, runs)) < scenario.current.pass_rate
        costs = np.exp(generator.normal(0.0, NOISE, (2, runs)))
        for n in range(3, runs + 1):
            sides = [
                GroupStatistics(
                    key=key,
                    runs=n,
                    passed=int(verdicts[side, :n].sum()),
                    failed=n - int(verdicts[side, :n].sum()),
                    costs=costs_of([(float(cost), 1.0) for cost in costs[side, :n]]),
                )
                for side, key in enumerate(("current", "other"))
            ]
            if ours(*sides) == Confidence.HIGH:
                ever += 1
                break
    return ever / trials


def _shares(found: list[Confidence | None]) -> Shares:
    total = len(found)
    return Shares(
        sum(one == Confidence.HIGH for one in found) / total,
        sum(one is not None and one >= Confidence.MEDIUM for one in found) / total,
        sum(one == Confidence.LOW for one in found) / total,
    )


def tables(trials: int) -> bool:
    """Print the table; whether every bound is met."""
    print(f"{trials} trials each; in percent: high / medium+ of ours, (high) of the predecessor's rule\n")
    print("| truth | " + " | ".join(f"n = {runs}" for runs in RUNS) + " | asked |")
    print("|---" * (len(RUNS) + 2) + "|")
    met = True
    for scenario in SCENARIOS:
        cells = []
        for runs in RUNS:
            own, old = simulate(scenario, runs, trials)
            cells.append(f"{own.high:.1%} / {own.medium_up:.1%} ({old.high:.0%})")
            if scenario.bound is not None:
                met &= own.high <= scenario.bound
            if scenario.power is not None and runs == 200:
                met &= own.medium_up >= scenario.power
        asked = (
            f"high ≤ {scenario.bound:.1%}"
            if scenario.bound is not None
            else f"medium+ ≥ {scenario.power:.0%} at 200"
        )
        print(f"| {scenario.name} | " + " | ".join(cells) + f" | {asked} |", flush=True)
    looks = max(20, trials // 20)
    share = peeking(60, looks)
    print(f"\nidentical, looked at after every run up to 60 each: ever high in {share:.1%} of {looks} trials")
    return met


def main() -> int:
    """Run the command line; 1 where a bound is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    return 0 if tables(parser.parse_args().trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""A project's profile: its runs by mode and by strategy, out of counters or out of a few weighted runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import orjson

from nightshift_experience.profiles.counting import MeasureState
from nightshift_experience.profiles.sketch import NANOS, Costs, costs_of
from nightshift_experience.runs import QaStatus

# Runs from which on a group may be preferred, and a project has enough to say anything.
MIN_GROUP_RUNS = 3
SUFFICIENT_RUNS = 5


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts how much in a score; they add up to 1."""

    quality: float = 0.7
    cost: float = 0.3


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Runs of one mode, of one strategy, or of the whole project.

    Counts are weights where recent runs count for more, whole numbers otherwise.
    """

    key: str = ""
    runs: float = 0.0
    passed: float = 0.0
    warned: float = 0.0
    failed: float = 0.0
    costs: Costs = field(default_factory=Costs)
    # Runs that tell a duration, and their mean in seconds.
    durations: float = 0.0
    mean_duration_s: float = 0.0
    # (rounds ≥ 1, whether its own limit did not end it) → runs.
    rounds: Mapping[tuple[int, bool], float] = field(default_factory=dict)

    @property
    def judged(self) -> float:
        """Runs with a verdict."""
        return self.passed + self.warned + self.failed

    @property
    def pass_rate(self) -> float | None:
        """Passed of judged ones; None without any."""
        return self.passed / self.judged if self.judged else None

    @property
    def distribution(self) -> dict[int, float]:
        """Runs by the rounds they took, fewest first."""
        found: dict[int, float] = defaultdict(float)
        for (rounds, _), weight in self.rounds.items():
            found[rounds] += weight
        return dict(sorted(found.items()))

    @property
    def mean_rounds(self) -> float:
        """Mean of the rounds, 0 where none are told."""
        distribution = self.distribution
        total = sum(distribution.values())
        return sum(rounds * weight for rounds, weight in distribution.items()) / total if total else 0.0

    @property
    def most_rounds(self) -> int:
        """Most rounds that a run took, 0 where none are told."""
        return max((rounds for rounds, _ in self.rounds), default=0)


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that recommendations look at."""

    total: GroupStatistics = field(default_factory=GroupStatistics)
    # Most runs first, then by name.
    modes: tuple[GroupStatistics, ...] = ()
    strategies: tuple[GroupStatistics, ...] = ()
    # Runs by model, most used first.
    models: tuple[tuple[str, int], ...] = ()
    # By what auto-tune changed: (field, value before, value taken), its runs, and the runs without it.
    tuned: tuple[tuple[tuple[str, str, str], GroupStatistics, GroupStatistics], ...] = ()
    # Runs that are not counted, by reason.
    left_out: tuple[tuple[MeasureState, int], ...] = ()

    @property
    def is_sufficient(self) -> bool:
        """Whether there are enough runs to say anything."""
        return self.total.runs >= SUFFICIENT_RUNS


@dataclass(frozen=True, slots=True)
class WeightedRun:
    """One run out of few, with its weight (1, or less for an older one)."""

    mode: str
    strategy: str
    max_rounds: int | None
    rounds: int | None
    qa_status: int
    cost_usd: float | None
    duration_us: int | None
    weight: float = 1.0


def profile_of_counters(counters: Mapping[tuple[str, str, str], int]) -> Profile:
    """A profile out of the counters of the scopes of `counting`."""
    by_group: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for (scope, key, metric), count in counters.items():
        if count:
            by_group[scope, key][metric] = count
    groups = {name: _group_of_counters(name[1], metrics) for name, metrics in by_group.items()}
    whole = by_group.get(("profile", ""), {})
    models = {name.partition(":")[2]: count for name, count in whole.items() if name.startswith("model:")}
    left_out = {
        MeasureState(int(name.partition(":")[2])): count
        for name, count in whole.items()
        if name.startswith("left_out:")
    }
    return Profile(
        groups.get(("profile", ""), GroupStatistics()),
        _ordered(group for (scope, _), group in groups.items() if scope == "profile_mode"),
        _ordered(group for (scope, _), group in groups.items() if scope == "profile_strategy"),
        tuple(sorted(models.items(), key=lambda pair: (-pair[1], pair[0]))),
        _tuned_of_counters(by_group),
        tuple(sorted(left_out.items())),
    )


def profile_of_runs(runs: Iterable[WeightedRun]) -> Profile:
    """A profile out of few runs, each with its weight; costs are exact."""
    found: dict[tuple[str, str], list[WeightedRun]] = defaultdict(list)
    for run in runs:
        found["profile", ""].append(run)
        if run.mode:
            found["mode", run.mode].append(run)
        if run.strategy:
            found["strategy", run.strategy].append(run)
    groups = {name: _group_of_runs(name[1], members) for name, members in found.items()}
    return Profile(
        groups.get(("profile", ""), GroupStatistics()),
        _ordered(group for (scope, _), group in groups.items() if scope == "mode"),
        _ordered(group for (scope, _), group in groups.items() if scope == "strategy"),
    )


def with_extremes(group: GroupStatistics, extremes: tuple[float, float] | None) -> GroupStatistics:
    """The group with the exact cheapest and dearest cost in $, where they were looked up."""
    if extremes is None or not group.costs.buckets:
        return group
    return replace(group, costs=replace(group.costs, least_usd=extremes[0], most_usd=extremes[1]))


def scores(groups: Iterable[GroupStatistics], weights: Weights) -> dict[str, float]:
    """Score by group: quality · pass rate + cost · (cheapest median / own median).

    Only groups with verdicts and costs have one; the cheapest is the cheapest of them.
    """
    known = [group for group in groups if group.pass_rate is not None and group.costs.buckets]
    return _scores(known, weights)


def preferred(groups: Iterable[GroupStatistics], weights: Weights) -> str:
    """Key of the group with the best score among those with 3 runs, the first of equals; "" for none.

    A single group is the preferred one whatever is known of it. What is not known of a group does not speak
    for it.
    """
    every = list(groups)
    if len(every) == 1:
        return every[0].key
    scored = _scores([group for group in every if group.runs >= MIN_GROUP_RUNS], weights)
    return max(scored, key=lambda key: scored[key]) if scored else ""


def _scores(groups: list[GroupStatistics], weights: Weights) -> dict[str, float]:
    cheapest = min((group.costs.median for group in groups if group.costs.buckets), default=0.0)
    return {
        group.key: weights.quality * (group.pass_rate or 0.0)
        + (weights.cost * cheapest / group.costs.median if group.costs.buckets else 0.0)
        for group in groups
    }


def _tuned_of_counters(
    by_group: Mapping[tuple[str, str], Mapping[str, int]],
) -> tuple[tuple[tuple[str, str, str], GroupStatistics, GroupStatistics], ...]:
    """Runs of each tuned value, and the others: those of the value before, or with a limit not tuned."""
    changes: list[tuple[tuple[str, str, str], str]] = []
    for scope, key in by_group:
        if scope == "profile_tuned" and by_group[scope, key].get("runs"):
            field_name, before, taken = orjson.loads(key)
            changes.append(((field_name, before, taken), key))
    found = []
    for change, key in sorted(changes):
        field_name, before, _ = change
        if field_name in ("mode", "strategy"):
            others: Mapping[str, int] = by_group.get((f"profile_{field_name}", before), {})
        else:
            left = Counter(by_group.get(("profile", ""), {}))
            for other, other_key in changes:
                if other[0] == field_name:
                    left.subtract(by_group["profile_tuned", other_key])
            others = {metric: count for metric, count in left.items() if count > 0}
        tuned = _group_of_counters("", by_group["profile_tuned", key])
        found.append((change, tuned, _group_of_counters("", others)))
    return tuple(found)


def _ordered(groups: Iterable[GroupStatistics]) -> tuple[GroupStatistics, ...]:
    return tuple(sorted((group for group in groups if group.runs), key=lambda g: (-g.runs, g.key)))


def _group_of_counters(key: str, metrics: Mapping[str, int]) -> GroupStatistics:
    buckets: list[tuple[float, float]] = []
    rounds: dict[tuple[int, bool], float] = {}
    for metric, count in metrics.items():
        kind, _, rest = metric.partition(":")
        if kind == "cost":
            buckets.append((metrics[f"cost_nanos:{rest}"] / count / NANOS, count))
        elif kind == "rounds":
            number, _, end = rest.partition(":")
            rounds[int(number), end == "own"] = count
    durations = metrics.get("durations", 0)
    return GroupStatistics(
        key=key,
        runs=metrics.get("runs", 0),
        passed=metrics.get(f"qa:{QaStatus.PASSED}", 0),
        warned=metrics.get(f"qa:{QaStatus.WARNING}", 0),
        failed=metrics.get(f"qa:{QaStatus.FAILED}", 0),
        costs=costs_of(buckets),
        durations=durations,
        mean_duration_s=metrics.get("duration_us", 0) / durations / 1e6 if durations else 0.0,
        rounds=rounds,
    )


def _group_of_runs(key: str, runs: list[WeightedRun]) -> GroupStatistics:
    verdicts: Counter[int] = Counter()
    rounds: dict[tuple[int, bool], float] = defaultdict(float)
    timed = [run for run in runs if run.duration_us is not None]
    durations = sum(run.weight for run in timed)
    for run in runs:
        # Counter holds floats as well as whole numbers.
        verdicts[run.qa_status] += run.weight  # type: ignore[assignment]
        if run.rounds:
            rounds[run.rounds, run.max_rounds is not None and run.rounds < run.max_rounds] += run.weight
    spent_us = sum(run.weight * (run.duration_us or 0) for run in timed)
    return GroupStatistics(
        key=key,
        runs=sum(run.weight for run in runs),
        passed=verdicts[QaStatus.PASSED],
        warned=verdicts[QaStatus.WARNING],
        failed=verdicts[QaStatus.FAILED],
        costs=costs_of([(run.cost_usd, run.weight) for run in runs if run.cost_usd]),
        durations=durations,
        mean_duration_s=spent_us / durations / 1e6 if durations else 0.0,
        rounds=dict(rounds),
    )

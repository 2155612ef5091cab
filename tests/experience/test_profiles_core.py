"""Profiles and what they advise: quantiles within bounds, conditions as the table has them, no way back."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_experience.profiles.advice import (
    Category,
    Confidence,
    CurrentSettings,
    Recommendation,
    Rules,
    capped,
)
from nightshift_experience.profiles.counting import Measures, MeasureState, add_measures, measure
from nightshift_experience.profiles.evidence import compare
from nightshift_experience.profiles.prediction import predict_cost
from nightshift_experience.profiles.recommending import cut_share, recommend, rounded_usd
from nightshift_experience.profiles.sketch import ERROR_BOUND, bucket_of, costs_of, nanos_of
from nightshift_experience.profiles.statistics import (
    GroupStatistics,
    Profile,
    WeightedRun,
    Weights,
    preferred,
    profile_of_counters,
    profile_of_runs,
    scores,
)
from nightshift_experience.runs import Orchestration

WEIGHTS = Weights()
RULES = Rules()


def group(key: str, runs: int, quality: float, cost: float | Sequence[float] | None, **more: Any) -> Any:
    """A mode or strategy; a single cost is that of each run."""
    each = [] if cost is None else [cost] * runs if isinstance(cost, float | int) else list(cost)
    passed = round(runs * quality, 9)
    return GroupStatistics(
        key=key,
        runs=runs,
        passed=passed,
        failed=runs - passed,
        costs=costs_of([(float(one), 1.0) for one in each]),
        **more,
    )


def advised(
    modes: Sequence[GroupStatistics] = (), strategies: Sequence[GroupStatistics] = (), **now: Any
) -> Recommendation | None:
    total = now.pop("total", GroupStatistics())
    found = recommend(Profile(total, tuple(modes), tuple(strategies)), CurrentSettings(**now), RULES)
    assert len(found) <= 1
    return found[0] if found else None


@given(st.lists(st.floats(1e-9, 10_000), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_of_the_sketch_are_within_their_bound(costs: list[float], share: float) -> None:
    totals: Counter[tuple[str, str, str]] = Counter()
    for cost in costs:
        add_measures(totals, counted(cost_usd=cost), 1)
    kept, exact = profile_of_counters(totals).total.costs, costs_of([(cost, 1.0) for cost in costs])
    room = ERROR_BOUND + 1e-12
    for found, wanted in (
        (kept.median, exact.median),
        (kept.quantile(share), exact.quantile(share)),
        (kept.least_usd, exact.least_usd),
        (kept.most_usd, exact.most_usd),
    ):
        # Below a nano-dollar a cost is rounded to one.
        assert abs(found - wanted) <= wanted * room + 0.51e-9
    assert kept.mean == pytest.approx(exact.mean, abs=0.51e-9)
    assert kept.weight == len(costs)


@given(st.integers(1, 10**13), st.integers(0, 10**6))
def test_buckets_grow_with_the_cost_and_are_narrow(nanos: int, more: int) -> None:
    assert bucket_of(nanos) <= bucket_of(nanos + more)
    if bucket_of(nanos) == bucket_of(nanos + more):
        assert more <= nanos * ERROR_BOUND


def counted(**fields: Any) -> Measures:
    told = Orchestration(
        **{name: fields.pop(name) for name in ("mode", "strategy", "max_rounds", "rounds") if name in fields}
    )
    told.qa_status = fields.pop("qa_status", 0)
    made = measure(
        told, fields.pop("cost_usd", None), fields.pop("duration_us", None), {"m": "m1"}, is_user=True
    )
    assert made is not None and not fields
    return made


runs = st.builds(
    WeightedRun,
    mode=st.sampled_from(["", "2loop", "3loop"]),
    strategy=st.sampled_from(["", "baseline", "fast"]),
    max_rounds=st.sampled_from([None, 1, 2, 3, 5]),
    rounds=st.sampled_from([None, 0, 1, 2, 3, 4, 7]),
    qa_status=st.sampled_from([0, 1, 1, 1, 2, 3]),
    # Apart by more than a bucket, so that counters are as exact as the runs.
    cost_usd=st.sampled_from([None, 0.0, 0.5, 0.8, 1.0, 1.1, 1.5, 3.0]),
    duration_us=st.sampled_from([None, 0, 300_000_000]),
)


@given(st.lists(runs, max_size=30))
def test_counters_and_runs_tell_the_same(several: list[WeightedRun]) -> None:
    totals: Counter[tuple[str, str, str]] = Counter()
    for run in several:
        told = Orchestration(run.mode, run.strategy, run.max_rounds, None, run.rounds, run.qa_status)
        made = measure(told, run.cost_usd, run.duration_us, {}, is_user=True)
        assert made is not None
        add_measures(totals, made, 1)
    kept, drawn = profile_of_counters(totals), profile_of_runs(several)
    for left, right in (
        (kept.total, drawn.total),
        *zip(kept.modes, drawn.modes, strict=True),
        *zip(kept.strategies, drawn.strategies, strict=True),
    ):
        assert (left.key, left.runs, left.passed, left.warned, left.failed, dict(left.rounds)) == (
            right.key,
            right.runs,
            right.passed,
            right.warned,
            right.failed,
            dict(right.rounds),
        )
        for share in (0.0, 0.3, 0.5, 0.95, 1.0):
            assert left.costs.quantile(share) == pytest.approx(right.costs.quantile(share))
        assert (left.costs.median, left.costs.mean, left.costs.weight) == pytest.approx(
            (right.costs.median, right.costs.mean, right.costs.weight)
        )
        assert left.mean_duration_s == pytest.approx(right.mean_duration_s)


def test_what_is_beyond_belief_is_left_out_by_reason() -> None:
    assert counted(cost_usd=10_000.0).state == MeasureState.COUNTED
    assert counted(cost_usd=10_000.1).state == MeasureState.COST_IMPLAUSIBLE
    assert counted(cost_usd=-1.0).state == MeasureState.COST_IMPLAUSIBLE
    assert counted(rounds=10_001).state == MeasureState.ROUNDS_IMPLAUSIBLE
    assert counted(duration_us=31 * 86_400_000_000).state == MeasureState.DURATION_IMPLAUSIBLE
    assert measure(None, 0.0, 5, {}, is_user=True) is None
    device = measure(Orchestration(mode="m"), 1.0, None, {}, is_user=False)
    assert device is not None and device.state == MeasureState.NOT_PRODUCTION
    totals: Counter[tuple[str, str, str]] = Counter()
    for one in (counted(cost_usd=20_000.0), counted(cost_usd=1.0)):
        add_measures(totals, one, 1)
    found = profile_of_counters(totals)
    assert (found.total.runs, found.total.costs.most_usd) == (1, 1.0)
    assert found.left_out == ((MeasureState.COST_IMPLAUSIBLE, 1),)


@pytest.mark.parametrize(
    ("now", "other", "wanted"),
    [
        # (runs, pass rate, median cost); the thresholds themselves are as the table says.
        ((5, 0.80, 1.2), (5, 1.00, 0.80), True),
        ((20, 0.80, 1.0), (20, 0.80, 0.85), False),
        ((20, 0.80, 1.0), (20, 0.80, 0.849), True),
        ((20, 0.80, 1.0), (20, 0.75, 0.70), True),
        ((20, 0.80, 1.0), (100, 0.74, 0.50), False),
        ((20, 0.75, 1.0), (20, 0.80, 1.00), True),
        ((100, 0.75, 1.0), (100, 0.79, 1.00), False),
        ((20, 0.75, 1.0), (20, 0.95, 1.06), True),
        ((20, 0.75, 1.0), (20, 0.95, 1.07), False),
        ((2, 0.50, 1.0), (10, 1.00, 0.50), False),
        ((10, 0.50, 1.0), (2, 1.00, 0.50), False),
    ],
)
def test_conditions_of_a_mode(
    now: tuple[int, float, float], other: tuple[int, float, float], wanted: bool
) -> None:
    found = advised([group("now", *now), group("other", *other)], mode="now")
    assert (found is not None) is wanted
    if found is not None:
        assert (found.category, found.current, found.recommended) == (Category.MODE, "now", "other")


def test_what_is_not_known_is_left_out() -> None:
    modes = [group("a", 20, 0.5, 1.0), group("b", 20, 0.9, 0.5)]
    assert advised(modes, mode="a") is not None
    assert advised(modes) is None
    assert advised(modes, mode="c") is None
    assert advised([group("a", 20, 0.5, 1.0), group("b", 20, 0.9, None)], mode="a") is None
    unjudged = GroupStatistics(key="b", runs=20, costs=costs_of([(0.5, 20.0)]))
    assert advised([group("a", 20, 0.5, 1.0), unjudged], mode="a") is None
    assert advised((), modes, strategy="") is None
    total = group("", 20, 0.9, 1.0, rounds={(2, True): 20})
    assert recommend(Profile(total), CurrentSettings(), RULES) == []


def test_an_explanation_names_its_numbers() -> None:
    found = advised([group("2loop", 40, 0.8, 1.2), group("3loop", 50, 0.9, 0.8)], mode="2LOOP ")
    assert found is not None
    for part in ("3loop", "90 %", "50", "$0.80", "2loop", "80 %", "40", "$1.20", "+10 points", "-33 %"):
        assert part in found.explanation
    assert found.impact.cost_usd == pytest.approx(-0.4)
    assert found.impact.cost_share == pytest.approx(-1 / 3)
    assert found.impact.quality == pytest.approx(0.1)
    assert (found.current_runs, found.recommended_runs) == (40, 50)


def test_evidence_caps_confidence() -> None:
    scattered = [0.2, 0.4, 0.8, 1.6, 3.2]
    few = advised(
        [group("a", 5, 0.8, [2 * cost for cost in scattered]), group("b", 5, 0.8, scattered)], mode="a"
    )
    assert few is not None
    # The table alone says high: 5 runs each, the same quality, half the cost.
    assert (few.uncapped, few.confidence) == (Confidence.HIGH, Confidence.LOW)
    assert few.probability < 0.8 and few.expected_loss > 0
    many = advised(
        [group("a", 200, 0.8, [2 * cost for cost in scattered] * 40), group("b", 200, 0.8, scattered * 40)],
        mode="a",
    )
    assert many is not None and many.confidence == Confidence.HIGH
    assert many.expected_loss < few.expected_loss
    for table, chance in itertools.product(Confidence, (0.0, 0.79, 0.8, 0.94, 0.95, 1.0)):
        got = capped(table, chance, RULES)
        assert got <= table
        assert got < Confidence.HIGH or chance >= 0.95
        assert got < Confidence.MEDIUM or chance >= 0.80


@given(
    st.integers(2, 200),
    st.integers(2, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.1, 10),
    st.floats(0.01, 1),
)
@settings(max_examples=60)
def test_evidence_is_a_probability_and_even_handed(
    runs_a: int, runs_b: int, quality_a: float, quality_b: float, ratio: float, spread: float
) -> None:
    scatter = [math.exp(spread * step) for step in (-1, 0, 1)]
    one = group("a", runs_a, round(quality_a * runs_a) / runs_a, [scatter[i % 3] for i in range(runs_a)])
    two = group(
        "b", runs_b, round(quality_b * runs_b) / runs_b, [ratio * scatter[i % 3] for i in range(runs_b)]
    )
    there, back = compare(one, two, WEIGHTS), compare(two, one, WEIGHTS)
    for value in (there.better, there.worse):
        assert 0 <= value <= 1
    assert there.better + there.worse <= 1 + 1e-9
    # The grids are a little lopsided: the bins of quality have middles, not means.
    assert there.better == pytest.approx(back.worse, abs=2e-3)
    assert there.switch_loss == pytest.approx(back.stay_loss, abs=2e-3)


def test_more_of_the_same_makes_surer() -> None:
    chances = [
        compare(
            group("a", 10 * n, 0.6, [1.0, 1.4] * 5 * n), group("b", 10 * n, 0.9, [0.9, 1.3] * 5 * n), WEIGHTS
        )
        for n in (1, 4, 16)
    ]
    assert chances[0].better < chances[1].better < chances[2].better
    nothing = compare(GroupStatistics(), GroupStatistics(), WEIGHTS)
    assert nothing.better == pytest.approx(nothing.worse, abs=1e-3)
    assert nothing.better < 0.5
    # Farther apart than the grid of costs reaches.
    far = compare(group("a", 50, 0.9, 1000.0), group("b", 50, 0.9, 0.001), WEIGHTS)
    assert far.better > 0.99


@pytest.mark.parametrize(
    ("rounds", "limit", "quality", "wanted"),
    [
        ({2: 19, 4: 1}, 5, 0.9, "2"),
        ({2: 94, 4: 6}, 5, 0.9, "4"),
        ({2: 10}, 5, 0.80, None),
        ({2: 10}, 4, 0.9, None),
        ({2: 94, 5: 6}, 5, 0.9, None),
        ({1: 80, 3: 20}, 3, 0.9, "4"),
        ({1: 81, 3: 19}, 3, 0.9, None),
        ({5: 10}, 3, 0.9, "4"),
        ({}, 5, 0.9, None),
    ],
)
def test_conditions_of_rounds(rounds: dict[int, int], limit: int, quality: float, wanted: str | None) -> None:
    count = sum(rounds.values()) or 10
    told = {(number, number < limit): float(runs) for number, runs in rounds.items()}
    found = advised(total=group("", count, quality, 1.0, rounds=told), max_rounds=limit)
    assert (found.recommended if found is not None else None) == wanted
    if found is not None:
        assert str(limit) in found.explanation and str(count) in found.explanation
        assert found.impact.cost_usd is not None and found.impact.cost_share is not None


def test_whether_more_rounds_help_is_never_sure() -> None:
    found = advised(total=group("", 200, 0.9, 1.0, rounds={(2, False): 200.0}), max_rounds=2)
    assert found is not None and (found.recommended, found.confidence) == ("3", Confidence.MEDIUM)


@pytest.mark.parametrize(
    ("costs", "limit", "wanted", "confidence"),
    [
        ([0.9] * 9 + [0.95], 2.0, "1.14", Confidence.LOW),
        ([0.9] * 60 + [0.95], 2.0, "1.14", Confidence.HIGH),
        ([0.8, 1.0] * 10, 1.3, None, None),
        ([0.8, 1.0] * 10, 1.31, "1.2", Confidence.MEDIUM),
        ([0.8, 1.0] * 10, 1.0, None, None),
        ([0.8, 1.0] * 10, 0.99, "1.2", Confidence.HIGH),
        ([0.5] * 20 + [50.0], 2.0, "60", Confidence.LOW),
        ([0.001] * 20, 0.5, "0.0012", Confidence.MEDIUM),
        ([], 2.0, None, None),
    ],
)
def test_conditions_of_cost(
    costs: list[float], limit: float, wanted: str | None, confidence: Confidence | None
) -> None:
    found = advised(total=group("", len(costs), 0.9, costs), max_cost_usd=limit)
    assert (found and found.recommended, found and found.confidence) == (wanted, confidence)
    if found is not None:
        assert found.impact.cost_usd == pytest.approx(float(wanted or 0) - limit)


@given(st.floats(1e-6, 1e4))
def test_a_limit_of_cost_lies_between_its_bounds(most: float) -> None:
    wanted = rounded_usd(RULES.cost_headroom * most)
    assert most < wanted < RULES.cost_slack * most


@pytest.mark.parametrize(
    ("now", "other", "wanted"),
    [
        ((5, 0.7, 1.0), (5, 0.9, 1.0), Confidence.LOW),
        ((200, 0.75, 1.0), (200, 0.95, 1.0), Confidence.MEDIUM),
        ((200, 0.86, 1.0), (200, 0.99, 0.8), Confidence.HIGH),
        ((5, 0.9, 1.0), (5, 0.9, 0.8), None),
        ((2, 0.5, 1.0), (50, 0.9, 0.8), None),
    ],
)
def test_conditions_of_a_strategy(
    now: tuple[int, float, float], other: tuple[int, float, float], wanted: Confidence | None
) -> None:
    found = advised((), [group("baseline", *now), group("fast", *other)], strategy="baseline")
    assert (found and found.confidence) == wanted


def test_scores_and_preference() -> None:
    cheap, fine = group("cheap", 5, 0.8, 0.5), group("fine", 5, 1.0, 1.0)
    assert scores([cheap, fine], WEIGHTS) == pytest.approx({"cheap": 0.86, "fine": 0.85})
    assert preferred([cheap, fine], WEIGHTS) == "cheap"
    assert preferred([cheap, fine], Weights(0.9, 0.1)) == "fine"
    assert preferred([group("one", 1, 0.1, 1.0)], WEIGHTS) == "one"
    assert preferred([group("a", 2, 1.0, 0.1), group("b", 3, 0.1, 1.0)], WEIGHTS) == "b"
    assert preferred([group("a", 5, 0.9, 1.0), group("b", 5, 0.9, 1.0)], WEIGHTS) == "a"
    assert preferred([], WEIGHTS) == ""


groups = st.builds(
    group,
    key=st.just(""),
    runs=st.sampled_from([3, 5, 20]),
    quality=st.sampled_from([0.0, 0.5, 0.7, 0.74, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]),
    cost=st.sampled_from([0.7, 0.8, 0.84, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2]),
)
histories = st.builds(
    lambda modes, strategies, rounds, quality, costs: Profile(
        group("", len(costs), quality, costs, rounds=rounds),
        tuple(GroupStatistics(f"m{i}", *_fields(one)) for i, one in enumerate(modes)),
        tuple(GroupStatistics(f"s{i}", *_fields(one)) for i, one in enumerate(strategies)),
    ),
    st.lists(groups, min_size=2, max_size=5),
    st.lists(groups, min_size=2, max_size=5),
    st.dictionaries(st.tuples(st.integers(1, 12), st.booleans()), st.integers(1, 40).map(float), max_size=6),
    st.sampled_from([0.5, 0.81, 1.0]),
    st.lists(st.floats(0.01, 9), min_size=1, max_size=12),
)


def _fields(one: GroupStatistics) -> tuple[Any, ...]:
    return one.runs, one.passed, one.warned, one.failed, one.costs


@given(histories, st.integers(1, 20), st.floats(0.01, 20), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_followed_on_unchanged_history_nothing_is_taken_back(
    profile: Profile, limit: int, limit_usd: float, mode: int, strategy: int
) -> None:
    now = CurrentSettings(f"m{mode}", f"s{strategy}", limit, limit_usd)
    been: dict[str, set[Any]] = {name: {getattr(now, name)} for name in now.__dataclass_fields__}
    rounds_up: list[bool] = []
    for _ in range(30):
        found = recommend(profile, now, RULES)
        if not found:
            break
        values = {name: getattr(now, name) for name in now.__dataclass_fields__}
        for one in found:
            name, made = {
                Category.MODE: ("mode", str),
                Category.STRATEGY: ("strategy", str),
                Category.ROUNDS: ("max_rounds", int),
                Category.COST: ("max_cost_usd", float),
            }[one.category]
            values[name] = made(one.recommended)
            # Never back to any value that was left, and a limit goes one way only.
            assert values[name] not in been[name], (one, been)
            been[name].add(values[name])
            if name == "max_rounds":
                rounds_up.append(values[name] > now.max_rounds)
        now = CurrentSettings(**values)
    assert len(set(rounds_up)) <= 1
    assert recommend(profile, now, RULES) == []


def test_runs_that_do_not_tell_their_limit_do_not_make_it_swing() -> None:
    total = group("", 20, 0.9, 1.0, rounds={(2, False): 20.0})
    down = advised(total=total, max_rounds=6)
    # With 2 every one of them would look as if the limit had stopped it.
    assert down is not None and down.recommended == "3"
    assert cut_share(total, 2) == 1.0
    assert advised(total=total, max_rounds=3) is None


def test_predicted_intervals_hold_what_they_say() -> None:
    generator = np.random.default_rng(5)
    held = total = 0
    for _ in range(400):
        costs = generator.lognormal(0.0, 0.8, 40)
        profile = Profile(group("", 39, 0.9, list(costs[:39])), (group("m", 39, 0.9, list(costs[:39])),))
        found = predict_cost(profile, "m", "", 0.9)
        assert found is not None and found.basis == "mode m" and found.level == pytest.approx(0.9)
        held += found.lower_usd <= costs[39] <= found.upper_usd
        total += 1
    assert 0.86 <= held / total <= 0.94
    few = predict_cost(Profile(group("", 4, 0.9, [1.0, 2.0, 3.0, 4.0])), "m", "", 0.9)
    assert few is not None
    assert (few.level, few.lower_usd, few.upper_usd, few.basis) == (0.6, 1.0, 4.0, "all runs")
    assert predict_cost(Profile(), "", "", 0.9) is None


def test_nanos_are_never_nothing() -> None:
    assert nanos_of(1e-12) == 1
    assert nanos_of(0.8) == 800_000_000

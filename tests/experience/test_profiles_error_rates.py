"""How often advice is wrong: the bounds of the design, on fewer trials of the benchmark's own simulation."""

from __future__ import annotations

import pytest

from benchmarks.bench_recommendations import RUNS, SCENARIOS, peeking, simulate

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
WRONG = [scenario.name for scenario in SCENARIOS if scenario.bound is not None]
RIGHT = [scenario.name for scenario in SCENARIOS if scenario.power is not None]


@pytest.mark.parametrize("name", ["identical", "other 15 points worse"])
def test_chance_is_not_advised(name: str) -> None:
    for runs in RUNS:
        own, old = simulate(BY_NAME[name], runs, 200)
        bound = BY_NAME[name].bound
        assert bound is not None and own.high <= bound, runs
        if runs <= 20 and name == "identical":
            # Against what it is measured: the same draws, the predecessor's rule.
            assert old.high > 0.2, runs


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_better_is_found(name: str) -> None:
    own, _ = simulate(BY_NAME[name], 200, 150)
    power = BY_NAME[name].power
    # Room for 150 trials; the long form has none.
    assert power is not None and own.medium_up >= power - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_bounds_in_full(name: str) -> None:
    bound = BY_NAME[name].bound
    for runs in RUNS:
        own, _ = simulate(BY_NAME[name], runs, 4000)
        assert bound is not None and own.high <= bound, runs


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_power_in_full(name: str) -> None:
    own, _ = simulate(BY_NAME[name], 200, 4000)
    power = BY_NAME[name].power
    assert power is not None and own.medium_up >= power


@pytest.mark.slow
def test_looking_after_every_run_does_not_make_a_false_alarm_likely() -> None:
    # A Bayes factor's bound, by the weights of the same and the better: 2 / 19.
    assert peeking(60, 400) <= 2 / 19

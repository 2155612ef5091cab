"""The circuit breaker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightshift_client.breaker import Breaker, BreakerState


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(time: Time) -> Breaker:
    breaker = Breaker(clock=time)
    for _ in range(3):
        assert breaker.closed
        breaker.failure()
    return breaker


def test_three_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    breaker = Breaker(clock=Time())
    for _ in range(5):
        breaker.failure()
        breaker.failure()
        breaker.success()
    assert breaker.closed
    assert not opened(Time()).closed


def test_one_trial_after_the_pause_and_twice_the_pause_after_it_failed() -> None:
    time = Time()
    breaker = opened(time)
    pauses = []
    for _ in range(6):
        pause = breaker.trial_in_s()
        assert pause is not None
        pauses.append(pause)
        assert not breaker.begin_trial()
        time.now += pause
        assert breaker.begin_trial()
        assert not breaker.begin_trial()
        breaker.failure()
    assert pauses == [5, 10, 20, 40, 60, 60]
    time.now += 60
    assert breaker.begin_trial()
    breaker.success()
    assert breaker.closed
    for _ in range(3):
        breaker.failure()
    assert breaker.trial_in_s() == 5


def test_a_late_answer_does_not_close_an_open_breaker() -> None:
    breaker = opened(Time())
    breaker.success()
    assert not breaker.closed


def test_news_of_the_plane_lets_it_try_at_once() -> None:
    breaker = opened(Time())
    breaker.hasten()
    assert breaker.trial_in_s() == 0
    assert breaker.begin_trial()


@given(st.lists(st.sampled_from(["success", "failure", "trial", "hasten", "wait"]), max_size=60))
def test_a_caller_waits_only_while_it_is_closed_and_it_always_finds_back(steps: list[str]) -> None:
    time = Time()
    breaker = Breaker(clock=time)
    failures = 0
    for step in steps:
        was = breaker.state
        if step == "wait":
            time.now += 7
        elif step == "trial":
            assert breaker.begin_trial() <= (was is BreakerState.OPEN)
        else:
            getattr(breaker, step)()
        if was is BreakerState.CLOSED:
            failures = failures + 1 if step == "failure" else 0 if step == "success" else failures
            assert breaker.closed == (failures < 3)
        else:
            failures = 0
        if breaker.state is BreakerState.OPEN:
            remaining = breaker.trial_in_s()
            assert remaining is not None
            assert 0 <= remaining <= 60
    if breaker.state is BreakerState.OPEN:
        time.now += 60
        assert breaker.begin_trial()
    breaker.success()
    assert breaker.closed

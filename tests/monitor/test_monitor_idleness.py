"""The verdict: every hindrance by itself, the timer's instant, and that idle never holds against a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_monitor.idleness import ExportsFact, Facts, PlatformFact, PlatformState, UseFact, judge

S = 1_000_000_000
IDLE = Facts(
    quiet_ns=120 * S,
    quiet_since_ns=1_000 * S,
    activity_known=True,
    in_flight_starts_ns=(),
    in_flight_timeout_ns=1_800 * S,
    quiet_until_ns=0,
    platform=PlatformFact(PlatformState.UP, "probes/platform: HTTP 200."),
)
NOW = 1_120 * S


def hindrances(facts: Facts, now_ns: int = NOW) -> list[str]:
    judgement = judge(facts, now_ns)
    assert judgement.idle == (not [r for r in judgement.reasons if not r.allows_idle])
    return [reason.code for reason in judgement.reasons if not reason.allows_idle]


def test_quiet_with_the_platform_up_is_idle_exactly_when_the_quiet_ends() -> None:
    before = judge(IDLE, NOW - 1)
    assert not before.idle
    assert before.quiet_remaining_ns == 1
    assert before.next_change_ns == NOW
    at = judge(IDLE, NOW)
    assert at.idle
    assert at.quiet_remaining_ns == 0
    assert {reason.code for reason in at.reasons} == {"QUIET", "PLATFORM_UP"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"quiet_since_ns": 1_119 * S}, "ACTIVITY"),
        ({"quiet_since_ns": 1_119 * S, "activity_known": False}, "STARTING"),
        ({"in_flight_starts_ns": (1_000 * S,)}, "IN_FLIGHT"),
        ({"quiet_until_ns": NOW + 1}, "BACKOFF"),
        ({"platform": PlatformFact(PlatformState.DOWN, "")}, "PLATFORM_DOWN"),
        ({"platform": PlatformFact(PlatformState.UNKNOWN, "")}, "PLATFORM_UNKNOWN"),
        ({"platform": PlatformFact(PlatformState.UP, "", NOW)}, "PLATFORM_UNKNOWN"),
        ({"platform": PlatformFact(PlatformState.STARTING, "")}, "STARTING"),
        ({"uses": (UseFact("GPU_IN_USE", True, ""),)}, "GPU_IN_USE"),
        ({"exports": ExportsFact(1_100 * S, "")}, "EXPORTS_WRITTEN"),
    ],
)
def test_each_hindrance_alone_keeps_the_machine_from_being_idle(change: dict[str, object], code: str) -> None:
    assert hindrances(IDLE) == []
    assert hindrances(replace(IDLE, **change)) == [code]  # type: ignore[arg-type]


def test_a_witness_that_cannot_be_asked_is_not_counted() -> None:
    facts = replace(
        IDLE, uses=(UseFact("GPU_IN_USE", None, "away"),), exports=ExportsFact(None, "unreadable")
    )
    assert hindrances(facts) == []


def test_a_generation_that_timed_out_no_longer_counts_and_its_end_is_an_instant_to_wake_at() -> None:
    facts = replace(IDLE, in_flight_starts_ns=(NOW - 1_799 * S,))
    assert judge(facts, NOW).next_change_ns == NOW + 1 * S
    assert judge(facts, NOW + 1 * S).idle


def test_the_platform_is_gone_is_said_apart_from_idleness() -> None:
    assert judge(IDLE, NOW - 1).platform_up
    assert not judge(replace(IDLE, platform=PlatformFact(PlatformState.DOWN, "")), NOW).platform_up


INSTANTS = st.integers(0, 10_000 * S)
FACTS = st.builds(
    Facts,
    quiet_ns=st.integers(1, 500 * S),
    quiet_since_ns=INSTANTS,
    activity_known=st.booleans(),
    in_flight_starts_ns=st.lists(INSTANTS, max_size=3).map(tuple),
    in_flight_timeout_ns=st.integers(1, 5_000 * S),
    quiet_until_ns=INSTANTS,
    platform=st.builds(PlatformFact, st.sampled_from(PlatformState), st.just(""), st.none() | INSTANTS),
    uses=st.lists(
        st.builds(UseFact, st.just("GPU_IN_USE"), st.sampled_from([True, False, None]), st.just("")),
        max_size=2,
    ).map(tuple),
    exports=st.none() | st.builds(ExportsFact, st.none() | INSTANTS, st.just("")),
)


@given(FACTS, INSTANTS)
def test_the_verdict_holds_until_the_instant_it_names(facts: Facts, now_ns: int) -> None:
    judgement = judge(facts, now_ns)
    codes = [(reason.code, reason.allows_idle) for reason in judgement.reasons]
    end = judgement.next_change_ns
    if end is not None:
        assert end > now_ns
        until = judge(facts, end - 1)
        assert [(reason.code, reason.allows_idle) for reason in until.reasons] == codes
    else:
        later = judge(facts, now_ns + 10**15)
        assert later.idle == judgement.idle
    if judgement.idle:
        assert judgement.quiet_remaining_ns == 0
        assert judgement.platform_up

"""The ledger of activity: restarts, clocks, generations in flight."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_monitor.activity import ActivityLedger, ActivityRecord, ActivityReport
from nightshift_monitor.errors import ActivityInvalid

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW_NS = 5_000_000_000_000
S = 1_000_000_000


def ledger(record: ActivityRecord | None = None, timeout_s: float = 1800) -> ActivityLedger:
    return ActivityLedger(record or ActivityRecord(), now=NOW, now_ns=NOW_NS, in_flight_timeout_s=timeout_s)


def note(book: ActivityLedger, after_s: float, **fields: object) -> None:
    report = ActivityReport(**fields)  # type: ignore[arg-type]
    book.note(report, now=NOW + timedelta(seconds=after_s), now_ns=NOW_NS + round(after_s * S))


def test_without_any_activity_the_start_begins_the_quiet() -> None:
    book = ledger()
    assert not book.known
    assert book.last_activity is None
    assert book.quiet_since_ns == NOW_NS


def test_a_restart_takes_up_the_last_activity_and_not_the_start() -> None:
    book = ledger(ActivityRecord(last_activity=NOW - timedelta(seconds=70)))
    assert book.known
    assert book.quiet_since_ns == NOW_NS - 70 * S


def test_a_stored_instant_in_the_future_counts_as_now() -> None:
    book = ledger(ActivityRecord(last_activity=NOW + timedelta(hours=5)))
    assert book.quiet_since_ns == NOW_NS
    assert book.last_activity == NOW


def test_a_report_of_the_future_counts_as_now_and_an_older_one_never_shortens_the_quiet() -> None:
    book = ledger()
    note(book, 10, activity_time=NOW + timedelta(days=1))
    assert book.last_activity == NOW + timedelta(seconds=10)
    note(book, 11, activity_time=NOW + timedelta(seconds=3))
    assert book.last_activity == NOW + timedelta(seconds=10)
    assert book.quiet_since_ns == NOW_NS + 10 * S


def test_quiet_is_measured_on_the_boot_clock_when_the_wall_clock_jumps() -> None:
    book = ledger()
    note(book, 1)
    # An hour back and ten seconds on: the quiet has lasted ten seconds.
    book.note(ActivityReport(), now=NOW - timedelta(hours=1), now_ns=NOW_NS + 11 * S)
    assert book.quiet_since_ns == NOW_NS + 11 * S


def test_generations_are_in_flight_until_finished_or_timed_out() -> None:
    book = ledger(timeout_s=60)
    note(book, 0, kind="generation_started", run_id="a")
    note(book, 1, kind="generation_started", run_id="b")
    note(book, 2, kind="generation_finished", run_id="a")
    assert book.in_flight_starts_ns(NOW_NS + 3 * S) == [NOW_NS + 1 * S]
    assert book.in_flight_starts_ns(NOW_NS + 61 * S) == []


def test_a_start_told_twice_is_one_generation_and_without_id_each_counts() -> None:
    book = ledger()
    note(book, 0, kind="generation_started", run_id="a")
    note(book, 1, kind="generation_started", run_id="a")
    note(book, 2, kind="generation_started", count=2)
    assert len(book.in_flight_starts_ns(NOW_NS + 3 * S)) == 3
    note(book, 3, kind="generation_finished", run_id="a")
    note(book, 3, kind="generation_finished")
    assert len(book.in_flight_starts_ns(NOW_NS + 3 * S)) == 1


def test_a_start_that_its_own_finish_overtook_is_over() -> None:
    book = ledger()
    note(book, 5, kind="generation_finished", run_id="a")
    note(book, 6, kind="generation_started", run_id="a", activity_time=NOW + timedelta(seconds=4))
    assert book.in_flight_starts_ns(NOW_NS + 7 * S) == []
    note(book, 8, kind="generation_started", run_id="a")
    assert len(book.in_flight_starts_ns(NOW_NS + 9 * S)) == 1


def test_the_longest_backoff_wins_and_none_reaches_beyond_a_day() -> None:
    book = ledger()
    note(book, 0, quiet_until=NOW + timedelta(seconds=60))
    note(book, 1, quiet_until=NOW + timedelta(seconds=30))
    assert book.quiet_until_ns == NOW_NS + 60 * S
    note(book, 1, quiet_until=NOW + timedelta(days=400))
    assert book.quiet_until_ns == NOW_NS + (86_400 + 1) * S


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Über"},
        {"kind": "x" * 33},
        {"kind": ""},
        {"count": 0},
        {"count": -1},
        {"run_id": "a\x00"},
        {"run_id": "r" * 257},
    ],
)
def test_reports_that_say_nothing_sensible_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ActivityInvalid):
        ActivityReport(**fields)  # type: ignore[arg-type]


KINDS = st.sampled_from(["request", "generation_started", "generation_finished", "typing"])
REPORTS = st.lists(
    st.tuples(KINDS, st.sampled_from(["", "a", "b", "c"]), st.integers(1, 3), st.integers(0, 400)),
    max_size=30,
)


@given(REPORTS)
def test_a_record_brings_back_the_very_same_ledger(reports: list[tuple[str, str, int, int]]) -> None:
    book = ledger()
    at = 0
    for kind, run_id, count, after in reports:
        at += after
        note(book, at, kind=kind, run_id=run_id, count=count)
    now, now_ns = NOW + timedelta(seconds=at), NOW_NS + at * S
    record = book.record(now=now, now_ns=now_ns)
    again = ActivityLedger(record, now=now, now_ns=now_ns, in_flight_timeout_s=1800)
    assert again.in_flight_starts_ns(now_ns) == book.in_flight_starts_ns(now_ns)
    assert again.last_activity == book.last_activity
    assert again.known == book.known
    if book.known:
        assert again.quiet_since_ns == book.quiet_since_ns


@given(REPORTS)
def test_generations_in_flight_are_never_negative_and_bounded_by_what_started(
    reports: list[tuple[str, str, int, int]],
) -> None:
    book = ledger()
    at = started = 0
    for kind, run_id, count, after in reports:
        at += after
        started += count if kind == "generation_started" else 0
        note(book, at, kind=kind, run_id=run_id, count=count)
        flying = book.in_flight_starts_ns(NOW_NS + at * S)
        assert len(flying) <= started
        assert all(NOW_NS <= start <= NOW_NS + at * S for start in flying)

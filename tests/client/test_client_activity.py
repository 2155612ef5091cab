"""Coalescing: the first at once, then one a quarter of a second, generations each and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightshift_client.activity import GENERATION_EVENT_AGE_S, MAX_GENERATION_EVENTS, MAX_KINDS, ActivityQueue


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def ns(self) -> int:
        return round(self.now * 1e9)


def queue(time: Time) -> ActivityQueue:
    return ActivityQueue(clock=time, clock_ns=time.ns)


def test_the_first_goes_at_once_and_the_others_together_after_a_quarter_of_a_second() -> None:
    time = Time()
    activity = queue(time)
    activity.add("request")
    first = activity.take()
    assert [(report.kind, report.count) for report in first] == [("request", 1)]
    for _ in range(40):
        activity.add("request")
    assert activity.take() == []
    activity.done(first[0], sent=True)
    time.now += 0.2
    assert activity.take() == []
    assert abs((activity.next_in_s() or 0) - 0.05) < 1e-9
    time.now += 0.06
    (second,) = activity.take()
    assert second.count == 40
    assert second.time_ns == round(50.0 * 1e9)


def test_kinds_do_not_wait_for_each_other() -> None:
    activity = queue(Time())
    activity.add("request")
    activity.take()
    activity.add("typing")
    assert [report.kind for report in activity.take()] == ["typing"]


def test_generations_are_told_each_in_order_and_wait_where_they_cannot_be_told() -> None:
    time = Time()
    activity = queue(time)
    for run_id in ("a", "b"):
        activity.add("generation_started", run_id)
        activity.add("generation_finished", run_id)
    told = []
    failures = 3
    while (reports := activity.take()) or activity.next_in_s() == 0:
        (report,) = reports
        sent = failures == 0
        failures -= not sent
        activity.done(report, sent=sent)
        if sent:
            told.append((report.kind, report.run_id))
    assert told == [
        ("generation_started", "a"),
        ("generation_finished", "a"),
        ("generation_started", "b"),
        ("generation_finished", "b"),
    ]
    assert activity.lost_count == 0


def test_memory_is_bounded() -> None:
    time = Time()
    activity = queue(time)
    for number in range(MAX_GENERATION_EVENTS + 10):
        activity.add("generation_started", f"run_{number}")
    assert activity.lost_count == 10
    for letter in "abcdefghij":
        for other in "abcdefghij":
            activity.add(f"kind_{letter}{other}")
    assert len(activity.take()) <= MAX_KINDS + 2
    time.now += GENERATION_EVENT_AGE_S + 1
    other_queue = queue(time)
    other_queue.add("generation_started", "old")
    time.now += GENERATION_EVENT_AGE_S + 1
    assert other_queue.take() == []


def test_words_that_the_plane_would_refuse_become_requests() -> None:
    activity = queue(Time())
    for kind in ("Über", "", "x" * 33, "a b"):
        activity.add(kind)
    assert [(report.kind, report.count) for report in activity.take()] == [("request", 4)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["request", "typing", "generation_started", "take", "lost"]), st.floats(0, 1)
        ),
        max_size=80,
    )
)
def test_no_report_vanishes_and_none_is_told_twice(steps: list[tuple[str, float]]) -> None:
    time = Time()
    activity = queue(time)
    added = told = 0
    last_sent: dict[str, float] = {}
    for step, pause in steps:
        time.now += pause
        if step in ("take", "lost"):
            for report in activity.take():
                if report.kind != "generation_started":
                    assert time.now - last_sent.get(report.kind, -1.0) >= 0.25 - 1e-9
                    last_sent[report.kind] = time.now
                activity.done(report, sent=step == "take")
                told += report.count if step == "take" else 0
        else:
            activity.add(step, "run" if step == "generation_started" else "")
            added += 1
    while not activity.idle:
        time.now += 1
        for report in activity.take():
            activity.done(report, sent=True)
            told += report.count
    assert told + activity.lost_count == added

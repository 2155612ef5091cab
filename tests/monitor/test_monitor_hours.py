"""Hours of activity and what they predict: simulated workshops, clock changes, midnight, and the wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift_monitor.activity import ActivityRecord, ActivityReport
from nightshift_monitor.hours import HOUR, ActivityHours, HourCount, hour_of
from nightshift_monitor.store.records import SqlRecords
from tests.monitor.conftest import MakeMonitor

BERLIN = ZoneInfo("Europe/Berlin")


def fresh(zone: str = "Europe/Berlin", *, half_life_weeks: float = 4) -> ActivityHours:
    return ActivityHours(zone, half_life_weeks=half_life_weeks, busy_probability=0.5)


def local(zone: ZoneInfo, day: date, hour: float) -> datetime:
    """An instant of a local day; hours of 24 and more lie on the days after."""
    days, minutes = divmod(int(hour * 60 + 1e-6), 24 * 60)
    clock = time(*divmod(minutes, 60))
    return datetime.combine(day + timedelta(days=days), clock, zone).astimezone(UTC)


def workshop(
    hours: ActivityHours, zone: ZoneInfo, day: date, begin: int, end: int, chance: random.Random
) -> None:
    """A report each few minutes from ``begin`` to ``end``, with a lively first minute in each hour."""
    for hour in range(begin, end):
        for minute in (0, *sorted(chance.sample(range(1, 60), 12))):
            at = local(zone, day, hour + minute / 60)
            hours.note(ActivityReport(activity_time=at), at)


def next_hour(zone: ZoneInfo, now: datetime, weekdays: set[int], begin: int, end: int) -> datetime:
    """The answer by another way: walk over the hours until one is a workshop's (``end`` up to 24)."""
    at = hour_of(now, zone)
    while True:
        here = at.astimezone(zone)
        if here.weekday() in weekdays and begin <= here.hour < end:
            return at
        at += HOUR


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    # All of a year: both changes of the clocks fall into some of the four weeks, or right behind them.
    start=st.dates(date(2026, 1, 1), date(2026, 12, 31)),
    later_h=st.integers(0, 167),
    begin=st.integers(0, 20),
    zone_name=st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]),
)
def test_after_four_weeks_of_workshops_the_next_hour_of_one_is_named(
    seed: int, start: date, later_h: int, begin: int, zone_name: str
) -> None:
    zone, chance = ZoneInfo(zone_name), random.Random(seed)
    hours = fresh(zone_name)
    end = begin + 4
    tried: set[tuple[int, int]] = set()
    for day in (start + timedelta(days=number) for number in range(28)):
        if day.weekday() in (1, 3):
            workshop(hours, zone, day, begin, end, chance)
        elif chance.random() < 0.2:
            # Somebody who tries something, at another hour of the week each time: the same hour in two of
            # four weeks would be a habit, and rightly be predicted.
            at = local(zone, day, chance.uniform(0, 23))
            here = at.astimezone(zone)
            if (here.weekday(), here.hour) not in tried:
                tried.add((here.weekday(), here.hour))
                hours.note(ActivityReport(activity_time=at), at)
    now = local(zone, start + timedelta(days=28), 0) + timedelta(hours=later_h, minutes=chance.randrange(60))
    expected = next_hour(zone, now, {1, 3}, begin, end)
    predicted = hours.predicted(now)
    if begin > 3:
        assert predicted == expected
    else:
        # At the very hour that the clocks skip or repeat, a workshop has no one right answer.
        assert predicted is not None
        assert abs(predicted - expected) <= HOUR


@pytest.mark.parametrize(
    ("start", "change"),
    [(date(2026, 3, 2), "spring"), (date(2026, 9, 28), "autumn")],
)
def test_nine_stays_nine_when_the_clocks_change(start: date, change: str) -> None:
    hours, chance = fresh(), random.Random(7)
    for day in (start + timedelta(days=number) for number in range(28)):
        if day.weekday() in (1, 3):
            workshop(hours, BERLIN, day, 9, 13, chance)
    # The night from Saturday to Sunday changes the clocks; the workshop is on Tuesday.
    saturday = start + timedelta(days=26)
    assert saturday in (date(2026, 3, 28), date(2026, 10, 24))
    before, after = local(BERLIN, saturday, 12), local(BERLIN, saturday + timedelta(days=2), 12)
    assert before.astimezone(BERLIN).utcoffset() != after.astimezone(BERLIN).utcoffset()
    predicted = hours.predicted(before)
    assert predicted is not None
    assert predicted.astimezone(BERLIN) == datetime(
        *(saturday + timedelta(days=3)).timetuple()[:3], 9, tzinfo=BERLIN
    )
    assert hours.predicted(after) == predicted


def test_a_workshop_over_midnight_is_expected_on_both_sides_of_it() -> None:
    hours, chance = fresh(), random.Random(7)
    start = date(2026, 6, 1)
    for week in range(4):
        workshop(hours, BERLIN, start + timedelta(weeks=week, days=4), 22, 24, chance)
        workshop(hours, BERLIN, start + timedelta(weeks=week, days=5), 0, 2, chance)
    friday = start + timedelta(weeks=4, days=4)
    assert hours.predicted(local(BERLIN, friday, 12)) == local(BERLIN, friday, 22)
    # Within it the present hour is named, before midnight and behind it.
    assert hours.predicted(local(BERLIN, friday, 23.5)) == local(BERLIN, friday, 23)
    assert hours.predicted(local(BERLIN, friday, 24.25)) == local(BERLIN, friday, 24)
    assert hours.predicted(local(BERLIN, friday, 26)) == local(BERLIN, friday + timedelta(weeks=1), 22)


def test_nothing_is_predicted_before_two_weeks_nor_where_no_hour_stands_out() -> None:
    hours = fresh("UTC")
    start = datetime(2026, 6, 1, 9, 30, tzinfo=UTC)
    assert hours.predicted(start) is None
    hours.note(ActivityReport(), start)
    assert hours.predicted(start + timedelta(days=13)) is None
    hours.note(ActivityReport(), start + timedelta(days=7))
    assert hours.predicted(start + timedelta(days=14)) == datetime(2026, 6, 15, 9, tzinfo=UTC)
    # A hundred days later nobody comes any more: old habits fade.
    assert hours.predicted(start + timedelta(days=100)) is None


def test_later_weeks_weigh_more() -> None:
    hours = fresh("UTC", half_life_weeks=1)
    first = datetime(2026, 6, 1, tzinfo=UTC)
    for week in range(3):
        hours.note(ActivityReport(), first + timedelta(weeks=week, hours=8))
    for week in range(3, 6):
        hours.note(ActivityReport(), first + timedelta(weeks=week, hours=15))
    profile = hours.profile(first + timedelta(weeks=6))
    assert len(profile.slots) == 168
    assert [(slot.weekday, slot.hour) for slot in profile.slots[:25:24]] == [(1, 0), (2, 0)]
    # Weights by week, from the last on: 1, 1/2, 1/4, 1/8, 1/16, 1/32 of 63/32.
    assert profile.slots[15].probability == pytest.approx((1 + 1 / 2 + 1 / 4) / (63 / 32))
    assert profile.slots[8].probability == pytest.approx((1 / 8 + 1 / 16 + 1 / 32) / (63 / 32))
    assert profile.predicted == first + timedelta(weeks=6, hours=15)


def test_what_the_plane_says_to_itself_and_clocks_gone_wrong_make_no_history() -> None:
    hours = fresh("UTC")
    now = datetime(2026, 6, 1, 9, 30, tzinfo=UTC)
    hours.note(ActivityReport(kind="restart"), now)
    assert hours.take_unsaved() == {}
    hours.note(ActivityReport(activity_time=datetime(1999, 1, 1, tzinfo=UTC)), now)
    hours.note(ActivityReport(activity_time=now + timedelta(days=400)), now)
    assert hours.take_unsaved() == {datetime(2026, 6, 1, 9, tzinfo=UTC): HourCount(2, 0)}
    assert hours.profile(now).first == datetime(2026, 6, 1, 9, tzinfo=UTC)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2 * 365 * 86_400).map(
        lambda after_s: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(0, after_s)
    ),
    st.sampled_from(["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"]),
)
def test_an_instant_lies_in_its_hour(instant: datetime, zone_name: str) -> None:
    start = hour_of(instant, ZoneInfo(zone_name))
    assert start <= instant < start + HOUR
    assert start.astimezone(ZoneInfo(zone_name)).minute == 0


async def test_hours_over_the_wire_outlive_a_restart(make_monitor: MakeMonitor) -> None:
    now = datetime.now(UTC)
    async with make_monitor(time_zone="Europe/Berlin") as monitor:
        stub = monitor.stub()
        for hours_ago in (0, 1, 1, 30):
            at = Timestamp()
            at.FromDatetime(now - timedelta(hours=hours_ago))
            await stub.RecordActivity(
                messages.RecordActivityRequest(kind="generation_started", activity_time=at, run_id="r"),
                timeout=5,
            )
        profile = await stub.GetActivityProfile(messages.GetActivityProfileRequest())
        assert profile.time_zone == "Europe/Berlin"
        assert len(profile.slots) == 168
        assert not profile.HasField("predicted_busy_time")
    async with make_monitor(time_zone="Europe/Berlin") as monitor:
        stub = monitor.stub()
        found, token = [], ""
        while True:
            page = await stub.ListActivity(messages.ListActivityRequest(page_size=1, page_token=token))
            found += list(page.activity_hours)
            token = page.next_page_token
            if not token:
                break
        starts = [hour_of(now - timedelta(hours=hours_ago), BERLIN) for hours_ago in (0, 1, 30)]
        assert [hour.start_time.ToDatetime(tzinfo=UTC) for hour in found] == starts
        assert [hour.generation_count for hour in found] == [1, 2, 1]
        assert (await stub.GetActivityProfile(messages.GetActivityProfileRequest())).first_time == found[
            -1
        ].start_time


async def test_a_stop_in_the_middle_of_a_saving_counts_each_report_once(
    make_monitor: MakeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = SqlRecords.save_activity, asyncio.Event()

    async def slow(self: SqlRecords, record: ActivityRecord, counted: Mapping[datetime, HourCount]) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        await real(self, record, counted)

    async with make_monitor() as monitor:
        monkeypatch.setattr(SqlRecords, "save_activity", slow)
        monitor.core.record_activity(ActivityReport(count=3))
        await asyncio.wait_for(begun.wait(), 5)
        # Comes while the first is on its way to the store.
        monitor.core.record_activity(ActivityReport(count=4))
    monkeypatch.setattr(SqlRecords, "save_activity", real)
    async with make_monitor() as monitor:
        rows = await monitor.core.activity_hours(before_us=0, limit=10)
        assert sum(count.activities for _, _, count in rows) == 7


async def test_the_idleness_says_when_users_are_expected(make_monitor: MakeMonitor) -> None:
    now = datetime.now(UTC)
    soon = hour_of(now, ZoneInfo("UTC")) + timedelta(hours=3)
    async with make_monitor() as monitor:
        stub = monitor.stub()
        assert not (await stub.GetIdleness(messages.GetIdlenessRequest())).HasField("predicted_busy_time")
        for weeks in (1, 2, 3):
            at = Timestamp()
            at.FromDatetime(soon - timedelta(weeks=weeks))
            await stub.RecordActivity(messages.RecordActivityRequest(activity_time=at), timeout=5)
        await asyncio.sleep(0.3)
    async with make_monitor() as monitor:
        stub = monitor.stub()
        idleness = await stub.GetIdleness(messages.GetIdlenessRequest())
        assert idleness.predicted_busy_time.ToDatetime(tzinfo=UTC) == soon
        status = await anext(aiter(stub.WatchStatus(messages.WatchStatusRequest())))
        assert status.status.idleness.predicted_busy_time == idleness.predicted_busy_time

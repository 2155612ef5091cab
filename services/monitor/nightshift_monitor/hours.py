"""Hours of activity, the profile of a week that they make, and when users are next expected.

An hour is one of the plane's time zone, named by the instant (UTC) at which it began. A profile is of the
168 hours of the week in local time, so a workshop at nine stays at nine when the clocks change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from nightshift_monitor.activity import ActivityReport

HOUR = timedelta(hours=1)
WEEK = timedelta(weeks=1)
WEEK_HOURS = 168
# Fewer weeks tell no habit from a chance.
MIN_KNOWN = timedelta(weeks=2)
# A week so many half-lives old weighs a 64th; what is older is passed over.
HALF_LIVES = 6
# What a plane says to itself at a start is no user.
OWN_KINDS = frozenset({"restart"})


@dataclass(frozen=True, slots=True)
class HourCount:
    """Activity of one hour."""

    activities: int = 0
    generations: int = 0

    def plus(self, other: HourCount) -> HourCount:
        """Both together."""
        return HourCount(self.activities + other.activities, self.generations + other.generations)


@dataclass(frozen=True, slots=True)
class Slot:
    """One hour of the week; ``weekday`` is 1 (Monday) to 7, ``probability`` 0 to 1."""

    weekday: int
    hour: int
    probability: float
    mean_activities: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What past weeks tell; ``first`` is the first kept hour, ``predicted`` when users are next expected."""

    time_zone: str
    first: datetime | None
    slots: tuple[Slot, ...]
    predicted: datetime | None
    busy_probability: float


def hour_of(instant: datetime, zone: ZoneInfo) -> datetime:
    """The beginning (UTC) of the local hour that an instant lies in."""
    local = instant.astimezone(zone)
    return local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)


class ActivityHours:
    """Counts hours, remembers those of the last weeks, and predicts; pure, driven by instants."""

    def __init__(self, zone: str, *, half_life_weeks: float, busy_probability: float) -> None:
        """``busy_probability`` is the part of the weighted weeks from which users count as expected."""
        self._zone = ZoneInfo(zone)
        self._zone_name = zone
        self._half_life_weeks = half_life_weeks
        self._busy_probability = busy_probability
        self._first: datetime | None = None
        # local day and hour → count; the two hours that share a name when the clocks go back are added up.
        self._known: dict[tuple[date, int], HourCount] = {}
        self._unsaved: dict[datetime, HourCount] = {}
        # Both hold for one hour: only hours that are over count.
        self._slots_of: tuple[datetime, tuple[Slot, ...]] | None = None
        self._prediction_of: tuple[datetime, datetime | None] | None = None

    @property
    def memory(self) -> timedelta:
        """Hours older than this change nothing any more."""
        return WEEK * (self._half_life_weeks * HALF_LIVES + 1)

    def recall(self, first: datetime | None, hours: Mapping[datetime, HourCount]) -> None:
        """Takes up what the store keeps: the first hour of all, and those within ``memory``."""
        self._first = first
        for start, count in hours.items():
            self._add(start, count)

    def note(self, report: ActivityReport, now: datetime) -> None:
        """Counts a report in the hour of its activity."""
        if report.kind in OWN_KINDS:
            return
        instant = now if report.activity_time is None else min(report.activity_time, now)
        if instant < now - self.memory:
            # A clock gone wrong; an hour of years ago would only feign a long history.
            instant = now
        start = hour_of(instant, self._zone)
        count = HourCount(report.count, report.count if report.kind == "generation_started" else 0)
        self._add(start, count)
        self._unsaved[start] = self._unsaved.get(start, HourCount()).plus(count)

    def take_unsaved(self) -> dict[datetime, HourCount]:
        """What the store has not got yet; it is the caller's now."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def give_back(self, hours: Mapping[datetime, HourCount]) -> None:
        """What could not be saved waits for the next time."""
        for start, count in hours.items():
            self._unsaved[start] = self._unsaved.get(start, HourCount()).plus(count)

    def predicted(self, now: datetime) -> datetime | None:
        """Beginning (UTC) of the next hour in which users are expected, at most a week ahead.

        It is the present hour's beginning where they are expected now; None while too little is known.
        """
        if self._first is None or now - self._first < MIN_KNOWN:
            return None
        hour = hour_of(now, self._zone)
        if self._prediction_of is None or self._prediction_of[0] != hour:
            self._prediction_of = (hour, self._next_busy(hour, self._slots(now)))
        return self._prediction_of[1]

    def profile(self, now: datetime) -> Profile:
        """All hours of the week, from Monday 0:00 on."""
        return Profile(
            self._zone_name, self._first, self._slots(now), self.predicted(now), self._busy_probability
        )

    def _next_busy(self, start: datetime, slots: tuple[Slot, ...]) -> datetime | None:
        # Hour by hour of real time, so that an hour that the clocks skip or repeat needs no thought.
        for _ in range(WEEK_HOURS + 2):
            local = start.astimezone(self._zone)
            if slots[local.weekday() * 24 + local.hour].probability >= self._busy_probability:
                return start
            start = hour_of(start + HOUR, self._zone)
        return None

    def _add(self, start: datetime, count: HourCount) -> None:
        if self._first is None or start < self._first:
            self._first = start
            self._slots_of = self._prediction_of = None
        local = start.astimezone(self._zone)
        key = (local.date(), local.hour)
        self._known[key] = self._known.get(key, HourCount()).plus(count)

    def _slots(self, now: datetime) -> tuple[Slot, ...]:
        hour = hour_of(now, self._zone)
        if self._slots_of is None or self._slots_of[0] != hour:
            self._forget_before((now - self.memory).astimezone(self._zone).date())
            local = hour.astimezone(self._zone)
            self._slots_of = (hour, tuple(self._slot(local, number) for number in range(WEEK_HOURS)))
        return self._slots_of[1]

    def _slot(self, now: datetime, number: int) -> Slot:
        weekday, hour = divmod(number, 24)
        days_back = (now.weekday() - weekday) % 7
        if days_back == 0 and hour >= now.hour:
            days_back = 7
        day = now.date() - timedelta(days=days_back)
        first = date.min if self._first is None else self._first.astimezone(self._zone).date()
        weight_sum = busy_sum = count_sum = 0.0
        weight, decay = 1.0, 0.5 ** (1 / self._half_life_weeks)
        for _ in range(round(self._half_life_weeks * HALF_LIVES)):
            if self._first is None or day < first:
                break
            if self._exists(day, hour):
                count = self._known.get((day, hour), HourCount()).activities
                weight_sum += weight
                busy_sum += weight * (count > 0)
                count_sum += weight * count
            weight *= decay
            day -= WEEK
        if weight_sum == 0:
            return Slot(weekday + 1, hour, 0.0, 0.0)
        return Slot(weekday + 1, hour, busy_sum / weight_sum, count_sum / weight_sum)

    def _exists(self, day: date, hour: int) -> bool:
        """Whether the clocks showed this hour on this day: one of spring is skipped, and tells nothing."""
        local = datetime(day.year, day.month, day.day, hour, tzinfo=self._zone)
        return local.astimezone(UTC).astimezone(self._zone).hour == hour

    def _forget_before(self, day: date) -> None:
        for key in [key for key in self._known if key[0] < day]:
            del self._known[key]

"""Who was there: last activity, generations in flight, back-off.

Instants are kept on the boot clock (``CLOCK_BOOTTIME``, nanoseconds), so that setting the wall clock
neither makes the machine idle nor keeps it from it; the store gets wall instants, because boot time ends
with the boot.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from nightshift_monitor.errors import ActivityInvalid

NANOSECONDS = 1_000_000_000
MAX_IN_FLIGHT = 10_000
MAX_REMEMBERED_FINISHES = 1_000
# A back-off is minutes; one that reaches further than a day is a broken clock, not a wish.
MAX_BACKOFF = timedelta(days=1)
MAX_RUN_ID_LENGTH = 256
# Nobody counts further within the second that a report stands for; sums of it fit any column.
MAX_COUNT = 1_000_000_000

_KIND = re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class ActivityReport:
    """One report of skills.

    ``activity_time`` and ``quiet_until`` are UTC or None; ``count`` is at least 1.
    """

    kind: str = "request"
    activity_time: datetime | None = None
    count: int = 1
    run_id: str = ""
    quiet_until: datetime | None = None

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ActivityInvalid: for a kind that is not a short word, a count below 1 or beyond MAX_COUNT, a
                run id too long or with control characters.
        """
        if not _KIND.fullmatch(self.kind):
            raise ActivityInvalid.of("kind", "expected a word of at most 32 characters [a-z_]")
        if self.count < 1:
            raise ActivityInvalid.of("count", "must not be negative")
        if self.count > MAX_COUNT:
            raise ActivityInvalid.of("count", f"at most {MAX_COUNT}")
        if len(self.run_id) > MAX_RUN_ID_LENGTH or not self.run_id.isprintable():
            raise ActivityInvalid.of("run_id", f"at most {MAX_RUN_ID_LENGTH} printable characters")


@dataclass(frozen=True, slots=True)
class ActivityRecord:
    """What the store keeps, in UTC; ``in_flight`` maps a run id to the starts of its generations."""

    last_activity: datetime | None = None
    quiet_until: datetime | None = None
    in_flight: dict[str, tuple[datetime, ...]] = field(default_factory=dict)


class ActivityLedger:
    """Keeps the activity of one plane; pure, driven by the instants given to it."""

    def __init__(
        self, record: ActivityRecord, *, now: datetime, now_ns: int, in_flight_timeout_s: float
    ) -> None:
        """Takes up what the store knows.

        An instant of the store that lies in the future (the clock was set back) counts as now, so that it
        delays idleness but cannot forbid it.
        """
        self._timeout_ns = round(in_flight_timeout_s * NANOSECONDS)
        self._start_ns = now_ns
        self._last_activity: datetime | None = None
        self._last_activity_ns: int | None = None
        self._quiet_until: datetime | None = None
        self._quiet_until_ns = now_ns
        # run id → starts on the boot clock, oldest first; "" holds the generations without an id.
        self._in_flight: OrderedDict[str, list[int]] = OrderedDict()
        self._finished: OrderedDict[str, int] = OrderedDict()
        if record.last_activity is not None:
            self._note_activity(min(record.last_activity, now), now, now_ns)
        if record.quiet_until is not None:
            self._note_quiet_until(record.quiet_until, now, now_ns)
        for run_id, starts in record.in_flight.items():
            for start in starts:
                self._begin(run_id, _on_boot_clock(min(start, now), now, now_ns))

    @property
    def known(self) -> bool:
        """Whether any activity is known since the store began."""
        return self._last_activity_ns is not None

    @property
    def last_activity(self) -> datetime | None:
        """Last known activity, UTC."""
        return self._last_activity

    @property
    def quiet_since_ns(self) -> int:
        """Begin of the present quiet (boot clock): the last activity, or the start where none is known."""
        return self._start_ns if self._last_activity_ns is None else self._last_activity_ns

    @property
    def quiet_until_ns(self) -> int:
        """End of the back-off on the boot clock; in the past where there is none."""
        return self._quiet_until_ns

    def note(self, report: ActivityReport, *, now: datetime, now_ns: int) -> None:
        """Takes in one report; an ``activity_time`` that is absent or in the future becomes ``now``."""
        instant = now if report.activity_time is None else min(report.activity_time, now)
        instant_ns = _on_boot_clock(instant, now, now_ns)
        self._note_activity(instant, now, now_ns)
        if report.quiet_until is not None:
            self._note_quiet_until(report.quiet_until, now, now_ns)
        if report.kind == "generation_started":
            for _ in range(min(report.count, MAX_IN_FLIGHT)):
                # A start that arrives after its own finish (two connections, one overtook the other) is
                # over already.
                if report.run_id and self._finished.get(report.run_id, instant_ns - 1) >= instant_ns:
                    continue
                self._begin(report.run_id, instant_ns)
        elif report.kind == "generation_finished":
            for _ in range(min(report.count, MAX_IN_FLIGHT)):
                self._end(report.run_id)
            if report.run_id:
                self._finished[report.run_id] = instant_ns
                self._finished.move_to_end(report.run_id)
                while len(self._finished) > MAX_REMEMBERED_FINISHES:
                    self._finished.popitem(last=False)

    def in_flight_starts_ns(self, now_ns: int) -> list[int]:
        """Starts of the generations that are not finished nor timed out, oldest first."""
        self._forget_timed_out(now_ns)
        return sorted(start for starts in self._in_flight.values() for start in starts)

    def record(self, *, now: datetime, now_ns: int) -> ActivityRecord:
        """What the store should keep now."""
        self._forget_timed_out(now_ns)
        return ActivityRecord(
            last_activity=self._last_activity,
            quiet_until=self._quiet_until,
            in_flight={
                run_id: tuple(now - timedelta(microseconds=(now_ns - start) // 1000) for start in starts)
                for run_id, starts in self._in_flight.items()
            },
        )

    def _note_activity(self, instant: datetime, now: datetime, now_ns: int) -> None:
        instant_ns = _on_boot_clock(instant, now, now_ns)
        if self._last_activity_ns is None or instant_ns >= self._last_activity_ns:
            self._last_activity_ns = instant_ns
            self._last_activity = instant

    def _note_quiet_until(self, quiet_until: datetime, now: datetime, now_ns: int) -> None:
        wanted = min(quiet_until, now + MAX_BACKOFF)
        wanted_ns = _on_boot_clock(wanted, now, now_ns)
        if wanted_ns > self._quiet_until_ns:
            self._quiet_until = wanted
            self._quiet_until_ns = wanted_ns

    def _begin(self, run_id: str, start_ns: int) -> None:
        starts = self._in_flight.setdefault(run_id, [])
        # One run is one generation: its start told twice (a retry) is still one. Without an id each counts.
        if run_id and starts:
            starts[0] = max(starts[0], start_ns)
        else:
            starts.append(start_ns)
            starts.sort()
        while sum(map(len, self._in_flight.values())) > MAX_IN_FLIGHT:
            oldest = next(iter(self._in_flight))
            self._in_flight[oldest].pop(0)
            if not self._in_flight[oldest]:
                del self._in_flight[oldest]

    def _end(self, run_id: str) -> None:
        starts = self._in_flight.get(run_id)
        if not starts:
            return
        starts.pop(0)
        if not starts:
            del self._in_flight[run_id]

    def _forget_timed_out(self, now_ns: int) -> None:
        for run_id in list(self._in_flight):
            starts = [start for start in self._in_flight[run_id] if now_ns - start < self._timeout_ns]
            if starts:
                self._in_flight[run_id] = starts
            else:
                del self._in_flight[run_id]


def _on_boot_clock(instant: datetime, now: datetime, now_ns: int) -> int:
    """The instant on the boot clock; microseconds are exact, so that a round trip through the store is."""
    return now_ns - ((now - instant.astimezone(UTC)) // timedelta(microseconds=1)) * 1000

"""The platform's times: naive local ISO timestamps in the records, UTC milliseconds in the run ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Run ids and clocks outside of these years are nonsense (a zeroed clock, a number in nanoseconds).
_EARLIEST_US = 946_684_800_000_000  # 2000-01-01
_LATEST_US = 4_102_444_800_000_000  # 2100-01-01


def plausible(instant_us: int | None) -> int | None:
    """The instant if it lies between the years 2000 and 2100, else None."""
    return instant_us if instant_us is not None and _EARLIEST_US <= instant_us < _LATEST_US else None


def parse_iso(value: str) -> datetime | None:
    """A timestamp as it was written, with or without a zone; None if it is none."""
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def to_us(moment: datetime, zone: tzinfo) -> int:
    """Microseconds since 1970 UTC; a naive timestamp is local in `zone`."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return (moment - _EPOCH) // _MICROSECOND


def local_us(value: str, zone: tzinfo) -> int | None:
    """Microseconds since 1970 UTC of a timestamp; None if it is none, or not a plausible one."""
    moment = parse_iso(value)
    try:
        return plausible(to_us(moment, zone)) if moment is not None else None
    except OverflowError:
        return None


def span_us(begin: str, end: str) -> int | None:
    """Microseconds between two timestamps of one record; None if either is none or the end comes first.

    Both were written by one clock without a zone, so their difference needs none; over a change of
    summer time it is off by an hour and may be negative, which counts as unknown.
    """
    first, last = parse_iso(begin), parse_iso(end)
    if first is None or last is None or (first.tzinfo is None) != (last.tzinfo is None):
        return None
    span = (last - first) // _MICROSECOND
    return span if span >= 0 else None

"""Instants as the store keeps them: microseconds of Unix time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(instant: datetime) -> int:
    """The instant in microseconds."""
    return (instant.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def instant(value: int) -> datetime:
    """The instant (UTC) of so many microseconds."""
    return _EPOCH + timedelta(microseconds=value)


def micros_or_none(value: datetime | None) -> int | None:
    """As ``micros``; None stays None."""
    return None if value is None else micros(value)


def instant_or_none(value: int | None) -> datetime | None:
    """As ``instant``; None stays None."""
    return None if value is None else instant(value)

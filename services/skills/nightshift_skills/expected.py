"""Users that are expected now: since when, and for how long none of them has come.

The monitor expects users by habit, hour by hour. Where the hour is here and nobody comes, the habit was
broken today (holidays, a workshop that is off), and idle work need not wait for users that stay away.
"""

from __future__ import annotations

from datetime import datetime, timedelta

HOUR = timedelta(hours=1)
# A clean hour of those in which users are expected: what forgets a back-off believes no expectation either.
CLEAN_S = 3600.0
# Work that waited for so long starts in whatever quiet there is: hours that are always busy starve none.
LONGEST_WAIT_S = 86_400.0


def expected_now(busy: datetime | None, now: datetime) -> bool:
    """Whether a prediction says that this is an hour in which users are usually there."""
    return busy is not None and now - HOUR < busy <= now


class Expected:
    """Since when users are expected without a break; on the boot clock, because the wall clock may jump."""

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def look(self, busy: datetime | None, now: datetime, now_ns: int) -> None:
        """Takes the monitor's present prediction into account."""
        if busy is None or not expected_now(busy, now):
            self._since_ns = None
        elif self._since_ns is None:
            self._since_ns = now_ns - round((now - busy).total_seconds() * 1e9)

    def absent_s(self, last_seen: datetime | None, now: datetime, now_ns: int) -> float:
        """For how long users were expected, and none was there, in seconds.

        Args:
            last_seen: When a user was there last, or when that became unknown; None tells of no absence.
            now: The time.
            now_ns: On the boot clock.
        """
        if self._since_ns is None or last_seen is None:
            return 0.0
        return max(0.0, min((now_ns - self._since_ns) / 1e9, (now - last_seen).total_seconds()))

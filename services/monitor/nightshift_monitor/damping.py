"""When a probe's trouble counts as an incident, and when it is over: pure, driven by looks and instants.

Trouble begins with a bad look (DEGRADED or DOWN) and ends when the probe was well for the stable time. It
becomes an incident with the N-th bad look in a row, or with a bad look once it has lasted for a while: a
single bad answer is none, and a probe that comes and goes is one, not many. UNKNOWN proves nothing and
changes nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nightshift_monitor.activity import NANOSECONDS
from nightshift_monitor.observations import ProbeState


class Turn(enum.Enum):
    """What one look means for the probe's incident."""

    NOTHING = "nothing"
    OPEN = "open"
    """Bad for long enough: an incident begins."""
    BAD = "bad"
    """Still bad, within an incident."""
    FLAP = "flap"
    """Bad again after a while that was too short to end the incident."""
    CLOSE = "close"
    """Well for the stable time: the incident is over."""


@dataclass(slots=True)
class Trouble:
    """A probe that is, or lately was, bad; instants on the boot clock."""

    since_ns: int
    bad_in_a_row: int = 1
    well_since_ns: int | None = None
    counted: bool = False
    """Whether it is an incident."""
    flaps: int = 0


class Damper:
    """Judges the looks of one probe."""

    def __init__(self, *, after_looks: int, after_s: float, stable_s: float) -> None:
        """``after_looks`` bad looks in a row, or ``after_s`` of trouble, make an incident."""
        self._after_looks = after_looks
        self._after_ns = round(after_s * NANOSECONDS)
        self._stable_ns = round(stable_s * NANOSECONDS)
        self._trouble: Trouble | None = None

    @property
    def flaps(self) -> int:
        """How often the trouble came back within the stable time, before it was an incident or since."""
        return 0 if self._trouble is None else self._trouble.flaps

    @property
    def troubled(self) -> bool:
        """Whether the probe is bad, or was within the stable time."""
        return self._trouble is not None

    def resume(self, now_ns: int, flaps: int) -> None:
        """Goes on with an incident of an earlier process; the stable time counts from now."""
        self._trouble = Trouble(now_ns, well_since_ns=None, counted=True, flaps=flaps)

    def forget(self) -> None:
        """Judges the probe anew, as if nothing had been seen."""
        self._trouble = None

    def look(self, state: ProbeState, now_ns: int) -> Turn:
        """Takes in one look."""
        if state in (ProbeState.DEGRADED, ProbeState.DOWN):
            return self._bad(now_ns)
        if state is ProbeState.UP:
            return self._well(now_ns)
        return Turn.NOTHING

    def _bad(self, now_ns: int) -> Turn:
        trouble = self._trouble
        if trouble is None or (not trouble.counted and self._stable(trouble, now_ns)):
            # Well for the stable time though nobody looked at its end: this is a new trouble.
            self._trouble = trouble = Trouble(now_ns)
            return self._counts(trouble, now_ns)
        if trouble.well_since_ns is None:
            trouble.bad_in_a_row += 1
            if trouble.counted:
                return Turn.BAD
        else:
            trouble.well_since_ns = None
            trouble.bad_in_a_row = 1
            trouble.flaps += 1
            if trouble.counted:
                return Turn.FLAP
        return self._counts(trouble, now_ns)

    def _counts(self, trouble: Trouble, now_ns: int) -> Turn:
        if trouble.bad_in_a_row >= self._after_looks or now_ns - trouble.since_ns >= self._after_ns:
            trouble.counted = True
            return Turn.OPEN
        return Turn.NOTHING

    def _well(self, now_ns: int) -> Turn:
        trouble = self._trouble
        if trouble is None:
            return Turn.NOTHING
        trouble.bad_in_a_row = 0
        if trouble.well_since_ns is None:
            trouble.well_since_ns = now_ns
        if not self._stable(trouble, now_ns):
            return Turn.NOTHING
        self._trouble = None
        return Turn.CLOSE if trouble.counted else Turn.NOTHING

    def _stable(self, trouble: Trouble, now_ns: int) -> bool:
        return trouble.well_since_ns is not None and now_ns - trouble.well_since_ns >= self._stable_ns

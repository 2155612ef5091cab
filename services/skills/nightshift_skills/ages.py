"""For how long work has been called for without running: the order of waiting idle work.

Work that runs is called for anew only after it ended, and is then younger than whatever waited meanwhile: so
each piece of work that goes on being due is taken before any other is taken twice.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime

from nightshift_skills import schedule
from nightshift_skills.schedule import Entry


class Ages:
    """Since when each skill waits, on the boot clock: no jump of the wall clock ages anything.

    In memory: after a restart all begin anew at once, and what ran longest ago is first.
    """

    def __init__(self) -> None:
        self._since_ns: dict[str, int] = {}

    def age_s(self, skill: str, now_ns: int) -> float | None:
        """How old a skill's wish is, in seconds; None if nothing calls for it."""
        since_ns = self._since_ns.get(skill)
        return None if since_ns is None else (now_ns - since_ns) / 1e9

    def look(self, entries: Sequence[Entry], now: datetime, now_ns: int) -> None:
        """Takes a look at everything into account."""
        for entry in entries:
            if schedule.waiting(entry, now):
                self._since_ns.setdefault(entry.skill.id, now_ns)
            else:
                self._since_ns.pop(entry.skill.id, None)

    def wait(self, name: str, now_ns: int) -> None:
        """Something that is no skill of the schedule waits, too: a run."""
        self._since_ns.setdefault(name, now_ns)

    def keep(self, names: Container[str]) -> None:
        """Forgets all others."""
        self._since_ns = {name: since for name, since in self._since_ns.items() if name in names}

    def answered(self, skill: str) -> None:
        """A skill runs, or a person was asked."""
        self._since_ns.pop(skill, None)

"""Pausing the triggers of a skill: any approver may, an admin alone resumes. Commands go on."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from nightshift_skills.books import Books
from nightshift_skills.skill import Skill
from nightshift_skills.store import scheduling
from nightshift_skills.store.scheduling import Pause


class Pauses:
    """Sets and lifts pauses."""

    def __init__(self, books: Books, on_change: Callable[[], None]) -> None:
        """Args: the store, and who hears that something may be due now."""
        self._books = books
        self._on_change = on_change

    async def get(self, skill: Skill) -> Pause | None:
        """The pause in force."""
        return (await self._books.read(scheduling.list_pauses)).get(skill.id)

    async def change(self, skill: Skill, paused: bool, actor: str, comment: str) -> None:
        """Pauses or resumes; what is so already stays as it is, with who did it."""
        await self._books.change(self._change, skill.id, paused, actor, comment)
        self._on_change()

    def _change(self, connection: sa.Connection, skill: str, paused: bool, actor: str, comment: str) -> None:
        if paused == (skill in scheduling.list_pauses(connection)):
            return
        pause = Pause(skill, paused, actor, comment, self._books.clock.now())
        scheduling.save_pause(connection, pause)
        # The comment is a person's own words; the audit log holds none.
        kind = "schedule.paused" if paused else "schedule.resumed"
        self._books.event(connection, kind, actor, f"skills/{skill}")

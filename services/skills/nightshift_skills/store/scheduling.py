"""What the scheduler keeps in SQL: marks of triggers, pauses, usage of budgets; nothing here commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nightshift_skills.runs import RunState
from nightshift_skills.store import tables

# Days whose usage is kept for looking back.
_DAYS_KEPT = 400


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used on one day: runs, US dollars as planned, seconds of the GPU as measured."""

    runs: int = 0
    cost_usd: float = 0.0
    gpu_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(self.runs + other.runs, self.cost_usd + other.cost_usd, self.gpu_s + other.gpu_s)


@dataclass(frozen=True, slots=True)
class TriggerMark:
    """What the triggers of one skill have called for already; see triggers.Marks."""

    skill: str
    since: datetime
    looked_time: datetime | None = None
    event_seq: int = 0


@dataclass(frozen=True, slots=True)
class Pause:
    """That a skill's triggers are paused, or were resumed."""

    skill: str
    paused: bool
    actor: str
    comment: str
    change_time: datetime


# Marks.


def list_marks(connection: sa.Connection) -> dict[str, TriggerMark]:
    """Marks by skill."""
    rows = connection.execute(sa.select(tables.trigger_marks))
    return {row.skill: TriggerMark(row.skill, row.since, row.looked_time, row.event_seq) for row in rows}


def save_mark(connection: sa.Connection, mark: TriggerMark) -> None:
    """Stores a skill's marks."""
    values = {"since": mark.since, "looked_time": mark.looked_time, "event_seq": mark.event_seq}
    _upsert(connection, tables.trigger_marks, {"skill": mark.skill}, values)


def begin_marks(connection: sa.Connection, skills: Sequence[str], now: datetime, event_seq: int) -> None:
    """Gives skills that were never looked at their first marks: what was before them does not count."""
    known = list_marks(connection)
    for skill in skills:
        if skill not in known:
            save_mark(connection, TriggerMark(skill, now, None, event_seq))


def looked(connection: sa.Connection, skill: str, now: datetime, event_seq: int) -> None:
    """Notes that what called for a skill was heard: its times up to now, its events up to a position."""
    mark = list_marks(connection).get(skill, TriggerMark(skill, now))
    save_mark(connection, replace(mark, looked_time=now, event_seq=max(mark.event_seq, event_seq)))


def save_run_mark(connection: sa.Connection, run_id: str, skill: str, run_count: int) -> None:
    """Notes how many runs experience held when a run was made."""
    _upsert(connection, tables.run_marks, {"run": run_id}, {"skill": skill, "run_count": run_count})


def success_run_count(connection: sa.Connection, skill: str) -> int | None:
    """Runs that experience held when the last successful run of a skill was made; None if none is known."""
    marks, runs = tables.run_marks, tables.skill_runs
    query = (
        sa.select(marks.c.run_count)
        .join(runs, runs.c.id == marks.c.run)
        .where(marks.c.skill == skill, runs.c.state == RunState.SUCCEEDED.value)
        .order_by(marks.c.run.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none()


def events_after(connection: sa.Connection, kinds: Sequence[str], after_seq: int) -> list[str]:
    """Which of these kinds the sealed chain has after a position."""
    if not kinds:
        return []
    table = tables.sealed_events
    query = sa.select(table.c.kind).where(table.c.kind.in_(kinds), table.c.seq > after_seq).distinct()
    return sorted(connection.execute(query).scalars())


def last_event_seq(connection: sa.Connection) -> int:
    """Last position of the sealed chain; 0 for an empty one."""
    return connection.execute(sa.select(sa.func.max(tables.sealed_events.c.seq))).scalar_one_or_none() or 0


# Pauses.


def list_pauses(connection: sa.Connection) -> dict[str, Pause]:
    """Skills that are paused."""
    table = tables.pauses
    rows = connection.execute(sa.select(table).where(table.c.paused))
    return {row.skill: Pause(row.skill, row.paused, row.actor, row.comment, row.change_time) for row in rows}


def save_pause(connection: sa.Connection, pause: Pause) -> None:
    """Pauses or resumes."""
    values = {
        "paused": pause.paused,
        "actor": pause.actor,
        "comment": pause.comment,
        "change_time": pause.change_time,
    }
    _upsert(connection, tables.pauses, {"skill": pause.skill}, values)


# Usage.


def get_usage(connection: sa.Connection, day: str) -> dict[str, Usage]:
    """Usage of a day by skill."""
    table = tables.budget_usage
    rows = connection.execute(sa.select(table).where(table.c.day == day))
    return {row.skill: Usage(row.runs, row.cost_usd, row.gpu_s) for row in rows}


def add_usage(connection: sa.Connection, day: str, skill: str, used: Usage) -> None:
    """Adds to the usage of a day."""
    table = tables.budget_usage
    updated = connection.execute(
        sa.update(table)
        .where(table.c.day == day, table.c.skill == skill)
        .values(
            runs=table.c.runs + used.runs,
            cost_usd=table.c.cost_usd + used.cost_usd,
            gpu_s=table.c.gpu_s + used.gpu_s,
        )
    )
    if updated.rowcount:
        return
    values = {"runs": used.runs, "cost_usd": used.cost_usd, "gpu_s": used.gpu_s}
    connection.execute(sa.insert(table).values(day=day, skill=skill, **values))
    days = sa.select(table.c.day).distinct().order_by(table.c.day.desc()).offset(_DAYS_KEPT).limit(1)
    oldest = connection.execute(days).scalar_one_or_none()
    if oldest is not None:
        connection.execute(sa.delete(table).where(table.c.day <= oldest))


def _upsert(connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    where = [table.c[name] == value for name, value in key.items()]
    updated = connection.execute(sa.update(table).where(*where).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(**key, **values))

"""What is kept of sessions and days. Functions take a connection and commit nothing.

All of it can be made again from `runs`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
)

from nightshift_experience.sessions.cutting import SessionRun, browser_of
from nightshift_experience.store.tables import metadata, projects, runs, session_moves

session_state = Table(
    "session_state",
    metadata,
    Column("project", Text, primary_key=True),
    # Every run with a change_seq up to here is in its session.
    Column("summarized_seq", BigInteger, nullable=False),
    # When the last pass ended.
    Column("summarize_us", BigInteger),
)

sessions = Table(
    "sessions",
    metadata,
    Column("project", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    # Session key without its date.
    Column("browser", Text, nullable=False),
    # Session keys in it, as a JSON list.
    Column("keys", Text, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    # Day of its start in the platform's time zone, "YYYY-MM-DD".
    Column("day", Text, nullable=False),
    Column("runs", Integer, nullable=False),
    # Likeliest EngagementMode, and how likely.
    Column("mode", SmallInteger, nullable=False),
    Column("probability", Double, nullable=False),
    # JSON of counts, signals and the modes' evidence; none of the users' words.
    Column("payload", Text, nullable=False),
    PrimaryKeyConstraint("project", "session_id"),
)
Index("sessions_by_start", sessions.c.project, sessions.c.start_us, sessions.c.session_id)
Index("sessions_by_browser", sessions.c.project, sessions.c.browser)
Index("sessions_by_day", sessions.c.project, sessions.c.day)

days = Table(
    "daily_summaries",
    metadata,
    Column("project", Text, nullable=False),
    Column("day", Text, nullable=False),
    # Whether its sessions have changed since it was summarized.
    Column("stale", Boolean, nullable=False),
    # JSON as in session_summaries/{date}.json; "{}" while it was never summarized.
    Column("payload", Text, nullable=False),
    Column("summarize_us", BigInteger),
    PrimaryKeyConstraint("project", "day"),
)


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session as it is kept."""

    session_id: str
    browser: str
    keys: tuple[str, ...]
    start_us: int
    end_us: int
    day: str
    runs: int
    mode: int
    probability: float
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredDay:
    """One day as it is kept; `payload` is {} while it was never summarized."""

    day: str
    payload: dict[str, Any]
    summarize_us: int | None


def changed_keys(
    connection: sa.Connection, project: str, after_seq: int, limit: int
) -> tuple[int, int, frozenset[str]] | None:
    """The next changed runs: (highest change_seq, how many, session keys that they bear or bore).

    None at the end.
    """
    rows = connection.execute(
        sa.select(runs.c.change_seq, runs.c.session_key)
        .where(runs.c.project == project, runs.c.change_seq > after_seq)
        .order_by(runs.c.change_seq)
        .limit(limit)
    ).all()
    if not rows:
        return None
    last = rows[-1].change_seq
    moved = connection.execute(
        sa.select(session_moves.c.session_key).where(
            session_moves.c.project == project,
            session_moves.c.change_seq > after_seq,
            session_moves.c.change_seq <= last,
        )
    ).scalars()
    return last, len(rows), frozenset({*moved, *(row.session_key for row in rows)} - {""})


def session_runs(connection: sa.Connection, project: str, keys: Collection[str]) -> list[SessionRun]:
    """Production runs of the session keys, in time order."""
    if not keys:
        return []
    rows = connection.execute(
        sa.select(
            runs.c.run_id,
            runs.c.session_key,
            runs.c.order_ms,
            runs.c.start_us,
            runs.c.outcome,
            runs.c.favorite,
            runs.c.language,
            runs.c.interception_config,
            runs.c.output_config,
            runs.c.seed,
            runs.c.regeneration_of,
            runs.c.prompt,
            runs.c.prompt_digest,
        )
        .where(runs.c.project == project, runs.c.session_key.in_(sorted(keys)), runs.c.production)
        .order_by(runs.c.start_us, runs.c.run_id)
    ).all()
    return [
        SessionRun(
            run_id=row.run_id,
            key=row.session_key,
            order_ms=row.order_ms,
            start_us=row.start_us,
            outcome=row.outcome,
            favorite=bool(row.favorite),
            language=row.language,
            interception_config=row.interception_config,
            output_config=row.output_config,
            seed=row.seed,
            repeats=row.regeneration_of is not None,
            prompt=row.prompt,
            prompt_digest=bytes(row.prompt_digest or b"").hex(),
        )
        for row in rows
    ]


def with_keys(connection: sa.Connection, project: str, keys: Collection[str]) -> list[StoredSession]:
    """Stored sessions that have one of the session keys."""
    browsers = sorted({browser_of(key) for key in keys})
    if not browsers:
        return []
    rows = connection.execute(
        sa.select(sessions).where(sessions.c.project == project, sessions.c.browser.in_(browsers))
    ).all()
    found = [_session(row) for row in rows]
    return [session for session in found if not frozenset(session.keys).isdisjoint(keys)]


def replace_sessions(
    connection: sa.Connection, project: str, gone: Iterable[str], made: Sequence[StoredSession]
) -> None:
    """Drops sessions by id and stores others."""
    ids = sorted({*gone, *(session.session_id for session in made)})
    if ids:
        connection.execute(
            sa.delete(sessions).where(sessions.c.project == project, sessions.c.session_id.in_(ids))
        )
    if made:
        connection.execute(
            sa.insert(sessions),
            [
                {
                    "project": project,
                    "session_id": session.session_id,
                    "browser": session.browser,
                    "keys": json.dumps(session.keys, ensure_ascii=False),
                    "start_us": session.start_us,
                    "end_us": session.end_us,
                    "day": session.day,
                    "runs": session.runs,
                    "mode": session.mode,
                    "probability": session.probability,
                    "payload": json.dumps(session.payload, ensure_ascii=False, sort_keys=True),
                }
                for session in made
            ],
        )


def mark_stale(connection: sa.Connection, project: str, changed: Iterable[str]) -> None:
    """Says that the days' sessions have changed."""
    names = sorted(set(changed))
    if not names:
        return
    here = sa.and_(days.c.project == project, days.c.day.in_(names))
    known = set(connection.execute(sa.select(days.c.day).where(here)).scalars())
    connection.execute(sa.update(days).where(here).values(stale=True))
    new = [name for name in names if name not in known]
    if new:
        connection.execute(
            sa.insert(days),
            [{"project": project, "day": name, "stale": True, "payload": "{}"} for name in new],
        )


def stale_days(connection: sa.Connection, project: str, limit: int) -> list[str]:
    """Days that wait for their summary, earliest first."""
    return list(
        connection.execute(
            sa.select(days.c.day)
            .where(days.c.project == project, days.c.stale)
            .order_by(days.c.day)
            .limit(limit)
        ).scalars()
    )


def sessions_of_day(connection: sa.Connection, project: str, day: str) -> list[StoredSession]:
    """Sessions that began on a day, in time order."""
    rows = connection.execute(
        sa.select(sessions)
        .where(sessions.c.project == project, sessions.c.day == day)
        .order_by(sessions.c.start_us, sessions.c.session_id)
    ).all()
    return [_session(row) for row in rows]


def put_day(
    connection: sa.Connection, project: str, day: str, payload: dict[str, Any] | None, now_us: int
) -> None:
    """Stores a day's summary; None drops the day."""
    here = sa.and_(days.c.project == project, days.c.day == day)
    if payload is None:
        connection.execute(sa.delete(days).where(here))
        return
    connection.execute(
        sa.update(days)
        .where(here)
        .values(
            stale=False,
            payload=json.dumps(payload, ensure_ascii=False, sort_keys=True),
            summarize_us=now_us,
        )
    )


def summarized_seq(connection: sa.Connection, project: str) -> int:
    """How far sessions are."""
    found = connection.execute(
        sa.select(session_state.c.summarized_seq).where(session_state.c.project == project)
    )
    return found.scalar_one_or_none() or 0


def forget_moves(connection: sa.Connection, project: str, up_to_seq: int) -> None:
    """Drops what no pass has to look at again."""
    connection.execute(
        sa.delete(session_moves).where(
            session_moves.c.project == project, session_moves.c.change_seq <= up_to_seq
        )
    )


def put_state(connection: sa.Connection, project: str, **values: int) -> None:
    """Stores how far sessions are (`summarized_seq`), or when the last pass ended (`summarize_us`)."""
    changed = connection.execute(
        sa.update(session_state).where(session_state.c.project == project).values(**values)
    )
    if changed.rowcount == 0:
        connection.execute(
            sa.insert(session_state).values(**{"project": project, "summarized_seq": 0, **values})
        )


def waiting(connection: sa.Connection, project: str) -> tuple[int, int | None]:
    """Runs stored or changed since they were put into sessions, and when the last pass ended."""
    state = connection.execute(
        sa.select(session_state.c.summarized_seq, session_state.c.summarize_us).where(
            session_state.c.project == project
        )
    ).one_or_none()
    after = 0 if state is None else state.summarized_seq
    newest = connection.execute(sa.select(projects.c.change_seq).where(projects.c.project == project))
    if (newest.scalar_one_or_none() or 0) <= after:
        return 0, None if state is None else state.summarize_us
    count = connection.execute(
        sa.select(sa.func.count())
        .select_from(runs)
        .where(runs.c.project == project, runs.c.change_seq > after)
    ).scalar_one()
    return count, None if state is None else state.summarize_us


def list_sessions(
    connection: sa.Connection,
    project: str,
    window_us: tuple[int | None, int | None],
    mode: int | None,
    before: tuple[int, str] | None,
    limit: int,
) -> list[StoredSession]:
    """Sessions that began in [start, end), newest first, after the position (start_us, session_id)."""
    query = sa.select(sessions).where(sessions.c.project == project)
    start_us, end_us = window_us
    if start_us is not None:
        query = query.where(sessions.c.start_us >= start_us)
    if end_us is not None:
        query = query.where(sessions.c.start_us < end_us)
    if mode is not None:
        query = query.where(sessions.c.mode == mode)
    if before is not None:
        query = query.where(sa.tuple_(sessions.c.start_us, sessions.c.session_id) < before)
    query = query.order_by(sessions.c.start_us.desc(), sessions.c.session_id.desc()).limit(limit)
    return [_session(row) for row in connection.execute(query)]


def get_session(connection: sa.Connection, project: str, session_id: str) -> StoredSession | None:
    """One session."""
    row = connection.execute(
        sa.select(sessions).where(sessions.c.project == project, sessions.c.session_id == session_id)
    ).one_or_none()
    return None if row is None else _session(row)


def list_days(connection: sa.Connection, project: str, before: str | None, limit: int) -> list[StoredDay]:
    """Summarized days, newest first, before a day."""
    query = sa.select(days).where(days.c.project == project, days.c.summarize_us.is_not(None))
    if before is not None:
        query = query.where(days.c.day < before)
    rows = connection.execute(query.order_by(days.c.day.desc()).limit(limit)).all()
    return [StoredDay(row.day, json.loads(row.payload), row.summarize_us) for row in rows]


def _session(row: Any) -> StoredSession:
    return StoredSession(
        session_id=row.session_id,
        browser=row.browser,
        keys=tuple(json.loads(row.keys)),
        start_us=row.start_us,
        end_us=row.end_us,
        day=row.day,
        runs=row.runs,
        mode=row.mode,
        probability=row.probability,
        payload=json.loads(row.payload),
    )

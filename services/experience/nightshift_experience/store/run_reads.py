"""Reading runs: one, pages, everything in order of the ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nightshift_experience.filters import Term
from nightshift_experience.store import tables

Row = sa.Row[Any]


@dataclass(frozen=True, slots=True)
class ProjectState:
    """Where a project stands."""

    change_seq: int = 0
    aggregated_seq: int = 0
    aggregate_us: int | None = None
    detected_seq: int = 0
    detect_us: int | None = None
    pending_aggregation: int = 0
    pending_detection: int = 0


def get_run(connection: sa.Connection, project: str, run_id: str) -> Row | None:
    """One row of `runs`."""
    column = tables.runs.c
    query = sa.select(tables.runs).where(column.project == project, column.run_id == run_id)
    return connection.execute(query).one_or_none()


def get_runs(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> dict[str, Row]:
    """Rows of `runs` by run id."""
    column = tables.runs.c
    query = sa.select(tables.runs).where(column.project == project, column.run_id.in_(run_ids))
    return {row.run_id: row for row in connection.execute(query)}


def list_runs(
    connection: sa.Connection,
    project: str,
    terms: Sequence[Term],
    before: tuple[int, str] | None,
    limit: int,
) -> list[Row]:
    """Rows of `runs`, newest first, after the position (start_us, run_id)."""
    column = tables.runs.c
    query = _filtered(project, terms)
    if before is not None:
        query = query.where(sa.tuple_(column.start_us, column.run_id) < before)
    query = query.order_by(column.start_us.desc(), column.run_id.desc()).limit(limit)
    return list(connection.execute(query))


def runs_by_id(
    connection: sa.Connection, project: str, terms: Sequence[Term], after: str, limit: int
) -> list[Row]:
    """Rows of `runs` in the order of their ids, after an id."""
    column = tables.runs.c
    query = _filtered(project, terms).where(column.run_id > after).order_by(column.run_id).limit(limit)
    return list(connection.execute(query))


def project_state(connection: sa.Connection, project: str) -> ProjectState:
    """Watermarks, and how many runs lie beyond them."""
    row = connection.execute(
        sa.select(tables.projects).where(tables.projects.c.project == project)
    ).one_or_none()
    if row is None:
        return ProjectState()
    return ProjectState(
        change_seq=row.change_seq,
        aggregated_seq=row.aggregated_seq,
        aggregate_us=row.aggregate_us,
        detected_seq=row.detected_seq,
        detect_us=row.detect_us,
        pending_aggregation=_count_after(connection, project, row.aggregated_seq, row.change_seq),
        pending_detection=_count_after(connection, project, row.detected_seq, row.change_seq),
    )


def _count_after(connection: sa.Connection, project: str, seq: int, last: int) -> int:
    if seq >= last:
        return 0
    column = tables.runs.c
    query = sa.select(sa.func.count()).where(column.project == project, column.change_seq > seq)
    return int(connection.execute(query).scalar_one())


def _filtered(project: str, terms: Sequence[Term]) -> sa.Select[Any]:
    query = sa.select(tables.runs).where(tables.runs.c.project == project)
    for term in terms:
        column = tables.runs.c[term.column]
        if term.operator == "=":
            query = query.where(column == term.value)
        elif term.operator == "!=":
            query = query.where(column != term.value)
        elif term.operator == ">=":
            query = query.where(column >= term.value)
        else:
            query = query.where(column < term.value)
    return query

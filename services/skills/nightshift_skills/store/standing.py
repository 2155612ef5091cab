"""Standing approvals in SQL; nothing here commits."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nightshift_skills.errors import StandingApprovalUnknown
from nightshift_skills.runs import Run
from nightshift_skills.standing import Scope, StandingApproval, StandingState
from nightshift_skills.store import decisions, tables


def save_standing(connection: sa.Connection, standing: StandingApproval) -> StandingApproval:
    """Stores a standing approval, new or changed."""
    values = {
        "skill": standing.skill,
        "state": standing.state.value,
        "scope": standing.scope.model_dump_json(),
        "policy_digest": standing.policy_digest,
        "approver": standing.approver,
        "create_time": standing.create_time,
        "expire_time": standing.expire_time,
        "max_uses": standing.max_uses,
        "use_count": standing.use_count,
        "run": standing.run,
        "promotion": standing.promotion,
        "end_time": standing.end_time,
        "ended_by": standing.ended_by,
        "end_detail": standing.end_detail,
    }
    table = tables.standing_approvals
    updated = connection.execute(sa.update(table).where(table.c.id == standing.id).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=standing.id, **values))
    return standing


def get_standing(connection: sa.Connection, standing_id: str) -> StandingApproval:
    """One. Raises StandingApprovalUnknown."""
    table = tables.standing_approvals
    row = connection.execute(sa.select(table).where(table.c.id == standing_id)).one_or_none()
    if row is None:
        raise StandingApprovalUnknown("There is no such standing approval.")
    return _standing(row)


def list_standing(
    connection: sa.Connection, state: StandingState | None, before: str, limit: int
) -> list[StandingApproval]:
    """Newest first, older than `before` ("" means no limit)."""
    table = tables.standing_approvals
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state.value)
    if before:
        query = query.where(table.c.id < before)
    return [_standing(row) for row in connection.execute(query)]


def active_standing(
    connection: sa.Connection, skill: str = "", promotion: str | None = None
) -> list[StandingApproval]:
    """Those that are called active, oldest first; "" means of all skills, None those of any promotion."""
    table = tables.standing_approvals
    query = sa.select(table).where(table.c.state == StandingState.ACTIVE.value).order_by(table.c.id)
    if skill:
        query = query.where(table.c.skill == skill)
    if promotion is not None:
        query = query.where(table.c.promotion == promotion)
    return [_standing(row) for row in connection.execute(query)]


def runs_under(connection: sa.Connection, standing_id: str) -> list[Run]:
    """Runs under a standing approval that have not ended."""
    return [run for run in decisions.open_runs(connection) if run.standing == standing_id]


def _standing(row: sa.Row[Any]) -> StandingApproval:
    return StandingApproval(
        id=row.id,
        skill=row.skill,
        scope=Scope.model_validate_json(row.scope),
        policy_digest=row.policy_digest,
        approver=row.approver,
        create_time=row.create_time,
        expire_time=row.expire_time,
        max_uses=row.max_uses,
        run=row.run,
        promotion=row.promotion,
        state=StandingState(row.state),
        use_count=row.use_count,
        end_time=row.end_time,
        ended_by=row.ended_by,
        end_detail=row.end_detail,
    )

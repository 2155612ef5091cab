"""The lock, the fence, the back-off and the pre-emptions in SQL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nightshift_skills.backoff import Backoff, BackoffRule
from nightshift_skills.store import tables


@dataclass(frozen=True, slots=True)
class Lock:
    """The global lock."""

    engaged: bool = False
    actor: str = ""
    comment: str = ""
    change_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Preemption:
    """One stopping of all background work. Spans in nanoseconds from the client's send, else from arrival."""

    id: str
    fence: int
    cause: str
    start_time: datetime
    send_time: datetime | None
    t1_ns: int
    t2_ns: int | None = None
    t3_ns: int | None = None
    t4_ns: int | None = None
    skill_runs: tuple[str, ...] = ()
    killed_count: int = 0
    confirmed: bool = False


def get_lock(connection: sa.Connection) -> Lock:
    """The lock as it is."""
    row = connection.execute(sa.select(tables.lock)).one_or_none()
    return Lock() if row is None else Lock(row.engaged, row.actor, row.comment, row.change_time)


def save_lock(connection: sa.Connection, lock: Lock) -> None:
    """Sets or lifts the lock."""
    _upsert_one(
        connection,
        tables.lock,
        {
            "engaged": lock.engaged,
            "actor": lock.actor,
            "comment": lock.comment,
            "change_time": lock.change_time,
        },
    )


def get_reserved_fence(connection: sa.Connection) -> int:
    """Last fence of the last reserved block; 0 at the very first start."""
    return connection.execute(sa.select(tables.fence_blocks.c.reserved_to)).scalar_one_or_none() or 0


def save_reserved_fence(connection: sa.Connection, reserved_to: int) -> None:
    """Reserves all fences up to this one; never lowers."""
    if reserved_to > get_reserved_fence(connection):
        _upsert_one(connection, tables.fence_blocks, {"reserved_to": reserved_to})


def get_backoff(connection: sa.Connection, rule: BackoffRule) -> Backoff:
    """The back-off as the last pre-emption left it."""
    row = connection.execute(sa.select(tables.backoff)).one_or_none()
    return Backoff(rule) if row is None else Backoff(rule, row.span_s, row.last_time)


def save_backoff(connection: sa.Connection, backoff: Backoff) -> None:
    """Keeps the back-off over restarts."""
    _upsert_one(connection, tables.backoff, {"span_s": backoff.span_s, "last_time": backoff.last})


def save_preemption(connection: sa.Connection, preemption: Preemption) -> None:
    """Stores a pre-emption, new or with further times."""
    table = tables.preemptions
    values = {
        "fence": preemption.fence,
        "cause": preemption.cause,
        "start_time": preemption.start_time,
        "send_time": preemption.send_time,
        "t1_ns": preemption.t1_ns,
        "t2_ns": preemption.t2_ns,
        "t3_ns": preemption.t3_ns,
        "t4_ns": preemption.t4_ns,
        "skill_runs": json.dumps(preemption.skill_runs),
        "killed_count": preemption.killed_count,
        "confirmed": preemption.confirmed,
    }
    updated = connection.execute(sa.update(table).where(table.c.id == preemption.id).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=preemption.id, **values))


def list_preemptions(connection: sa.Connection, before: str, limit: int) -> list[Preemption]:
    """Pre-emptions, newest first, older than `before` ("" means no limit)."""
    table = tables.preemptions
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if before:
        query = query.where(table.c.id < before)
    return [
        Preemption(
            id=row.id,
            fence=row.fence,
            cause=row.cause,
            start_time=row.start_time,
            send_time=row.send_time,
            t1_ns=row.t1_ns,
            t2_ns=row.t2_ns,
            t3_ns=row.t3_ns,
            t4_ns=row.t4_ns,
            skill_runs=tuple(json.loads(row.skill_runs)),
            killed_count=row.killed_count,
            confirmed=row.confirmed,
        )
        for row in connection.execute(query)
    ]


def _upsert_one(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> None:
    updated = connection.execute(sa.update(table).where(table.c.id == 1).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=1, **values))

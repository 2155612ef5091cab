"""The lock, the fence, the back-off and the pre-emptions in SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nightshift_skills.backoff import Backoff, BackoffRule
from nightshift_skills.store import tables

PREEMPTIONS_TOLD = 20


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
    t5_ns: int | None = None
    t5_detail: str = ""
    skill_runs: tuple[str, ...] = ()
    killed_count: int = 0
    confirmed: bool = False
    lapsed_services: tuple[str, ...] = ()


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
        "t5_ns": preemption.t5_ns,
        "t5_detail": preemption.t5_detail,
        "skill_runs": json.dumps(preemption.skill_runs),
        "killed_count": preemption.killed_count,
        "confirmed": preemption.confirmed,
        "lapsed_services": json.dumps(preemption.lapsed_services),
    }
    updated = connection.execute(sa.update(table).where(table.c.id == preemption.id).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=preemption.id, **values))
        links = [{"run": run, "preemption": preemption.id} for run in dict.fromkeys(preemption.skill_runs)]
        if links:
            connection.execute(sa.insert(tables.preempted_runs), links)


def list_preemptions(connection: sa.Connection, before: str, limit: int) -> list[Preemption]:
    """Pre-emptions, newest first, older than `before` ("" means no limit)."""
    table = tables.preemptions
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if before:
        query = query.where(table.c.id < before)
    return [_preemption(row) for row in connection.execute(query)]


def preemptions_of(connection: sa.Connection, runs: Sequence[str]) -> dict[str, list[Preemption]]:
    """The last pre-emptions that stopped each of some runs, oldest first; runs without any are left out."""
    table, links = tables.preemptions, tables.preempted_runs
    query = (
        sa.select(links.c.run, table)
        .join(table, table.c.id == links.c.preemption)
        .where(links.c.run.in_(runs))
        .order_by(table.c.id)
    )
    found: dict[str, list[Preemption]] = {}
    for row in connection.execute(query):
        found.setdefault(row.run, []).append(_preemption(row))
    return {run: preemptions[-PREEMPTIONS_TOLD:] for run, preemptions in found.items()}


def _preemption(row: sa.Row[Any]) -> Preemption:
    return Preemption(
        id=row.id,
        fence=row.fence,
        cause=row.cause,
        start_time=row.start_time,
        send_time=row.send_time,
        t1_ns=row.t1_ns,
        t2_ns=row.t2_ns,
        t3_ns=row.t3_ns,
        t4_ns=row.t4_ns,
        t5_ns=row.t5_ns,
        t5_detail=row.t5_detail,
        skill_runs=tuple(json.loads(row.skill_runs)),
        killed_count=row.killed_count,
        confirmed=row.confirmed,
        lapsed_services=tuple(json.loads(row.lapsed_services)),
    )


def _upsert_one(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> None:
    updated = connection.execute(sa.update(table).where(table.c.id == 1).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=1, **values))

"""Which replica acts, and the ticks that were made; nothing here commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from nightshift_skills.replica import Replica
from nightshift_skills.store import tables

TICKS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads in which term; `beats` grows while the holder lives. Without a holder it is free."""

    term: int = 0
    holder: Replica | None = None
    beats: int = 0


def get_lease(connection: sa.Connection) -> Lease:
    """The lease as it is."""
    row = connection.execute(sa.select(tables.leadership)).one_or_none()
    if row is None:
        return Lease()
    holder = Replica(row.holder, row.process, row.address, row.control_address) if row.holder else None
    return Lease(row.term, holder, row.beats)


def get_term(connection: sa.Connection) -> int:
    """The term in force; 0 before the first."""
    return connection.execute(sa.select(tables.leadership.c.term)).scalar_one_or_none() or 0


def take(connection: sa.Connection, replica: Replica, seen: Lease | None) -> Lease | None:
    """Begins the next term, unless the lease is another than the one seen (None: whatever it is).

    Under the store's write lock no transaction of an earlier term is under way, and none can begin any more.

    Returns:
        The lease taken; None where somebody was faster, or its holder lives.
    """
    lease = get_lease(connection)
    if seen is not None and lease != seen:
        return None
    taken = Lease(lease.term + 1, replica)
    values = {
        "term": taken.term,
        "holder": replica.name,
        "process": replica.process,
        "address": replica.address,
        "control_address": replica.control_address,
        "beats": 0,
    }
    table = tables.leadership
    if connection.execute(sa.update(table).where(table.c.id == 1).values(values)).rowcount == 0:
        connection.execute(sa.insert(table).values(id=1, **values))
    return taken


def beat(connection: sa.Connection, term: int) -> bool:
    """Renews the lease of a term; whether that is still the one in force."""
    table = tables.leadership
    updated = connection.execute(
        sa.update(table).where(table.c.id == 1, table.c.term == term).values(beats=table.c.beats + 1)
    )
    return updated.rowcount == 1


def give_back(connection: sa.Connection, term: int) -> None:
    """Frees the lease, if the term is still in force."""
    table = tables.leadership
    connection.execute(sa.update(table).where(table.c.id == 1, table.c.term == term).values(holder=""))


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of the scheduler: its number, the term in which it was made, and when."""

    number: int
    term: int
    time: datetime


def claim_tick(connection: sa.Connection, term: int, now: datetime, least_s: float) -> float:
    """Notes the next tick, unless another replica made one less than `least_s` ago.

    Within a term its leader keeps the time, by a clock that does not jump. Times are compared across a
    take-over alone, and there a clock that was set back keeps no tick from coming.

    Args:
        connection: In the transaction.
        term: Of the claimant.
        now: The database's time where replicas share it.
        least_s: How far ticks are apart, in seconds.

    Returns:
        0 where the tick is to be made; else how long to wait, in seconds.
    """
    table = tables.ticks
    last = connection.execute(sa.select(table).order_by(table.c.number.desc()).limit(1)).one_or_none()
    if last is not None and last.term != term:
        age_s: float = (now - last.time).total_seconds()
        if 0 <= age_s < least_s:
            return least_s - age_s
    number = 1 if last is None else last.number + 1
    connection.execute(sa.insert(table).values(number=number, term=term, time=now))
    connection.execute(sa.delete(table).where(table.c.number <= number - TICKS_KEPT))
    return 0.0


def list_ticks(connection: sa.Connection) -> list[Tick]:
    """The kept ticks, oldest first."""
    rows = connection.execute(sa.select(tables.ticks).order_by(tables.ticks.c.number))
    return [Tick(row.number, row.term, row.time) for row in rows]


def database_time(connection: sa.Connection, otherwise: datetime) -> datetime:
    """The time of a database that replicas share; `otherwise` on SQLite, which has none of its own."""
    if connection.dialect.name == "sqlite":
        return otherwise
    told: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return told

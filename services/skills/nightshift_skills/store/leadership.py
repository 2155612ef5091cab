"""The lease of the acting replica, and the ticks that it made; nothing here commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from nightshift_skills.store import tables

_TICKS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads in which term; `beats` grows while the holder lives."""

    term: int = 0
    holder: str = ""
    beats: int = 0


def get_lease(connection: sa.Connection) -> Lease:
    """The lease as it is."""
    row = connection.execute(sa.select(tables.leadership)).one_or_none()
    return Lease() if row is None else Lease(row.term, row.holder, row.beats)


def take(connection: sa.Connection, holder: str, seen: Lease | None) -> Lease | None:
    """Begins the next term, unless the lease is another than the one seen (None: whatever it is).

    Returns:
        The lease taken; None where somebody was faster, or its holder lives.
    """
    lease = get_lease(connection)
    if seen is not None and lease != seen:
        return None
    taken = Lease(lease.term + 1, holder, 0)
    values = {"term": taken.term, "holder": taken.holder, "beats": taken.beats}
    table = tables.leadership
    if connection.execute(sa.update(table).where(table.c.id == 1).values(values)).rowcount == 0:
        connection.execute(sa.insert(table).values(id=1, **values))
    return taken


def beat(connection: sa.Connection, term: int) -> bool:
    """Renews the lease of a term; whether it still was in force."""
    table = tables.leadership
    updated = connection.execute(
        sa.update(table).where(table.c.id == 1, table.c.term == term).values(beats=table.c.beats + 1)
    )
    return updated.rowcount == 1


def give_back(connection: sa.Connection, term: int) -> None:
    """Ends the lease of a term."""
    table = tables.leadership
    connection.execute(sa.update(table).where(table.c.id == 1, table.c.term == term).values(holder=""))


def tick(connection: sa.Connection, term: int, now: datetime, least_s: float) -> bool:
    """Notes a tick, unless another was made less than `least_s` ago; whether it is to be made."""
    table = tables.ticks
    last = connection.execute(sa.select(table).order_by(table.c.number.desc()).limit(1)).one_or_none()
    number = 1 if last is None else last.number + 1
    # A clock that was set back keeps no tick from coming.
    if last is not None and 0 <= (now - last.time).total_seconds() < least_s:
        return False
    connection.execute(sa.insert(table).values(number=number, term=term, time=now))
    connection.execute(sa.delete(table).where(table.c.number <= number - _TICKS_KEPT))
    return True

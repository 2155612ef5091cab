"""Local tokens in SQL; nothing here commits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nightshift_skills.errors import LocalTokenUnknown
from nightshift_skills.store import decisions, tables
from nightshift_skills.token_records import TokenRecord

_table = tables.local_tokens
_FEED = "tokens"


def generation(connection: sa.Connection) -> int:
    """How often tokens have changed; the register's generation."""
    return decisions.last_seq(connection, _FEED)


def raise_generation(connection: sa.Connection, above: int) -> None:
    """Goes on above a register that was written from a store which is not there any more."""
    if decisions.next_seq(connection, _FEED) <= above:
        feeds = tables.feeds
        connection.execute(sa.update(feeds).where(feeds.c.name == _FEED).values(seq=above + 1))


def add_token(connection: sa.Connection, record: TokenRecord) -> None:
    """Stores a new one."""
    decisions.next_seq(connection, _FEED)
    connection.execute(
        sa.insert(_table).values(
            id=record.id,
            digest=record.digest,
            person=record.person,
            role=record.role,
            display_name=record.display_name,
            issuer=record.issuer,
            create_time=record.create_time,
            expire_time=record.expire_time,
            revoke_time=record.revoke_time,
            revoker=record.revoker,
        )
    )


def save_revocation(connection: sa.Connection, record: TokenRecord) -> None:
    """Stores when and by whom it was revoked; nothing else of a token ever changes."""
    decisions.next_seq(connection, _FEED)
    connection.execute(
        sa.update(_table)
        .where(_table.c.id == record.id)
        .values(revoke_time=record.revoke_time, revoker=record.revoker)
    )


def get_token(connection: sa.Connection, token_id: str) -> TokenRecord:
    """One. Raises LocalTokenUnknown."""
    row = connection.execute(sa.select(_table).where(_table.c.id == token_id)).one_or_none()
    if row is None:
        raise LocalTokenUnknown("There is no such token.")
    return _record(row)


def list_tokens(
    connection: sa.Connection, person: str, active_at: datetime | None, before: str, limit: int
) -> list[TokenRecord]:
    """Newest first, older than `before`; "" and None mean no limit."""
    query = sa.select(_table).order_by(_table.c.id.desc()).limit(limit)
    if person:
        query = query.where(_table.c.person == person)
    if active_at is not None:
        query = query.where(_active(active_at))
    if before:
        query = query.where(_table.c.id < before)
    return [_record(row) for row in connection.execute(query)]


def count_active(connection: sa.Connection, at: datetime) -> int:
    """How many are good at an instant."""
    return connection.execute(sa.select(sa.func.count()).where(_active(at))).scalar_one()


def published(
    connection: sa.Connection, at: datetime, ended_since: datetime, most_ended: int
) -> tuple[int, list[TokenRecord]]:
    """The generation; those that are good, and the newest of those that ended since an instant."""
    active = [_record(row) for row in connection.execute(sa.select(_table).where(_active(at)))]
    ended = (
        sa.select(_table)
        .where(
            sa.not_(_active(at)),
            sa.or_(_table.c.expire_time > ended_since, _table.c.revoke_time > ended_since),
        )
        .order_by(_table.c.id.desc())
        .limit(most_ended)
    )
    return generation(connection), active + [_record(row) for row in connection.execute(ended)]


def _active(at: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(_table.c.revoke_time.is_(None), _table.c.expire_time > at)


def _record(row: sa.Row[Any]) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        digest=row.digest,
        person=row.person,
        role=row.role,
        display_name=row.display_name,
        issuer=row.issuer,
        create_time=row.create_time,
        expire_time=row.expire_time,
        revoke_time=row.revoke_time,
        revoker=row.revoker,
    )

"""The sealed audit chain in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from nightshift_kit.audit.chain import ChainHead, SealedRow, SourceHead
from nightshift_kit.errors import AuditBroken
from nightshift_kit.storage.texts import is_text, read_rows
from nightshift_skills.store import tables

_BATCH = 5_000


def get_head(connection: sa.Connection) -> ChainHead:
    """Where the chain stands, with what is sealed of each outbox."""
    table = tables.sealed_events
    last = connection.execute(
        sa.select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)
    ).one_or_none()
    if last is None:
        return ChainHead()
    newest = sa.select(table.c.source, sa.func.max(table.c.source_seq).label("seq")).group_by(table.c.source)
    newest_rows = newest.subquery()
    query = sa.select(table.c.source, table.c.source_seq, table.c.source_hash).join(
        newest_rows,
        sa.and_(table.c.source == newest_rows.c.source, table.c.source_seq == newest_rows.c.seq),
    )
    sources = {row.source: SourceHead(row.source_seq, row.source_hash) for row in connection.execute(query)}
    return ChainHead(last.seq, last.hash, sources)


def last_seq(connection: sa.Connection) -> int:
    """Position of the last row; 0 for an empty chain."""
    return connection.execute(sa.select(sa.func.max(tables.sealed_events.c.seq))).scalar_one() or 0


def append_rows(connection: sa.Connection, rows: Sequence[SealedRow]) -> None:
    """Adds sealed rows."""
    if rows:
        connection.execute(sa.insert(tables.sealed_events), [row._asdict() for row in rows])


def list_rows(connection: sa.Connection, after_seq: int, kind_prefix: str, limit: int) -> list[SealedRow]:
    """Rows after a position whose kind begins with a prefix, oldest first.

    Raises:
        AuditBroken: One of them cannot be shown.
    """
    table = tables.sealed_events
    query = sa.select(table).where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
    if kind_prefix:
        query = query.where(table.c.kind.startswith(kind_prefix, autoescape=True))
    rows, texts = read_rows(connection, query)
    bad = 0 if texts else next(row.seq for row in rows if not all(map(is_text, row)))
    if bad:
        raise AuditBroken(
            f"event {bad} of the sealed chain holds bytes that are no text", metadata={"seq": str(bad)}
        )
    return [SealedRow._make(row) for row in rows]


def all_rows(connection: sa.Connection) -> Iterator[Sequence[object]]:
    """The whole chain in order, whatever it holds, read in batches."""
    table = tables.sealed_events
    after_seq = 0
    while True:
        query = sa.select(table).where(table.c.seq > after_seq).order_by(table.c.seq).limit(_BATCH)
        rows, _ = read_rows(connection, query)
        yield from rows
        if len(rows) < _BATCH:
            return
        after_seq = rows[-1].seq

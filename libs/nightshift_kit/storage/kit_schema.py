"""Tables that every service's database has, so that grant, effect and audit event share one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nightshift_kit.storage.columns import UtcDateTime


@dataclass(frozen=True, slots=True)
class KitTables:
    """The kit's tables.

    Attributes:
        outbox: Audit events of this service: seq from 1 without gaps, each hashed with the one before.
        outbox_head: One row a service: the last seq and hash. Its row lock is the queue of appenders.
        redeemed: Grants that had their effect: jti, the arguments' digest and the answer for a retry.
        fence: Highest fence seen, by name.
        intents: File changes that are promised: with old and new bytes until they are done.
    """

    outbox: sa.Table
    outbox_head: sa.Table
    redeemed: sa.Table
    fence: sa.Table
    intents: sa.Table


def kit_tables(metadata: sa.MetaData) -> KitTables:
    """The kit's tables in ``metadata``; made there on the first call."""
    known = metadata.tables
    if "kit_outbox" in known:
        return KitTables(
            outbox=known["kit_outbox"],
            outbox_head=known["kit_outbox_head"],
            redeemed=known["kit_redeemed"],
            fence=known["kit_fence"],
            intents=known["kit_intents"],
        )
    return KitTables(
        outbox=sa.Table("kit_outbox", metadata, *_outbox()),
        outbox_head=sa.Table("kit_outbox_head", metadata, *_outbox_head()),
        redeemed=sa.Table("kit_redeemed", metadata, *_redeemed()),
        fence=sa.Table("kit_fence", metadata, *_fence()),
        intents=sa.Table("kit_intents", metadata, *_intents()),
    )


def create_kit_tables() -> None:
    """Create the kit's tables; call it in ``upgrade()`` of a service's first migration.

    The columns below are what version 1 of the kit needs. A later version adds its own function with the
    change and leaves this one as it is: databases out there were made by it.
    """
    # Imported here: the tables are declared in every process, and created once.
    from alembic import op

    op.create_table("kit_outbox", *_outbox())
    op.create_table("kit_outbox_head", *_outbox_head())
    op.create_table("kit_redeemed", *_redeemed())
    op.create_table("kit_fence", *_fence())
    op.create_table("kit_intents", *_intents())


def drop_kit_tables() -> None:
    """Drop the kit's tables; for ``downgrade()`` of a service's first migration."""
    from alembic import op

    for table in ("kit_intents", "kit_fence", "kit_redeemed", "kit_outbox_head", "kit_outbox"):
        op.drop_table(table)


def _outbox() -> list[sa.Column[Any]]:
    return [
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        # RFC 3339 with microseconds and Z, exactly as hashed: a column type might give back another spelling.
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        # Canonical JSON of the payload, exactly as hashed.
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    ]


def _outbox_head() -> list[sa.Column[Any]]:
    return [
        sa.Column("service", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    ]


def _redeemed() -> list[sa.Column[Any]]:
    return [
        sa.Column("jti", sa.Text, primary_key=True),
        sa.Column("arguments_digest", sa.Text, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
    ]


def _fence() -> list[sa.Column[Any]]:
    return [
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
    ]


def _intents() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        # "planned", "done", "withdrawn" or "drifted".
        sa.Column("state", sa.Text, nullable=False, index=True),
        # Digest and bytes are null where there was, or shall be, no file.
        sa.Column("old_digest", sa.Text),
        sa.Column("old_content", sa.LargeBinary),
        sa.Column("old_mode", sa.Integer),
        sa.Column("new_digest", sa.Text),
        sa.Column("new_content", sa.LargeBinary),
        sa.Column("new_mode", sa.Integer),
        sa.Column("planned_at", UtcDateTime, nullable=False),
        sa.Column("finished_at", UtcDateTime),
    ]


# For queries: SQL names tables, not metadata.
KIT = kit_tables(sa.MetaData())

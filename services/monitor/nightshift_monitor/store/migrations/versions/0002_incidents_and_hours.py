"""Incidents, and the hours of activity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "activity_hours",
        sa.Column("start_us", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("activity_count", sa.BigInteger, nullable=False),
        sa.Column("generation_count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("start_us"),
    )
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("probe", sa.String(63), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("worst_state", sa.SmallInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("open_us", sa.BigInteger, nullable=False),
        sa.Column("last_bad_us", sa.BigInteger, nullable=False),
        sa.Column("flap_count", sa.Integer, nullable=False),
        sa.Column("acknowledger", sa.String(256), nullable=False),
        sa.Column("acknowledge_us", sa.BigInteger),
        sa.Column("acknowledge_comment", sa.Text, nullable=False),
        sa.Column("resolver", sa.String(256), nullable=False),
        sa.Column("resolve_us", sa.BigInteger),
        sa.Column("resolve_comment", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_incidents_state_id", "incidents", ["state", "id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("incidents")
    op.drop_table("activity_hours")

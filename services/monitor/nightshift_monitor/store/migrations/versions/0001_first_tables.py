"""The first tables: answers of probes, last activity, generations in flight."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import create_kit_tables, drop_kit_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "probe_results",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("probe", sa.String(63), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("probe_time_us", sa.BigInteger, nullable=False),
        sa.Column("latency_us", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_probe_results_probe_id", "probe_results", ["probe", "id"])
    op.create_index("ix_probe_results_time", "probe_results", ["probe_time_us"])
    op.create_table(
        "activity",
        sa.Column("id", sa.SmallInteger, nullable=False, autoincrement=False),
        sa.Column("last_activity_us", sa.BigInteger),
        sa.Column("quiet_until_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "in_flight",
        sa.Column("run_id", sa.String(256), nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("multiplicity", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "start_us"),
    )
    create_kit_tables()


def downgrade() -> None:
    """Drop them."""
    drop_kit_tables()
    op.drop_table("in_flight")
    op.drop_table("activity")
    op.drop_table("probe_results")

"""Devices that are forgotten, and what of them the search index still has to lose."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "forgotten_devices",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("device_digest", sa.Text, nullable=False),
        sa.Column("forget_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "device_digest"),
    )
    op.create_table(
        "index_removals",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "run_id"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("index_removals")
    op.drop_table("forgotten_devices")

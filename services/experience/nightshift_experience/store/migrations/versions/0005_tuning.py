"""What auto-tune may change, and what it changed for runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and add the column."""
    op.create_table(
        "tuning",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("apply_safely", sa.Boolean, nullable=False),
        sa.Column("min_runs", sa.BigInteger, nullable=False),
        sa.Column("confidence", sa.SmallInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("update_us", sa.BigInteger, nullable=False),
    )
    op.add_column("runs", sa.Column("tuned", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Take them away."""
    op.drop_column("runs", "tuned")
    op.drop_table("tuning")

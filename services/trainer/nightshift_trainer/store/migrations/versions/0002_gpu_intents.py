"""Intents of calls to the platform's GPU host."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "gpu_intents",
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("backend", sa.String(300), nullable=False),
        sa.Column("model", sa.String(300), nullable=False),
        sa.Column("mark", sa.String(100), nullable=False),
        sa.Column("used_bytes", sa.BigInteger, nullable=False),
        sa.Column("skill_run", sa.String(200), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("jti"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("gpu_intents")

"""Marks of triggers, pauses, usage of budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "skills_0005"
down_revision = "skills_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "trigger_marks",
        sa.Column("skill", sa.String(64), primary_key=True),
        sa.Column("since", UtcDateTime, nullable=False),
        sa.Column("looked_time", UtcDateTime),
        sa.Column("event_seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "run_marks",
        sa.Column("run", sa.String(36), primary_key=True),
        sa.Column("skill", sa.String(64), nullable=False),
        sa.Column("run_count", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_run_marks_skill", "run_marks", ["skill", "run"])
    op.create_table(
        "pauses",
        sa.Column("skill", sa.String(64), primary_key=True),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("change_time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "budget_usage",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("skill", sa.String(64), primary_key=True),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Float, nullable=False),
        sa.Column("gpu_s", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drops them."""
    for table in ("budget_usage", "pauses", "run_marks", "trigger_marks"):
        op.drop_table(table)

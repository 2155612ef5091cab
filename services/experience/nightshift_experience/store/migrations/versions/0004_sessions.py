"""Sessions with their engagement modes, and days in words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and the index by which a session's runs are found."""
    op.create_table(
        "session_state",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("summarized_seq", sa.BigInteger, nullable=False),
        sa.Column("summarize_us", sa.BigInteger),
    )
    op.create_table(
        "sessions",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("browser", sa.Text, nullable=False),
        sa.Column("keys", sa.Text, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("mode", sa.SmallInteger, nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "session_id"),
    )
    op.create_index("sessions_by_start", "sessions", ["project", "start_us", "session_id"])
    op.create_index("sessions_by_browser", "sessions", ["project", "browser"])
    op.create_index("sessions_by_day", "sessions", ["project", "day"])
    op.create_table(
        "daily_summaries",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("stale", sa.Boolean, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("summarize_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("project", "day"),
    )
    op.create_table(
        "session_moves",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("change_seq", sa.BigInteger, nullable=False),
        sa.Column("session_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "change_seq"),
    )
    op.create_index(
        "runs_by_session",
        "runs",
        ["project", "session_key", "start_us"],
        sqlite_where=sa.text("production"),
        postgresql_where=sa.text("production"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index("runs_by_session", "runs")
    op.drop_table("session_moves")
    op.drop_table("daily_summaries")
    op.drop_table("sessions")
    op.drop_table("session_state")

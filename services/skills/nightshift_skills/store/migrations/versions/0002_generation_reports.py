"""Reports on generations that wait for the monitor."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "skills_0002"
down_revision = "skills_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "generation_reports",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("report_count", sa.BigInteger, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("generation_reports")

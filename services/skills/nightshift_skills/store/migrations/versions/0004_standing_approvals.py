"""Standing approvals, and the runs that cite them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "skills_0004"
down_revision = "skills_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table, and adds the column."""
    op.create_table(
        "standing_approvals",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("skill", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("policy_digest", sa.String(64), nullable=False),
        sa.Column("approver", sa.Text, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
        sa.Column("max_uses", sa.Integer, nullable=False),
        sa.Column("use_count", sa.Integer, nullable=False),
        sa.Column("run", sa.String(36), nullable=False),
        sa.Column("promotion", sa.Text, nullable=False),
        sa.Column("end_time", UtcDateTime),
        sa.Column("ended_by", sa.Text, nullable=False),
        sa.Column("end_detail", sa.Text, nullable=False),
    )
    op.create_index("ix_standing_approvals_state", "standing_approvals", ["state", "skill"])
    op.add_column("skill_runs", sa.Column("standing", sa.String(36), nullable=False, server_default=""))


def downgrade() -> None:
    """Takes them away."""
    op.drop_column("skill_runs", "standing")
    op.drop_table("standing_approvals")

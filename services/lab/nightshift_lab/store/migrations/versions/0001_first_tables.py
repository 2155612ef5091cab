"""The first tables: proposals and promotions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime, create_kit_tables, drop_kit_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "proposals",
        sa.Column("proposal_id", sa.Text, nullable=False),
        sa.Column("config_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("file_content", sa.LargeBinary, nullable=False),
        sa.Column("content_digest", sa.Text, nullable=False),
        sa.Column("opportunity", sa.Text, nullable=False),
        sa.Column("templates", sa.Text, nullable=False),
        sa.Column("drafted_by", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("promoted_etag", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("proposal_id"),
    )
    op.create_index("proposals_by_state", "proposals", ["state", "proposal_id"])
    is_open = sa.text("state IN ('DRAFT', 'VALIDATED')")
    op.create_index(
        "proposals_open_id",
        "proposals",
        ["config_id"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "promotions",
        sa.Column("promotion_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("proposal_id", sa.Text, sa.ForeignKey("proposals.proposal_id"), nullable=False),
        sa.Column("config_id", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("previous_digest", sa.Text, nullable=False),
        sa.Column("previous_content", sa.LargeBinary),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary),
        sa.Column("rolls_back", sa.Text, nullable=False),
        sa.Column("rolled_back_by", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("intent_id", sa.Text, nullable=False),
        sa.Column("jti", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("promotion_id"),
    )
    op.create_index("promotions_by_path", "promotions", ["path", "promotion_id"])
    op.create_index("promotions_by_intent", "promotions", ["intent_id"], unique=True)
    create_kit_tables()


def downgrade() -> None:
    """Drop them."""
    drop_kit_tables()
    op.drop_table("promotions")
    op.drop_table("proposals")

"""How far the search index is, and what detections found."""

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
        "search_state",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("index_table", sa.Text, nullable=False),
        sa.Column("indexed_seq", sa.BigInteger, nullable=False),
        sa.Column("indexed_rows", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
    op.create_table(
        "opportunities",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("opportunity_id", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "opportunity_id"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("opportunities")
    op.drop_table("search_state")

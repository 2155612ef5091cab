"""Which replica acts, and its ticks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "skills_0006"
down_revision = "skills_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "leadership",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("control_address", sa.Text, nullable=False),
        sa.Column("beats", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ticks",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("time", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    """Drops them."""
    op.drop_table("ticks")
    op.drop_table("leadership")

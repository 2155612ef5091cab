"""Reports on production's configs, kept drafts of translations, and promotions without a proposal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables; let promotions be of configs that people wrote."""
    with op.batch_alter_table("promotions") as promotions:
        promotions.alter_column("proposal_id", existing_type=sa.Text, nullable=True)
    op.create_table(
        "config_reports",
        sa.Column("config_id", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("basis", sa.Text, nullable=False),
        sa.Column("findings", sa.Text, nullable=False),
        sa.Column("missing", sa.Text, nullable=False),
        sa.Column("valid", sa.Boolean, nullable=False),
        sa.Column("validated_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("config_id"),
    )
    op.create_table(
        "validations",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("validated_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "translation_drafts",
        sa.Column("config_id", sa.Text, nullable=False),
        sa.Column("field", sa.Text, nullable=False),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("basis", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("drafted_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("config_id", "field", "language"),
    )
    op.create_table(
        "llm_costs",
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("cost_usd", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("day"),
    )


def downgrade() -> None:
    """Drop them; translations of configs that people wrote cannot be told any more."""
    for table in ("llm_costs", "translation_drafts", "validations", "config_reports"):
        op.drop_table(table)
    op.execute("DELETE FROM promotions WHERE proposal_id IS NULL")
    with op.batch_alter_table("promotions") as promotions:
        promotions.alter_column("proposal_id", existing_type=sa.Text, nullable=False)

"""Local tokens, and who vouched for who proposed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "skills_0007"
down_revision = "skills_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table, and adds the column."""
    op.create_table(
        "local_tokens",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("person", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
        sa.Column("revoke_time", UtcDateTime),
        sa.Column("revoker", sa.Text, nullable=False),
    )
    op.create_index("ix_local_tokens_person", "local_tokens", ["person", "id"])
    op.add_column("approvals", sa.Column("proposer_vouched_by", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Takes them away."""
    op.drop_column("approvals", "proposer_vouched_by")
    op.drop_table("local_tokens")

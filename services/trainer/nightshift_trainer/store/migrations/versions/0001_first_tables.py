"""The first tables: training jobs and adapters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import create_kit_tables, drop_kit_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("adapter_id", sa.String(63), nullable=False),
        sa.Column("skill_run", sa.String(200), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("on_purpose", sa.Boolean, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("end_time_us", sa.BigInteger, nullable=True),
        sa.Column("failure", sa.JSON, nullable=True),
        sa.Column("pause_count", sa.Integer, nullable=False),
        sa.Column("pause_cause", sa.String(32), nullable=False),
        sa.Column("checkpoint_digest", sa.String(64), nullable=False),
        sa.Column("timed_s", sa.Float, nullable=False),
        sa.Column("timed_steps", sa.Integer, nullable=False),
        sa.Column("estimated_bytes", sa.BigInteger, nullable=False),
        sa.Column("peak_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_training_jobs_state", "training_jobs", ["state"])
    op.create_table(
        "adapters",
        sa.Column("id", sa.String(63), nullable=False),
        sa.Column("training_job", sa.String(36), nullable=False),
        sa.Column("path", sa.String(300), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("base_model_digest", sa.String(64), nullable=False),
        sa.Column("dataset_digest", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("code_versions", sa.JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_adapters_create_time", "adapters", ["create_time_us", "id"])
    create_kit_tables()


def downgrade() -> None:
    """Drop them."""
    drop_kit_tables()
    op.drop_table("adapters")
    op.drop_table("training_jobs")

"""The first tables: runs and what sources tell about them, counters, signals, imports."""

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
        "projects",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("change_seq", sa.BigInteger, nullable=False),
        sa.Column("aggregated_seq", sa.BigInteger, nullable=False),
        sa.Column("aggregate_us", sa.BigInteger),
        sa.Column("detected_seq", sa.BigInteger, nullable=False),
        sa.Column("detect_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("project"),
    )
    op.create_table(
        "runs",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("change_seq", sa.BigInteger, nullable=False),
        sa.Column("order_ms", sa.BigInteger, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("duration_us", sa.BigInteger),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("session_key", sa.Text, nullable=False),
        sa.Column("production", sa.Boolean, nullable=False),
        sa.Column("favorite", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.SmallInteger, nullable=False),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("interception_config", sa.Text, nullable=False),
        sa.Column("output_config", sa.Text, nullable=False),
        sa.Column("config_name", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("chain_key", sa.LargeBinary),
        sa.Column("regeneration_of", sa.Text),
        sa.Column("prompt", sa.Text),
        sa.Column("prompt_digest", sa.LargeBinary),
        sa.Column("transformed_prompt", sa.Text),
        sa.Column("cost_usd", sa.Double),
        sa.Column("media_types", sa.Text, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("flags", sa.Text, nullable=False),
        sa.Column("safety_level", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("source_path", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "run_id"),
    )
    op.create_index(
        "runs_by_chain",
        "runs",
        ["project", "chain_key"],
        sqlite_where=sa.text("chain_key IS NOT NULL"),
        postgresql_where=sa.text("chain_key IS NOT NULL"),
    )
    op.create_index("runs_by_change", "runs", ["project", "change_seq"])
    op.create_index("runs_by_start", "runs", ["project", "start_us", "run_id"])
    op.create_table(
        "run_records",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("arrival_seq", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("project", "run_id", "source", "revision"),
    )
    op.create_table(
        "counters",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "scope", "key", "metric"),
    )
    op.create_table(
        "feedback",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("feedback_us", sa.BigInteger, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "run_id", "digest"),
    )
    op.create_table(
        "favorites",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("present", sa.Boolean, nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "run_id", "source"),
    )
    op.create_table(
        "import_paths",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("content_digest", sa.LargeBinary, nullable=False),
        sa.Column("skip_reason", sa.Text, nullable=False),
        sa.Column("skip_detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "source", "path"),
    )
    op.create_index(
        "import_paths_skipped",
        "import_paths",
        ["project", "path"],
        sqlite_where=sa.text("skip_reason != ''"),
        postgresql_where=sa.text("skip_reason != ''"),
    )
    op.create_table(
        "known_outputs",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("applied", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("project", "config"),
    )
    op.create_table(
        "import_jobs",
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("platform_root", sa.Text, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("found_count", sa.BigInteger, nullable=False),
        sa.Column("scanned_count", sa.BigInteger, nullable=False),
        sa.Column("created_count", sa.BigInteger, nullable=False),
        sa.Column("updated_count", sa.BigInteger, nullable=False),
        sa.Column("unchanged_count", sa.BigInteger, nullable=False),
        sa.Column("skipped_count", sa.BigInteger, nullable=False),
        sa.Column("favorite_count", sa.BigInteger, nullable=False),
        sa.Column("dangling_favorite_count", sa.BigInteger, nullable=False),
        sa.Column("skipped_reasons", sa.Text, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("failure_reason", sa.Text, nullable=False),
        sa.Column("failure_message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "job_id"),
    )
    create_kit_tables()


def downgrade() -> None:
    """Drop the tables."""
    drop_kit_tables()
    for table in (
        "import_jobs",
        "known_outputs",
        "import_paths",
        "favorites",
        "feedback",
        "counters",
        "run_records",
        "runs",
        "projects",
    ):
        op.drop_table(table)

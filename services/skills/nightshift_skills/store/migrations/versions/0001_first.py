"""First schema of the skills service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime, create_kit_tables, drop_kit_tables

revision = "skills_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates all tables."""
    create_kit_tables()
    op.create_table(
        "skill_runs",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("skill", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.Column("initiator", sa.Text, nullable=False),
        sa.Column("approval", sa.String(36), nullable=False),
        sa.Column("on_purpose", sa.Boolean, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("start_time", UtcDateTime),
        sa.Column("end_time", UtcDateTime),
        sa.Column("done_calls", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("results", sa.Text, nullable=False),
        sa.Column("failure", sa.Text),
        sa.Column("preemption_count", sa.Integer, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_skill_runs_seq", "skill_runs", ["seq"], unique=True)
    op.create_index("ix_skill_runs_state", "skill_runs", ["state"])
    op.create_index("ix_skill_runs_skill", "skill_runs", ["skill", "id"])
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("run", sa.String(36), nullable=False, unique=True),
        sa.Column("skill", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("plan_digest", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("proposer", sa.Text, nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
        sa.Column("expire_time", UtcDateTime, nullable=False),
        sa.Column("decide_time", UtcDateTime),
        sa.Column("decider", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_approvals_seq", "approvals", ["seq"], unique=True)
    op.create_index("ix_approvals_state", "approvals", ["state"])
    op.create_table(
        "feeds",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "calls",
        sa.Column("run", sa.String(36), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("jti", sa.String(36), nullable=False, unique=True),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("arguments_digest", sa.String(64), nullable=False),
        sa.Column("begin_time", UtcDateTime, nullable=False),
        sa.Column("end_time", UtcDateTime),
        sa.Column("answer", sa.Text),
        sa.Column("refusal", sa.Text),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("run", sa.String(36), nullable=False),
        sa.Column("create_time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "cooldowns",
        sa.Column("skill", sa.String(64), primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("until_time", UtcDateTime, nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
    )
    op.create_table(
        "lock",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("engaged", sa.Boolean, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("change_time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "fence_blocks",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("reserved_to", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "backoff",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("span_s", sa.Float, nullable=False),
        sa.Column("last_time", UtcDateTime, nullable=False),
    )
    op.create_table(
        "preemptions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.String(32), nullable=False),
        sa.Column("start_time", UtcDateTime, nullable=False),
        sa.Column("send_time", UtcDateTime),
        sa.Column("t1_ns", sa.BigInteger, nullable=False),
        sa.Column("t2_ns", sa.BigInteger),
        sa.Column("t3_ns", sa.BigInteger),
        sa.Column("t4_ns", sa.BigInteger),
        sa.Column("skill_runs", sa.Text, nullable=False),
        sa.Column("killed_count", sa.Integer, nullable=False),
        sa.Column("confirmed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "sealed_events",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("source_seq", sa.BigInteger, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("source_hash", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.UniqueConstraint("source", "source_seq", name="uq_sealed_events_source"),
    )
    op.create_index("ix_sealed_events_kind", "sealed_events", ["kind", "seq"])


def downgrade() -> None:
    """Drops all tables."""
    for table in (
        "sealed_events",
        "preemptions",
        "backoff",
        "fence_blocks",
        "lock",
        "cooldowns",
        "requests",
        "calls",
        "feeds",
        "approvals",
        "skill_runs",
    ):
        op.drop_table(table)
    drop_kit_tables()

"""T5 of pre-emptions, who confirmed them by lapsed leases alone, and which runs each stopped."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "skills_0003"
down_revision = "skills_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns and the table, and fills the table from what is there."""
    op.add_column("preemptions", sa.Column("t5_ns", sa.BigInteger))
    op.add_column("preemptions", sa.Column("t5_detail", sa.Text, nullable=False, server_default=""))
    op.add_column("preemptions", sa.Column("lapsed_services", sa.Text, nullable=False, server_default="[]"))
    links = op.create_table(
        "preempted_runs",
        sa.Column("run", sa.String(36), primary_key=True),
        sa.Column("preemption", sa.String(36), primary_key=True),
    )
    found = op.get_bind().execute(sa.text("SELECT id, skill_runs FROM preemptions"))
    rows = [
        {"run": run, "preemption": row.id}
        for row in found
        for run in dict.fromkeys(json.loads(row.skill_runs))
    ]
    if rows:
        op.bulk_insert(links, rows)


def downgrade() -> None:
    """Takes them away."""
    op.drop_table("preempted_runs")
    for name in ("lapsed_services", "t5_detail", "t5_ns"):
        op.drop_column("preemptions", name)

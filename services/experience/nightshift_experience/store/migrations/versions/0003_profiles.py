"""How a platform that works in rounds made its runs, for profiles.

Runs that are there already tell none of it. Those with a cost are counted by profiles once they are told
anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = ("mode", "strategy", "max_rounds", "max_cost_usd", "rounds", "qa_status", "profiled")
_INDEXES = (
    ("runs_by_mode_cost", ["mode", "cost_usd"], "profiled = 1 AND cost_usd > 0"),
    ("runs_by_strategy_cost", ["strategy", "cost_usd"], "profiled = 1 AND cost_usd > 0"),
    ("runs_counted", ["start_us", "run_id"], "profiled = 1"),
    ("runs_left_out", ["profiled", "run_id"], "profiled > 1"),
)


def upgrade() -> None:
    """Add the columns and their indexes."""
    op.add_column("runs", sa.Column("mode", sa.Text, nullable=False, server_default=""))
    op.add_column("runs", sa.Column("strategy", sa.Text, nullable=False, server_default=""))
    op.add_column("runs", sa.Column("max_rounds", sa.BigInteger))
    op.add_column("runs", sa.Column("max_cost_usd", sa.Double))
    op.add_column("runs", sa.Column("rounds", sa.BigInteger))
    op.add_column("runs", sa.Column("qa_status", sa.SmallInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("profiled", sa.SmallInteger, nullable=False, server_default="0"))
    for name, columns, where in _INDEXES:
        op.create_index(
            name,
            "runs",
            ["project", *columns],
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where),
        )


def downgrade() -> None:
    """Take them away."""
    for name, _, _ in _INDEXES:
        op.drop_index(name, "runs")
    for column in _COLUMNS:
        op.drop_column("runs", column)

"""When a note was made, and what it answers; rebuilds the table on SQLite."""

import sqlalchemy as sa
from alembic import op

from nightshift_kit.storage import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("notes") as notes:
        notes.add_column(sa.Column("at", UtcDateTime))
        notes.add_column(sa.Column("parent", sa.Text))
        notes.create_foreign_key("notes_parent_fkey", "notes", ["parent"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("notes") as notes:
        notes.drop_constraint("notes_parent_fkey", type_="foreignkey")
        notes.drop_column("parent")
        notes.drop_column("at")

"""Tables of the sample store."""

import sqlalchemy as sa

from nightshift_kit.storage import UtcDateTime, kit_tables

metadata = sa.MetaData()
kit = kit_tables(metadata)

notes = sa.Table(
    "notes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("at", UtcDateTime),
    sa.Column("parent", sa.Text, sa.ForeignKey("notes.id")),
)

"""The lab's tables."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_kit.storage import UtcDateTime, kit_tables

metadata = sa.MetaData()
kit = kit_tables(metadata)

_open = sa.text("state IN ('DRAFT', 'VALIDATED')")

proposals = sa.Table(
    "proposals",
    metadata,
    # UUIDv7: sorts by time of creation.
    sa.Column("proposal_id", sa.Text, primary_key=True),
    sa.Column("config_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("file_content", sa.LargeBinary, nullable=False),
    sa.Column("content_digest", sa.Text, nullable=False),
    sa.Column("opportunity", sa.Text, nullable=False),
    sa.Column("templates", sa.Text, nullable=False),
    sa.Column("drafted_by", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("promoted_etag", sa.Text, nullable=False),
    sa.Index("proposals_by_state", "state", "proposal_id"),
    # One open proposal an id, whoever else asks at the same time.
    sa.Index("proposals_open_id", "config_id", unique=True, sqlite_where=_open, postgresql_where=_open),
)

promotions = sa.Table(
    "promotions",
    metadata,
    sa.Column("promotion_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    # Null for a config that people wrote.
    sa.Column("proposal_id", sa.Text, sa.ForeignKey("proposals.proposal_id")),
    sa.Column("config_id", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    # Digest "" and bytes null: there was, or is, no file.
    sa.Column("previous_digest", sa.Text, nullable=False),
    sa.Column("previous_content", sa.LargeBinary),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("content", sa.LargeBinary),
    sa.Column("rolls_back", sa.Text, nullable=False),
    sa.Column("rolled_back_by", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("intent_id", sa.Text, nullable=False),
    sa.Column("jti", sa.Text, nullable=False),
    sa.Index("promotions_by_path", "path", "promotion_id"),
    sa.Index("promotions_by_intent", "intent_id", unique=True),
)

config_reports = sa.Table(
    "config_reports",
    metadata,
    sa.Column("config_id", sa.Text, primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    # Digest of everything that the report depends on; the same basis gives the same report.
    sa.Column("basis", sa.Text, nullable=False),
    sa.Column("findings", sa.Text, nullable=False),
    sa.Column("missing", sa.Text, nullable=False),
    sa.Column("valid", sa.Boolean, nullable=False),
    sa.Column("validated_at", UtcDateTime, nullable=False),
)

# One row: when all of production was last looked at.
validations = sa.Table(
    "validations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("validated_at", UtcDateTime, nullable=False),
)

# What a model drafted, kept so that the same config gives the same plan; can be drafted anew at any time.
translation_drafts = sa.Table(
    "translation_drafts",
    metadata,
    sa.Column("config_id", sa.Text, primary_key=True),
    sa.Column("field", sa.Text, primary_key=True),
    sa.Column("language", sa.Text, primary_key=True),
    # Digest of source text, rules and model: a draft of another one does not count.
    sa.Column("basis", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    # Why the text was refused, "" if it was not.
    sa.Column("problem", sa.Text, nullable=False),
    sa.Column("drafted_at", UtcDateTime, nullable=False),
)

# What language models cost, by UTC day.
llm_costs = sa.Table(
    "llm_costs",
    metadata,
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("cost_usd", sa.Float, nullable=False),
)

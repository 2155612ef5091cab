"""Tables of the trainer. Instants are microseconds of Unix time, UTC."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_kit.storage import kit_tables

metadata = sa.MetaData()

training_jobs = sa.Table(
    "training_jobs",
    metadata,
    # UUIDv7: ordered by time of creation.
    sa.Column("id", sa.String(36), primary_key=True),
    # As State in jobs.py spells it.
    sa.Column("state", sa.String(16), nullable=False),
    # Spec.as_dict, every value filled in.
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
    # {"reason", "message", "metadata"} or null.
    sa.Column("failure", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("pause_count", sa.Integer, nullable=False),
    sa.Column("pause_cause", sa.String(32), nullable=False),
    sa.Column("checkpoint_digest", sa.String(64), nullable=False),
    # Seconds between steps that followed each other in one worker, and how many those were.
    sa.Column("timed_s", sa.Float, nullable=False),
    sa.Column("timed_steps", sa.Integer, nullable=False),
    sa.Column("estimated_bytes", sa.BigInteger, nullable=False),
    sa.Column("peak_bytes", sa.BigInteger, nullable=False),
    sa.Index("ix_training_jobs_state", "state"),
)

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("training_job", sa.String(36), nullable=False),
    # Relative to NIGHTSHIFT_HOME.
    sa.Column("path", sa.String(300), nullable=False),
    sa.Column("weights_digest", sa.String(64), nullable=False),
    sa.Column("base_model_digest", sa.String(64), nullable=False),
    sa.Column("dataset_digest", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("loss", sa.Float, nullable=False),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("code_versions", sa.JSON, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("ix_adapters_create_time", "create_time_us", "id"),
)

# Calls to the platform's GPU host that were decided on and of which nobody has told the end yet.
gpu_intents = sa.Table(
    "gpu_intents",
    metadata,
    # The grant that allows it: at most one intent a grant.
    sa.Column("jti", sa.String(64), primary_key=True),
    # "unload" or "load".
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("backend", sa.String(300), nullable=False),
    sa.Column("model", sa.String(300), nullable=False),
    # What the backend showed of the model's last use (HostModel.mark).
    sa.Column("mark", sa.String(100), nullable=False),
    sa.Column("used_bytes", sa.BigInteger, nullable=False),
    sa.Column("skill_run", sa.String(200), nullable=False),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
)

kit = kit_tables(metadata)

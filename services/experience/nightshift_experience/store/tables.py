"""Tables of the experience store, declared once; the migrations create them.

Instants are microseconds since 1970-01-01 UTC (`*_us`). `runs` holds one merged row a run; `run_records`
holds what each source told about it, so that a late record merges anew from all of them. `change_seq`
grows by each stored or changed run of a project: consumers keep their watermark in it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)

from nightshift_kit.storage import kit_tables

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("project", Text, primary_key=True),
    # Highest change_seq given to a run of this project.
    Column("change_seq", BigInteger, nullable=False),
    # Everything up to here has been looked at by Aggregate.
    Column("aggregated_seq", BigInteger, nullable=False),
    Column("aggregate_us", BigInteger),
    # Everything up to here has been looked at by DetectOpportunities.
    Column("detected_seq", BigInteger, nullable=False),
    Column("detect_us", BigInteger),
)

runs = Table(
    "runs",
    metadata,
    Column("project", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("change_seq", BigInteger, nullable=False),
    # Milliseconds in the run id, else of the start: the order of regenerations.
    Column("order_ms", BigInteger, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger),
    Column("duration_us", BigInteger),
    Column("device", Text, nullable=False),
    Column("session_key", Text, nullable=False),
    Column("production", Boolean, nullable=False),
    Column("favorite", Boolean, nullable=False),
    Column("outcome", SmallInteger, nullable=False),
    Column("language", Text, nullable=False),
    Column("interception_config", Text, nullable=False),
    Column("output_config", Text, nullable=False),
    # Name that told the config where the record names no interception config; "" otherwise.
    Column("config_name", Text, nullable=False),
    Column("seed", BigInteger),
    # Same session key, prompt and configs among succeeded runs with prompt and seed; NULL for others.
    Column("chain_key", LargeBinary),
    # Run id of the first run of the chain, where this run repeats it with a new seed.
    Column("regeneration_of", Text),
    Column("prompt", Text),
    # 16 bytes of SHA-256 of the whole stripped prompt, also where the prompt itself was cut.
    Column("prompt_digest", LargeBinary),
    Column("transformed_prompt", Text),
    Column("cost_usd", Double),
    Column("media_types", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("flags", Text, nullable=False),
    Column("safety_level", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("source_path", Text, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    # How a platform that works in rounds made it; mode in lower case. "", 0 and NULL: not told.
    Column("mode", Text, nullable=False, server_default=""),
    Column("strategy", Text, nullable=False, server_default=""),
    Column("max_rounds", BigInteger),
    Column("max_cost_usd", Double),
    Column("rounds", BigInteger),
    Column("qa_status", SmallInteger, nullable=False, server_default="0"),
    # Whether the profile counts it, or why not: `profiles.counting.MeasureState`.
    Column("profiled", SmallInteger, nullable=False, server_default="0"),
    # What auto-tune changed: JSON list of [field, value before, value taken, why].
    Column("tuned", Text, nullable=False, server_default="[]"),
    PrimaryKeyConstraint("project", "run_id"),
)
Index("runs_by_start", runs.c.project, runs.c.start_us, runs.c.run_id)
Index("runs_by_change", runs.c.project, runs.c.change_seq)
Index(
    "runs_by_chain",
    runs.c.project,
    runs.c.chain_key,
    sqlite_where=runs.c.chain_key.is_not(None),
    postgresql_where=runs.c.chain_key.is_not(None),
)
# Texts, so that both backends take the very same words in a query for proof that the index fits.
COUNTED = "profiled = 1"
COSTED = "profiled = 1 AND cost_usd > 0"
LEFT_OUT = "profiled > 1"
for _name, _columns, _where in (
    ("runs_by_mode_cost", (runs.c.mode, runs.c.cost_usd), COSTED),
    ("runs_by_strategy_cost", (runs.c.strategy, runs.c.cost_usd), COSTED),
    ("runs_counted", (runs.c.start_us, runs.c.run_id), COUNTED),
    ("runs_left_out", (runs.c.profiled, runs.c.run_id), LEFT_OUT),
):
    Index(_name, runs.c.project, *_columns, sqlite_where=text(_where), postgresql_where=text(_where))

Index(
    "runs_by_session",
    runs.c.project,
    runs.c.session_key,
    runs.c.start_us,
    sqlite_where=runs.c.production,
    postgresql_where=runs.c.production,
)

forgotten_devices = Table(
    "forgotten_devices",
    metadata,
    Column("project", Text, nullable=False),
    # SHA-256 (hex) of the session key without its date: the device itself is forgotten.
    Column("device_digest", Text, nullable=False),
    # Runs of it that began until then are taken no more, whoever brings them.
    Column("forget_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("project", "device_digest"),
)

index_removals = Table(
    "index_removals",
    metadata,
    Column("project", Text, nullable=False),
    # A run that is gone from the store and may still be in the search index.
    Column("run_id", Text, nullable=False),
    PrimaryKeyConstraint("project", "run_id"),
)

session_moves = Table(
    "session_moves",
    metadata,
    Column("project", Text, nullable=False),
    # Of the change by which a run got another session key.
    Column("change_seq", BigInteger, nullable=False),
    # The key that it had before: its session there has lost the run.
    Column("session_key", Text, nullable=False),
    PrimaryKeyConstraint("project", "change_seq"),
)

tuning = Table(
    "tuning",
    metadata,
    # "" for the global switch.
    Column("project", Text, primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("apply_safely", Boolean, nullable=False),
    Column("min_runs", BigInteger, nullable=False),
    Column("confidence", SmallInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("update_us", BigInteger, nullable=False),
)

run_records = Table(
    "run_records",
    metadata,
    Column("project", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("revision", Text, nullable=False),
    # 16 bytes of SHA-256 of the content as it came.
    Column("digest", LargeBinary, nullable=False),
    # change_seq at arrival: later records of one source come first in a merge.
    Column("arrival_seq", BigInteger, nullable=False),
    # JSON of the record's fields.
    Column("payload", LargeBinary, nullable=False),
    PrimaryKeyConstraint("project", "run_id", "source", "revision"),
)

counters = Table(
    "counters",
    metadata,
    Column("project", Text, nullable=False),
    # "project", "config", "config_output", "config_language", "output", "language", and those of profiles
    # (`profiles.counting`).
    Column("scope", Text, nullable=False),
    Column("key", Text, nullable=False),
    # A metric ("total", "production", …), or the counted value in config_output and config_language.
    Column("metric", Text, nullable=False),
    Column("count", BigInteger, nullable=False),
    PrimaryKeyConstraint("project", "scope", "key", "metric"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("project", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    # 16 bytes of SHA-256 of kind, value and time: the same signal twice is one.
    Column("digest", LargeBinary, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("value", Double),
    Column("feedback_us", BigInteger, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("project", "run_id", "digest"),
)

favorites = Table(
    "favorites",
    metadata,
    Column("project", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    # Whether the source's list named the run when it was last read.
    Column("present", Boolean, nullable=False),
    # When it was added to the list, or found missing from it.
    Column("changed_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("project", "run_id", "source"),
)

import_paths = Table(
    "import_paths",
    metadata,
    Column("project", Text, nullable=False),
    Column("source", Text, nullable=False),
    # Folder of the record below the imported root.
    Column("path", Text, nullable=False),
    # "" for a skipped record.
    Column("run_id", Text, nullable=False),
    # Sizes and times of the files that were read; empty: read it again next time.
    Column("signature", LargeBinary, nullable=False),
    # Names of these files below the path, as a JSON list.
    Column("names", Text, nullable=False),
    # 16 bytes of SHA-256 of their content.
    Column("content_digest", LargeBinary, nullable=False),
    # "" for a record that was read.
    Column("skip_reason", Text, nullable=False),
    Column("skip_detail", Text, nullable=False),
    PrimaryKeyConstraint("project", "source", "path"),
)
Index(
    "import_paths_skipped",
    import_paths.c.project,
    import_paths.c.path,
    sqlite_where=import_paths.c.skip_reason != "",
    postgresql_where=import_paths.c.skip_reason != "",
)

known_outputs = Table(
    "known_outputs",
    metadata,
    Column("project", Text, nullable=False),
    Column("config", Text, nullable=False),
    # Whether the stored runs were looked through for it.
    Column("applied", Boolean, nullable=False),
    PrimaryKeyConstraint("project", "config"),
)

import_jobs = Table(
    "import_jobs",
    metadata,
    Column("project", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("directory", Text, nullable=False),
    Column("platform_root", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    # Grows with each stored state of the job.
    Column("seq", BigInteger, nullable=False),
    Column("found_count", BigInteger, nullable=False),
    Column("scanned_count", BigInteger, nullable=False),
    Column("created_count", BigInteger, nullable=False),
    Column("updated_count", BigInteger, nullable=False),
    Column("unchanged_count", BigInteger, nullable=False),
    Column("skipped_count", BigInteger, nullable=False),
    Column("favorite_count", BigInteger, nullable=False),
    Column("dangling_favorite_count", BigInteger, nullable=False),
    Column("skipped_reasons", Text, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger),
    Column("failure_reason", Text, nullable=False),
    Column("failure_message", Text, nullable=False),
    PrimaryKeyConstraint("project", "job_id"),
)

kit_tables(metadata)

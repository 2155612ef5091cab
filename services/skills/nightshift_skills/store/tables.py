"""Tables of the skills service; the migrations create them."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_kit.audit.chain import sealed_columns
from nightshift_kit.storage import UtcDateTime, kit_tables

metadata = sa.MetaData()
kit = kit_tables(metadata)

skill_runs = sa.Table(
    "skill_runs",
    metadata,
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
    # Standing approval that it cites; "" where a person approved the very plan.
    sa.Column("standing", sa.String(36), nullable=False, server_default=""),
    # Position of the last change among the changes of all runs: what watchers resume from.
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Index("ix_skill_runs_seq", "seq", unique=True),
    sa.Index("ix_skill_runs_state", "state"),
    sa.Index("ix_skill_runs_skill", "skill", "id"),
)

approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("run", sa.String(36), nullable=False, unique=True),
    sa.Column("skill", sa.String(64), nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("plan_digest", sa.String(64), nullable=False),
    sa.Column("nonce", sa.String(64), nullable=False),
    sa.Column("proposer", sa.Text, nullable=False),
    # The person who issued the token that the proposer came with; "" for none.
    sa.Column("proposer_vouched_by", sa.Text, nullable=False, server_default=""),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("expire_time", UtcDateTime, nullable=False),
    sa.Column("decide_time", UtcDateTime),
    sa.Column("decider", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Index("ix_approvals_seq", "seq", unique=True),
    sa.Index("ix_approvals_state", "state"),
)

standing_approvals = sa.Table(
    "standing_approvals",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("skill", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("policy_digest", sa.String(64), nullable=False),
    sa.Column("approver", sa.Text, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("expire_time", UtcDateTime, nullable=False),
    sa.Column("max_uses", sa.Integer, nullable=False),
    sa.Column("use_count", sa.Integer, nullable=False),
    sa.Column("run", sa.String(36), nullable=False),
    sa.Column("promotion", sa.Text, nullable=False),
    sa.Column("end_time", UtcDateTime),
    sa.Column("ended_by", sa.Text, nullable=False),
    sa.Column("end_detail", sa.Text, nullable=False),
    sa.Index("ix_standing_approvals_state", "state", "skill"),
)

# Last position of each feed ("runs", "approvals").
feeds = sa.Table(
    "feeds",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)

# One row a single-use call, written before the call is made: after a crash the same jti is tried again.
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("run", sa.String(36), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("jti", sa.String(36), nullable=False, unique=True),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("arguments_digest", sa.String(64), nullable=False),
    sa.Column("begin_time", UtcDateTime, nullable=False),
    sa.Column("end_time", UtcDateTime),
    # Canonical protobuf JSON; null while the answer is not known.
    sa.Column("answer", sa.Text),
    # Reason of a refusal that no retry will change.
    sa.Column("refusal", sa.Text),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_id", sa.String(36), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("run", sa.String(36), nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
)

cooldowns = sa.Table(
    "cooldowns",
    metadata,
    sa.Column("skill", sa.String(64), primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("until_time", UtcDateTime, nullable=False),
    # "succeeded", "denied" or "failed".
    sa.Column("cause", sa.String(16), nullable=False),
)

lock = sa.Table(
    "lock",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("engaged", sa.Boolean, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("change_time", UtcDateTime, nullable=False),
)

fence_blocks = sa.Table(
    "fence_blocks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reserved_to", sa.BigInteger, nullable=False),
)

backoff = sa.Table(
    "backoff",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("span_s", sa.Float, nullable=False),
    sa.Column("last_time", UtcDateTime, nullable=False),
)

preemptions = sa.Table(
    "preemptions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.String(32), nullable=False),
    sa.Column("start_time", UtcDateTime, nullable=False),
    sa.Column("send_time", UtcDateTime),
    sa.Column("t1_ns", sa.BigInteger, nullable=False),
    sa.Column("t2_ns", sa.BigInteger),
    sa.Column("t3_ns", sa.BigInteger),
    sa.Column("t4_ns", sa.BigInteger),
    sa.Column("t5_ns", sa.BigInteger),
    sa.Column("t5_detail", sa.Text, nullable=False, server_default=""),
    sa.Column("skill_runs", sa.Text, nullable=False),
    sa.Column("killed_count", sa.Integer, nullable=False),
    sa.Column("confirmed", sa.Boolean, nullable=False),
    sa.Column("lapsed_services", sa.Text, nullable=False, server_default="[]"),
)

# Which runs a pre-emption stopped.
preempted_runs = sa.Table(
    "preempted_runs",
    metadata,
    sa.Column("run", sa.String(36), primary_key=True),
    sa.Column("preemption", sa.String(36), primary_key=True),
)

# Beginnings and ends of generations that were acknowledged and that the monitor may not have heard of.
generation_reports = sa.Table(
    "generation_reports",
    metadata,
    # UUIDv7: ordered by arrival.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("report_count", sa.BigInteger, nullable=False),
    sa.Column("time", UtcDateTime, nullable=False),
)

sealed_events = sa.Table(
    "sealed_events",
    metadata,
    *sealed_columns(),
    sa.UniqueConstraint("source", "source_seq", name="uq_sealed_events_source"),
    sa.Index("ix_sealed_events_kind", "kind", "seq"),
)

# What the triggers of each skill have called for already.
trigger_marks = sa.Table(
    "trigger_marks",
    metadata,
    sa.Column("skill", sa.String(64), primary_key=True),
    sa.Column("since", UtcDateTime, nullable=False),
    sa.Column("looked_time", UtcDateTime),
    sa.Column("event_seq", sa.BigInteger, nullable=False),
)

# How many runs experience held when a skill run was made: what is new since then.
run_marks = sa.Table(
    "run_marks",
    metadata,
    sa.Column("run", sa.String(36), primary_key=True),
    sa.Column("skill", sa.String(64), nullable=False),
    sa.Column("run_count", sa.BigInteger, nullable=False),
    sa.Index("ix_run_marks_skill", "skill", "run"),
)

pauses = sa.Table(
    "pauses",
    metadata,
    sa.Column("skill", sa.String(64), primary_key=True),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("change_time", UtcDateTime, nullable=False),
)

# Days are the platform's: "2026-03-29".
budget_usage = sa.Table(
    "budget_usage",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("skill", sa.String(64), primary_key=True),
    sa.Column("runs", sa.BigInteger, nullable=False),
    sa.Column("cost_usd", sa.Float, nullable=False),
    sa.Column("gpu_s", sa.Float, nullable=False),
)

# One row: which replica acts, in which term. `process` tells others on the same machine whether it is gone.
leadership = sa.Table(
    "leadership",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("process", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("control_address", sa.Text, nullable=False),
    sa.Column("beats", sa.BigInteger, nullable=False),
)

ticks = sa.Table(
    "ticks",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("time", UtcDateTime, nullable=False),
)

# Local tokens, by the hash of their secret alone.
local_tokens = sa.Table(
    "local_tokens",
    metadata,
    # UUIDv7: ordered by issue.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("person", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("expire_time", UtcDateTime, nullable=False),
    sa.Column("revoke_time", UtcDateTime),
    sa.Column("revoker", sa.Text, nullable=False),
    sa.Index("ix_local_tokens_person", "person", "id"),
)

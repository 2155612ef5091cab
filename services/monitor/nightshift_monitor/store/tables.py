"""Tables of the monitor. Instants are microseconds of Unix time, UTC; spans are microseconds."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_kit.storage import kit_tables

metadata = sa.MetaData()

probe_results = sa.Table(
    "probe_results",
    metadata,
    # UUIDv7: ordered by time of storing, so it is the order of the history as well.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("probe", sa.String(63), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("probe_time_us", sa.BigInteger, nullable=False),
    sa.Column("latency_us", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("ix_probe_results_probe_id", "probe", "id"),
    sa.Index("ix_probe_results_time", "probe_time_us"),
)

activity = sa.Table(
    "activity",
    metadata,
    # One row, id 1.
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("last_activity_us", sa.BigInteger, nullable=True),
    sa.Column("quiet_until_us", sa.BigInteger, nullable=True),
)

in_flight = sa.Table(
    "in_flight",
    metadata,
    sa.Column("run_id", sa.String(256), primary_key=True),
    sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
    # Generations without an id may begin in the same microsecond.
    sa.Column("multiplicity", sa.Integer, nullable=False),
)

activity_hours = sa.Table(
    "activity_hours",
    metadata,
    # The instant at which the hour began in the plane's time zone.
    sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("activity_count", sa.BigInteger, nullable=False),
    sa.Column("generation_count", sa.BigInteger, nullable=False),
)

incidents = sa.Table(
    "incidents",
    metadata,
    # UUIDv7: ordered by the time of opening.
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("probe", sa.String(63), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("worst_state", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("open_us", sa.BigInteger, nullable=False),
    sa.Column("last_bad_us", sa.BigInteger, nullable=False),
    sa.Column("flap_count", sa.Integer, nullable=False),
    sa.Column("acknowledger", sa.String(256), nullable=False),
    sa.Column("acknowledge_us", sa.BigInteger, nullable=True),
    sa.Column("acknowledge_comment", sa.Text, nullable=False),
    sa.Column("resolver", sa.String(256), nullable=False),
    sa.Column("resolve_us", sa.BigInteger, nullable=True),
    sa.Column("resolve_comment", sa.Text, nullable=False),
    sa.Index("ix_incidents_state_id", "state", "id"),
)

kit_tables(metadata)

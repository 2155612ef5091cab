"""What imports remember: jobs, and for each folder what was read there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum

import orjson
import sqlalchemy as sa

from nightshift_experience.store import tables
from nightshift_experience.store.bulk import insert_new, upsert
from nightshift_experience.store.run_writes import WritingRules, remerge


class JobState(IntEnum):
    """State of an import; the numbers are those of the proto's ImportJobState."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4


@dataclass(slots=True)
class ImportJob:
    """One import and how far it is; the fields are the columns of `import_jobs`."""

    project: str
    job_id: str
    source: str
    directory: str
    platform_root: str
    start_us: int
    state: int = JobState.RUNNING
    seq: int = 1
    found_count: int = 0
    scanned_count: int = 0
    created_count: int = 0
    updated_count: int = 0
    unchanged_count: int = 0
    skipped_count: int = 0
    favorite_count: int = 0
    dangling_favorite_count: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    end_us: int | None = None
    failure_reason: str = ""
    failure_message: str = ""


@dataclass(frozen=True, slots=True)
class PathState:
    """What is known of one folder."""

    path: str
    run_id: str
    signature: bytes
    names: str
    content_digest: bytes
    skip_reason: str
    skip_detail: str = ""


def put_job(connection: sa.Connection, job: ImportJob) -> None:
    """Store a job as it stands."""
    values = asdict(job)
    values["skipped_reasons"] = orjson.dumps(job.skipped_reasons).decode()
    upsert(connection, tables.import_jobs, [tuple(values[c.name] for c in tables.import_jobs.columns)])


def get_job(connection: sa.Connection, project: str, job_id: str) -> ImportJob | None:
    """One job."""
    column = tables.import_jobs.c
    row = connection.execute(
        sa.select(tables.import_jobs).where(column.project == project, column.job_id == job_id)
    ).one_or_none()
    return _job(row) if row is not None else None


def list_jobs(
    connection: sa.Connection, project: str, before: tuple[int, str] | None, limit: int
) -> list[ImportJob]:
    """Jobs, newest first, after the position (start_us, job_id)."""
    column = tables.import_jobs.c
    query = sa.select(tables.import_jobs).where(column.project == project)
    if before is not None:
        query = query.where(sa.tuple_(column.start_us, column.job_id) < before)
    query = query.order_by(column.start_us.desc(), column.job_id.desc()).limit(limit)
    return [_job(row) for row in connection.execute(query)]


def fail_interrupted(connection: sa.Connection, now_us: int) -> int:
    """Jobs that still run in the store of a process that has just started were cut short; how many."""
    column = tables.import_jobs.c
    return connection.execute(
        tables.import_jobs.update()
        .where(column.state == JobState.RUNNING)
        .values(
            state=JobState.FAILED,
            seq=column.seq + 1,
            end_us=now_us,
            failure_reason="INTERRUPTED",
            failure_message="The service stopped during the import. Import again: it goes on where it was.",
        )
    ).rowcount


def _job(row: sa.Row[tuple[object, ...]]) -> ImportJob:
    values = dict(row._mapping)
    values["skipped_reasons"] = orjson.loads(str(values["skipped_reasons"]))
    return ImportJob(**values)


def load_paths(
    connection: sa.Connection, project: str, source: str, after: str, limit: int
) -> list[PathState]:
    """Known folders by path, after a path."""
    column = tables.import_paths.c
    rows = connection.execute(
        sa.select(
            column.path,
            column.run_id,
            column.signature,
            column.names,
            column.content_digest,
            column.skip_reason,
        )
        .where(column.project == project, column.source == source, column.path > after)
        .order_by(column.path)
        .limit(limit)
    )
    return [
        PathState(path, run, bytes(signature), names, bytes(digest), reason)
        for path, run, signature, names, digest, reason in rows
    ]


def put_paths(connection: sa.Connection, project: str, source: str, states: Sequence[PathState]) -> None:
    """Store what was read in these folders."""
    upsert(
        connection,
        tables.import_paths,
        [
            (
                project,
                source,
                s.path,
                s.run_id,
                s.signature,
                s.names,
                s.content_digest,
                s.skip_reason,
                s.skip_detail,
            )
            for s in states
        ],
    )


def forget_paths(connection: sa.Connection, project: str, source: str, paths: Sequence[str]) -> None:
    """Folders that are gone: what was imported from them stays."""
    column = tables.import_paths.c
    for begin in range(0, len(paths), 500):
        connection.execute(
            tables.import_paths.delete().where(
                column.project == project,
                column.source == source,
                column.path.in_(paths[begin : begin + 500]),
            )
        )


def list_skipped(
    connection: sa.Connection, project: str, after: str | None, limit: int
) -> list[tuple[str, str, str]]:
    """Skipped records (path, reason, detail) by path."""
    column = tables.import_paths.c
    query = sa.select(column.path, column.skip_reason, column.skip_detail).where(
        column.project == project, column.skip_reason != sa.literal_column("''")
    )
    if after is not None:
        query = query.where(column.path > after)
    rows = connection.execute(query.order_by(column.path).limit(limit))
    return [(path, reason, detail) for path, reason, detail in rows]


def add_known_outputs(connection: sa.Connection, project: str, configs: Collection[str]) -> None:
    """Config ids that turned out to be output configs."""
    insert_new(connection, tables.known_outputs, [(project, config, False) for config in sorted(configs)])


def apply_known_outputs(connection: sa.Connection, project: str, rules: WritingRules, now_us: int) -> int:
    """Take newly known output configs out of the interception configs of runs stored before; how many runs.

    Which ids are output configs is only known once the whole tree was looked at.
    """
    output, run = tables.known_outputs.c, tables.runs.c
    fresh = list(
        connection.execute(
            sa.select(output.config).where(output.project == project, output.applied.is_(False))
        ).scalars()
    )
    if not fresh:
        return 0
    affected = list(
        connection.execute(
            sa.select(run.run_id).where(
                run.project == project, run.config_name.in_(fresh), run.interception_config != ""
            )
        ).scalars()
    )
    for begin in range(0, len(affected), 500):
        remerge(connection, project, affected[begin : begin + 500], rules, now_us)
    connection.execute(
        tables.known_outputs.update()
        .where(output.project == project, output.config.in_(fresh))
        .values(applied=True)
    )
    return len(affected)

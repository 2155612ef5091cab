"""Jobs and adapters in SQL. Every function works on the caller's transaction and commits nothing."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import sqlalchemy as sa

from nightshift_trainer.records import OPEN, Adapter, State, TrainingJob
from nightshift_trainer.spec import Spec
from nightshift_trainer.store.tables import adapters, training_jobs

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def insert_job(connection: sa.Connection, job: TrainingJob) -> None:
    """Adds a job."""
    connection.execute(training_jobs.insert().values(_job_row(job)))


def update_job(connection: sa.Connection, job: TrainingJob) -> None:
    """Writes every field of a job that is there."""
    row = _job_row(job)
    connection.execute(training_jobs.update().where(training_jobs.c.id == row.pop("id")).values(row))


def get_job(connection: sa.Connection, job_id: str) -> TrainingJob | None:
    """One job."""
    row = connection.execute(sa.select(training_jobs).where(training_jobs.c.id == job_id)).one_or_none()
    return None if row is None else _job(row)


def open_jobs(connection: sa.Connection) -> list[TrainingJob]:
    """Jobs that may still train, oldest first."""
    rows = connection.execute(
        sa.select(training_jobs)
        .where(training_jobs.c.state.in_([state.value for state in OPEN]))
        .order_by(training_jobs.c.id)
    )
    return [_job(row) for row in rows]


def list_jobs(connection: sa.Connection, *, before: str | None, limit: int) -> list[TrainingJob]:
    """Newest first, older than the job `before`."""
    query = sa.select(training_jobs).order_by(training_jobs.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(training_jobs.c.id < before)
    return [_job(row) for row in connection.execute(query)]


def comparable_jobs(
    connection: sa.Connection, base_model_digest: str, *, limit: int = 20
) -> list[TrainingJob]:
    """Finished jobs of a base model whose steps were timed, newest first."""
    rows = connection.execute(
        sa.select(training_jobs)
        .where(training_jobs.c.state == State.SUCCEEDED.value, training_jobs.c.timed_steps > 0)
        .order_by(training_jobs.c.id.desc())
        .limit(limit * 10)
    )
    jobs = (_job(row) for row in rows)
    return [job for job in jobs if job.spec.base_model_digest == base_model_digest][:limit]


def adapter_id_taken(connection: sa.Connection, adapter_id: str) -> bool:
    """Whether an adapter has the id, or an open job will make one of it."""
    made = connection.execute(sa.select(adapters.c.id).where(adapters.c.id == adapter_id)).first()
    planned = connection.execute(
        sa.select(training_jobs.c.id).where(
            training_jobs.c.adapter_id == adapter_id,
            training_jobs.c.state.in_([state.value for state in OPEN]),
        )
    ).first()
    return made is not None or planned is not None


def insert_adapter(connection: sa.Connection, adapter: Adapter) -> None:
    """Adds an adapter."""
    row = dataclasses.asdict(adapter)
    row["spec"] = adapter.spec.as_dict()
    row["code_versions"] = dict(adapter.code_versions)
    row["create_time_us"] = _to_us(row.pop("create_time"))
    connection.execute(adapters.insert().values(row))


def get_adapter(connection: sa.Connection, adapter_id: str) -> Adapter | None:
    """One adapter."""
    row = connection.execute(sa.select(adapters).where(adapters.c.id == adapter_id)).one_or_none()
    return None if row is None else _adapter(row)


def list_adapters(connection: sa.Connection, *, before: tuple[int, str] | None, limit: int) -> list[Adapter]:
    """Newest first, older than the (microseconds, id) of `before`."""
    query = sa.select(adapters).order_by(adapters.c.create_time_us.desc(), adapters.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(
            sa.or_(
                adapters.c.create_time_us < before[0],
                sa.and_(adapters.c.create_time_us == before[0], adapters.c.id < before[1]),
            )
        )
    return [_adapter(row) for row in connection.execute(query)]


def adapter_position(adapter: Adapter) -> tuple[int, str]:
    """Where an adapter stands in the list."""
    return _to_us(adapter.create_time), adapter.id


def _job_row(job: TrainingJob) -> dict[str, Any]:
    row = dataclasses.asdict(job)
    row["state"] = job.state.value
    row["spec"] = job.spec.as_dict()
    row["failure"] = None if job.failure is None else dict(job.failure)
    row["create_time_us"] = _to_us(row.pop("create_time"))
    end_time = row.pop("end_time")
    row["end_time_us"] = None if end_time is None else _to_us(end_time)
    return row


def _job(row: sa.Row[Any]) -> TrainingJob:
    values = dict(row._mapping)
    values["state"] = State(values["state"])
    values["spec"] = Spec.from_dict(values["spec"])
    values["create_time"] = _from_us(values.pop("create_time_us"))
    end_time = values.pop("end_time_us")
    return TrainingJob(**values, end_time=None if end_time is None else _from_us(end_time))


def _adapter(row: sa.Row[Any]) -> Adapter:
    values = dict(row._mapping)
    values["spec"] = Spec.from_dict(values["spec"])
    values["create_time"] = _from_us(values.pop("create_time_us"))
    return Adapter(**values)


def _to_us(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _from_us(microseconds: int) -> dt.datetime:
    return _EPOCH + microseconds * _MICROSECOND

"""Intents of calls to the GPU host in SQL. On the caller's transaction; commits nothing."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_trainer.gpu_host.models import ModelRef
from nightshift_trainer.store.tables import gpu_intents as table

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


@dataclass(frozen=True)
class Intent:
    """A call that was decided on.

    Attributes:
        jti: Grant that allows it.
        kind: "unload" or "load".
        mark: What was seen of the model's last use.
        used_bytes: In use on the GPU before.
    """

    jti: str
    kind: str
    ref: ModelRef
    mark: str
    used_bytes: int
    skill_run: str
    create_time: dt.datetime


def put(connection: sa.Connection, intent: Intent) -> None:
    """Stores an intent in place of an earlier one of the same grant."""
    remove(connection, intent.jti)
    connection.execute(
        table.insert().values(
            jti=intent.jti,
            kind=intent.kind,
            backend=intent.ref.backend,
            model=intent.ref.model,
            mark=intent.mark,
            used_bytes=intent.used_bytes,
            skill_run=intent.skill_run,
            create_time_us=(intent.create_time - _EPOCH) // _MICROSECOND,
        )
    )


def get(connection: sa.Connection, jti: str) -> Intent | None:
    """The open intent of a grant."""
    row = connection.execute(sa.select(table).where(table.c.jti == jti)).one_or_none()
    if row is None:
        return None
    return Intent(
        jti=row.jti,
        kind=row.kind,
        ref=ModelRef(row.backend, row.model),
        mark=row.mark,
        used_bytes=row.used_bytes,
        skill_run=row.skill_run,
        create_time=_EPOCH + row.create_time_us * _MICROSECOND,
    )


def remove(connection: sa.Connection, jti: str) -> None:
    """The call is over; its end is told elsewhere."""
    connection.execute(table.delete().where(table.c.jti == jti))

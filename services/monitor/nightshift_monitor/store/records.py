"""What the monitor keeps: answers of probes, and the activity that a restart must not forget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa

from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database
from nightshift_monitor.activity import ActivityRecord
from nightshift_monitor.hours import HourCount
from nightshift_monitor.observations import ProbeResult, ProbeState
from nightshift_monitor.store.instants import instant, instant_or_none, micros, micros_or_none
from nightshift_monitor.store.tables import activity, activity_hours, in_flight, probe_results

_PRUNE_BATCH = 1_000


class Records(Protocol):
    """The store's narrow face."""

    async def append_result(self, result: ProbeResult) -> None:
        """Stores one answer."""
        ...

    async def list_results(self, probe: str, *, before_id: str, limit: int) -> list[tuple[str, ProbeResult]]:
        """Answers of a probe with their ids, newest first, those stored before ``before_id`` ("" for all)."""
        ...

    async def latest_results(self, probes: Sequence[str]) -> list[ProbeResult]:
        """The newest stored answer of each of these probes that has one."""
        ...

    async def load_activity(self) -> ActivityRecord:
        """What was saved last; empty where nothing was."""
        ...

    async def save_activity(self, record: ActivityRecord, hours: Mapping[datetime, HourCount]) -> None:
        """Replaces what is kept, and adds to the hours."""
        ...

    async def load_hours(self, since: datetime) -> tuple[datetime | None, dict[datetime, HourCount]]:
        """The first hour of all, None where there is none; and the hours that began at ``since`` or later."""
        ...

    async def list_hours(self, *, before_us: int, limit: int) -> list[tuple[int, datetime, HourCount]]:
        """Hours with their positions, newest first, those before the position ``before_us`` (0 for all)."""
        ...

    async def prune(self, *, before: datetime, rows_per_probe: int) -> int:
        """Removes answers that are too old or too many; returns how many."""
        ...

    async def prune_hours(self, *, before: datetime) -> int:
        """Removes hours that began before; returns how many."""
        ...


class SqlRecords:
    """``Records`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append_result(self, result: ProbeResult) -> None:
        """Stores one answer."""
        await self._database.write(_insert_result, new_id(), result)

    async def list_results(self, probe: str, *, before_id: str, limit: int) -> list[tuple[str, ProbeResult]]:
        """Answers of a probe with their ids, newest first."""
        return await self._database.read(_select_results, probe, before_id, limit)

    async def latest_results(self, probes: Sequence[str]) -> list[ProbeResult]:
        """The newest stored answer of each of these probes."""
        return await self._database.read(_select_latest, tuple(probes))

    async def load_activity(self) -> ActivityRecord:
        """What was saved last."""
        return await self._database.read(_select_activity)

    async def save_activity(self, record: ActivityRecord, hours: Mapping[datetime, HourCount]) -> None:
        """Replaces what is kept and adds to the hours, in one transaction."""
        await self._database.write(_save_activity, record, dict(hours))

    async def load_hours(self, since: datetime) -> tuple[datetime | None, dict[datetime, HourCount]]:
        """The first hour of all, and those since."""
        return await self._database.read(_select_hours, since)

    async def list_hours(self, *, before_us: int, limit: int) -> list[tuple[int, datetime, HourCount]]:
        """Hours with their positions, newest first."""
        return await self._database.read(_page_of_hours, before_us, limit)

    async def prune(self, *, before: datetime, rows_per_probe: int) -> int:
        """Removes in steps, so that no write waits long."""
        removed = 0
        while True:
            step = await self._database.write(_delete_some, before, rows_per_probe)
            removed += step
            if step < _PRUNE_BATCH:
                return removed

    async def prune_hours(self, *, before: datetime) -> int:
        """Removes them at once: a year has fewer than nine thousand."""
        return await self._database.write(_delete_hours, before)


def _insert_result(connection: sa.Connection, row_id: str, result: ProbeResult) -> None:
    connection.execute(
        probe_results.insert().values(
            id=row_id,
            probe=result.probe,
            state=int(result.state),
            probe_time_us=micros(result.probe_time),
            latency_us=round(result.latency_s * 1e6),
            detail=result.detail,
        )
    )


def _select_results(
    connection: sa.Connection, probe: str, before_id: str, limit: int
) -> list[tuple[str, ProbeResult]]:
    query = sa.select(probe_results).where(probe_results.c.probe == probe)
    if before_id:
        query = query.where(probe_results.c.id < before_id)
    rows = connection.execute(query.order_by(probe_results.c.id.desc()).limit(limit))
    return [(row.id, _result(row)) for row in rows]


def _select_latest(connection: sa.Connection, probes: tuple[str, ...]) -> list[ProbeResult]:
    found = (_select_results(connection, probe, "", 1) for probe in probes)
    return [rows[0][1] for rows in found if rows]


def _select_activity(connection: sa.Connection) -> ActivityRecord:
    row = connection.execute(sa.select(activity).where(activity.c.id == 1)).one_or_none()
    starts: dict[str, list[datetime]] = {}
    for flight in connection.execute(sa.select(in_flight).order_by(in_flight.c.start_us)):
        starts.setdefault(flight.run_id, []).extend([instant(flight.start_us)] * flight.multiplicity)
    return ActivityRecord(
        last_activity=None if row is None else instant_or_none(row.last_activity_us),
        quiet_until=None if row is None else instant_or_none(row.quiet_until_us),
        in_flight={run_id: tuple(instants) for run_id, instants in starts.items()},
    )


def _save_activity(
    connection: sa.Connection, record: ActivityRecord, hours: dict[datetime, HourCount]
) -> None:
    _replace_activity(connection, record)
    table = activity_hours
    for start, count in hours.items():
        changed = connection.execute(
            table.update()
            .where(table.c.start_us == micros(start))
            .values(
                activity_count=table.c.activity_count + count.activities,
                generation_count=table.c.generation_count + count.generations,
            )
        )
        if changed.rowcount == 0:
            connection.execute(
                table.insert().values(
                    start_us=micros(start),
                    activity_count=count.activities,
                    generation_count=count.generations,
                )
            )


def _select_hours(
    connection: sa.Connection, since: datetime
) -> tuple[datetime | None, dict[datetime, HourCount]]:
    first = connection.execute(sa.select(sa.func.min(activity_hours.c.start_us))).scalar_one()
    rows = connection.execute(sa.select(activity_hours).where(activity_hours.c.start_us >= micros(since)))
    return instant_or_none(first), {instant(row.start_us): _count(row) for row in rows}


def _page_of_hours(
    connection: sa.Connection, before_us: int, limit: int
) -> list[tuple[int, datetime, HourCount]]:
    query = sa.select(activity_hours)
    if before_us:
        query = query.where(activity_hours.c.start_us < before_us)
    rows = connection.execute(query.order_by(activity_hours.c.start_us.desc()).limit(limit))
    return [(row.start_us, instant(row.start_us), _count(row)) for row in rows]


def _delete_hours(connection: sa.Connection, before: datetime) -> int:
    return connection.execute(
        activity_hours.delete().where(activity_hours.c.start_us < micros(before))
    ).rowcount


def _count(row: sa.Row[tuple[object, ...]]) -> HourCount:
    return HourCount(row.activity_count, row.generation_count)


def _replace_activity(connection: sa.Connection, record: ActivityRecord) -> None:
    connection.execute(activity.delete())
    connection.execute(
        activity.insert().values(
            id=1,
            last_activity_us=micros_or_none(record.last_activity),
            quiet_until_us=micros_or_none(record.quiet_until),
        )
    )
    connection.execute(in_flight.delete())
    rows = [
        {"run_id": run_id, "start_us": start_us, "multiplicity": count}
        for run_id, starts in record.in_flight.items()
        for start_us, count in Counter(map(micros, starts)).items()
    ]
    if rows:
        connection.execute(in_flight.insert(), rows)


def _delete_some(connection: sa.Connection, before: datetime, rows_per_probe: int) -> int:
    old = list(
        connection.scalars(
            sa.select(probe_results.c.id)
            .where(probe_results.c.probe_time_us < micros(before))
            .limit(_PRUNE_BATCH)
        )
    )
    if len(old) < _PRUNE_BATCH:
        probes = connection.scalars(sa.select(probe_results.c.probe).distinct()).all()
        for probe in probes:
            surplus = connection.scalars(
                sa.select(probe_results.c.id)
                .where(probe_results.c.probe == probe)
                .order_by(probe_results.c.id.desc())
                .offset(rows_per_probe)
                .limit(_PRUNE_BATCH)
            )
            old.extend(surplus)
    chosen = list(dict.fromkeys(old))[:_PRUNE_BATCH]
    if chosen:
        connection.execute(probe_results.delete().where(probe_results.c.id.in_(chosen)))
    return len(chosen)


def _result(row: sa.Row[tuple[object, ...]]) -> ProbeResult:
    return ProbeResult(
        probe=row.probe,
        state=ProbeState(row.state),
        probe_time=instant(row.probe_time_us),
        latency_s=row.latency_us / 1e6,
        detail=row.detail,
    )

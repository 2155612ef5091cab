"""Incidents in SQL; a person's word on one is audited in its own transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.storage import Database
from nightshift_monitor.errors import IncidentUnknown
from nightshift_monitor.incidents import Change, Incident, IncidentState
from nightshift_monitor.observations import ProbeState
from nightshift_monitor.resources import IncidentName, ProbeName
from nightshift_monitor.store.instants import instant, instant_or_none, micros, micros_or_none
from nightshift_monitor.store.tables import incidents


class SqlIncidents:
    """``IncidentRecords`` on SQLite or PostgreSQL."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def add_incident(self, incident: Incident) -> None:
        """Stores a new one."""
        await self._database.write(_insert, incident)

    async def change_incident(
        self, incident_id: str, change: Change, *, actor: str = "", kind: str = ""
    ) -> Incident:
        """Changes one in a transaction, with the audit event ``kind`` of ``actor`` in it (none for "").

        A change that gives the incident back as it is writes nothing.

        Raises:
            IncidentUnknown: there is none of that id.
            AuditUnavailable: the event cannot be written, so nothing is changed.
        """
        return await self._database.write(self._change, incident_id, change, actor, kind)

    async def get_incident(self, incident_id: str) -> Incident:
        """One.

        Raises:
            IncidentUnknown: there is none of that id.
        """
        return await self._database.read(_get, incident_id)

    async def list_incidents(
        self, *, states: Sequence[IncidentState], before_id: str, limit: int
    ) -> list[Incident]:
        """Newest first, those before ``before_id`` ("" for all), in one of the states (none: in any)."""
        return await self._database.read(_list, tuple(states), before_id, limit)

    async def prune_incidents(self, *, before: datetime) -> int:
        """Removes those that were resolved before; returns how many."""
        return await self._database.write(_delete, before)

    def _change(
        self, connection: sa.Connection, incident_id: str, change: Change, actor: str, kind: str
    ) -> Incident:
        stored = _get(connection, incident_id)
        changed = change(stored)
        if changed is stored:
            return stored
        connection.execute(incidents.update().where(incidents.c.id == incident_id).values(**_values(changed)))
        if kind:
            self._outbox.append(
                connection,
                kind=kind,
                actor=actor,
                subject=changed.name,
                payload={"probe": ProbeName(changed.probe).name, "worst_state": changed.worst.name},
            )
        return changed


def _insert(connection: sa.Connection, incident: Incident) -> None:
    # A first try whose answer was lost may have stored it.
    connection.execute(incidents.delete().where(incidents.c.id == incident.id))
    connection.execute(incidents.insert().values(id=incident.id, **_values(incident)))


def _get(connection: sa.Connection, incident_id: str) -> Incident:
    row = connection.execute(sa.select(incidents).where(incidents.c.id == incident_id)).one_or_none()
    if row is None:
        raise IncidentUnknown.of(IncidentName(incident_id).name)
    return _incident(row)


def _list(
    connection: sa.Connection, states: tuple[IncidentState, ...], before_id: str, limit: int
) -> list[Incident]:
    query = sa.select(incidents)
    if states:
        query = query.where(incidents.c.state.in_([int(state) for state in states]))
    if before_id:
        query = query.where(incidents.c.id < before_id)
    return [_incident(row) for row in connection.execute(query.order_by(incidents.c.id.desc()).limit(limit))]


def _delete(connection: sa.Connection, before: datetime) -> int:
    return connection.execute(
        incidents.delete().where(
            incidents.c.state == int(IncidentState.RESOLVED), incidents.c.resolve_us < micros(before)
        )
    ).rowcount


def _values(incident: Incident) -> dict[str, object]:
    return {
        "probe": incident.probe,
        "state": int(incident.state),
        "worst_state": int(incident.worst),
        "detail": incident.detail,
        "start_us": micros(incident.start),
        "open_us": micros(incident.opened),
        "last_bad_us": micros(incident.last_bad),
        "flap_count": incident.flap_count,
        "acknowledger": incident.acknowledger,
        "acknowledge_us": micros_or_none(incident.acknowledged),
        "acknowledge_comment": incident.acknowledge_comment,
        "resolver": incident.resolver,
        "resolve_us": micros_or_none(incident.resolved),
        "resolve_comment": incident.resolve_comment,
    }


def _incident(row: sa.Row[tuple[object, ...]]) -> Incident:
    return Incident(
        id=row.id,
        probe=row.probe,
        state=IncidentState(row.state),
        worst=ProbeState(row.worst_state),
        detail=row.detail,
        start=instant(row.start_us),
        opened=instant(row.open_us),
        last_bad=instant(row.last_bad_us),
        flap_count=row.flap_count,
        acknowledger=row.acknowledger,
        acknowledged=instant_or_none(row.acknowledge_us),
        acknowledge_comment=row.acknowledge_comment,
        resolver=row.resolver,
        resolved=instant_or_none(row.resolve_us),
        resolve_comment=row.resolve_comment,
    )

"""Incidents: what went wrong for longer than a glitch, who has seen it, and how it ended."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.ids import IdFactory, new_id
from nightshift_monitor.damping import Damper, Turn
from nightshift_monitor.errors import (
    CommentInvalid,
    IncidentAcknowledged,
    IncidentResolved,
)
from nightshift_monitor.observations import ProbeResult, ProbeState
from nightshift_monitor.resources import IncidentName

_LOG = logging.getLogger(__name__)

MAX_COMMENT_LENGTH = 1_000
NOT_DECLARED = "The probe is not declared any more."
WELL_AGAIN = "The probe was well for the stable time."


class IncidentState(enum.IntEnum):
    """Where an incident stands; the numbers are those of the contract and of the store."""

    OPEN = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident; ``probe`` is the bare id, instants are UTC."""

    id: str
    probe: str
    state: IncidentState
    worst: ProbeState
    detail: str
    start: datetime
    opened: datetime
    last_bad: datetime
    flap_count: int = 0
    acknowledger: str = ""
    acknowledged: datetime | None = None
    acknowledge_comment: str = ""
    resolver: str = ""
    resolved: datetime | None = None
    resolve_comment: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return IncidentName(self.id).name

    def seen_bad(self, result: ProbeResult, flap_count: int) -> Incident:
        """After another bad look."""
        return replace(
            self,
            worst=ProbeState(max(self.worst, result.state)),
            detail=result.detail,
            last_bad=result.probe_time,
            flap_count=flap_count,
        )

    def acknowledged_by(self, actor: str, comment: str, now: datetime) -> Incident:
        """After a person has seen it; itself where this person has already.

        Raises:
            IncidentAcknowledged: somebody else has.
            IncidentResolved: it is over.
        """
        if self.state is IncidentState.RESOLVED:
            raise IncidentResolved.of(self.name, self.resolver)
        if self.state is IncidentState.ACKNOWLEDGED:
            if self.acknowledger != actor:
                raise IncidentAcknowledged.of(self.name, self.acknowledger)
            return self
        return replace(
            self,
            state=IncidentState.ACKNOWLEDGED,
            acknowledger=actor,
            acknowledged=now,
            acknowledge_comment=comment,
        )

    def resolved_by(self, actor: str, comment: str, now: datetime) -> Incident:
        """After its end; itself where this person has ended it already. ``actor`` "" is the monitor itself.

        Raises:
            IncidentResolved: it is over already, by itself or by somebody else's word.
        """
        if self.state is IncidentState.RESOLVED:
            if not actor or self.resolver != actor:
                raise IncidentResolved.of(self.name, self.resolver)
            return self
        return replace(
            self, state=IncidentState.RESOLVED, resolver=actor, resolved=now, resolve_comment=comment
        )


Change = Callable[[Incident], Incident]


class IncidentRecords(Protocol):
    """The store's face for incidents."""

    async def add_incident(self, incident: Incident) -> None:
        """Stores a new one."""
        ...

    async def change_incident(
        self, incident_id: str, change: Change, *, actor: str = "", kind: str = ""
    ) -> Incident:
        """Changes one in a transaction, with the audit event ``kind`` of ``actor`` in it (none for "").

        Raises:
            IncidentUnknown: there is none of that id.
        """
        ...

    async def get_incident(self, incident_id: str) -> Incident:
        """One.

        Raises:
            IncidentUnknown: there is none of that id.
        """
        ...

    async def list_incidents(
        self, *, states: Sequence[IncidentState], before_id: str, limit: int
    ) -> list[Incident]:
        """Newest first, those before ``before_id`` ("" for all), in one of the states (none: in any)."""
        ...

    async def prune_incidents(self, *, before: datetime) -> int:
        """Removes those that were resolved before; returns how many."""
        ...


class Incidents:
    """Opens and closes incidents as the probes answer, and takes people's word on them.

    What is open stands in memory as well: a store that cannot be written keeps nobody from seeing it, and
    the next look tries again.
    """

    def __init__(
        self,
        records: IncidentRecords,
        *,
        clock: Clock,
        after_looks: int,
        after_s: float,
        stable_s: float,
        ids: IdFactory = new_id,
    ) -> None:
        self._records = records
        self._clock = clock
        self._ids = ids
        self._limits = {"after_s": after_s, "stable_s": stable_s}
        self._after_looks = after_looks
        self._dampers: dict[str, Damper] = {}
        self._first_bad: dict[str, datetime] = {}
        self._open: dict[str, Incident] = {}
        self._unstored: set[str] = set()
        self._listeners: list[Callable[[Incident], None]] = []
        # One change at a time: a look and a person's word must not overtake each other between store and
        # memory.
        self._turn = asyncio.Lock()

    def listen(self, listener: Callable[[Incident], None]) -> None:
        """Calls something with each incident that began, changed its state, got worse, or flapped."""
        self._listeners.append(listener)

    @property
    def unresolved(self) -> tuple[Incident, ...]:
        """Open and acknowledged ones, oldest first."""
        return tuple(sorted(self._open.values(), key=lambda incident: incident.id))

    async def start(self, declared: Iterable[str]) -> None:
        """Goes on with what the store has open; ends those whose probes are gone from the settings."""
        known = set(declared)
        unresolved = (IncidentState.OPEN, IncidentState.ACKNOWLEDGED)
        rows = await self._records.list_incidents(states=unresolved, before_id="", limit=10_000)
        for incident in rows:
            if incident.probe not in known:
                await self._end(incident, NOT_DECLARED)
                continue
            if incident.probe in self._open:
                # Its end could not be stored when it came; the probe has had another incident since.
                await self._end(incident, WELL_AGAIN)
                continue
            self._open[incident.probe] = incident
            self._damper(incident.probe).resume(self._clock.boottime_ns(), incident.flap_count)

    async def observe(self, result: ProbeResult) -> None:
        """Takes in an answer of a probe."""
        async with self._turn:
            damper = self._damper(result.probe)
            turn = damper.look(result.state, self._clock.boottime_ns())
            self._note_begin(result, damper, turn)
            incident = self._open.get(result.probe)
            if turn is Turn.OPEN:
                await self._begin(result, damper.flaps)
            elif turn is Turn.CLOSE and incident is not None:
                del self._open[result.probe]
                await self._end(incident, WELL_AGAIN)
            elif turn in (Turn.BAD, Turn.FLAP) and incident is not None:
                await self._go_on(incident, result, damper.flaps)

    async def acknowledge(self, name: IncidentName, *, actor: str, comment: str) -> Incident:
        """Notes that a person has seen it.

        Raises:
            IncidentUnknown, IncidentAcknowledged, IncidentResolved, CommentInvalid: see the contract.
        """
        _check(comment)
        now = self._clock.now()
        return await self._word(
            name,
            lambda incident: incident.acknowledged_by(actor, comment, now),
            actor,
            "incident.acknowledged",
        )

    async def resolve(self, name: IncidentName, *, actor: str, comment: str) -> Incident:
        """Ends it by a person's word; its probe is judged anew.

        Raises:
            IncidentUnknown, IncidentResolved, CommentInvalid: see the contract.
        """
        _check(comment)
        now = self._clock.now()
        return await self._word(
            name, lambda incident: incident.resolved_by(actor, comment, now), actor, "incident.resolved"
        )

    async def get(self, name: IncidentName) -> Incident:
        """One of them.

        Raises:
            IncidentUnknown: there is none of that name.
        """
        return await self._records.get_incident(name.incident)

    async def page(self, *, states: Sequence[IncidentState], before_id: str, limit: int) -> list[Incident]:
        """Newest first, those before the id ``before_id`` ("" for all), in one of the states (none: any)."""
        return await self._records.list_incidents(states=states, before_id=before_id, limit=limit)

    async def prune(self, *, before: datetime) -> int:
        """Removes those that were resolved before; returns how many."""
        return await self._records.prune_incidents(before=before)

    async def _word(self, name: IncidentName, change: Change, actor: str, kind: str) -> Incident:
        async with self._turn:
            incident = await self._records.change_incident(name.incident, change, actor=actor, kind=kind)
            known = self._open.get(incident.probe)
            if known is not None and known.id == incident.id:
                if incident.state is IncidentState.RESOLVED:
                    del self._open[incident.probe]
                    self._damper(incident.probe).forget()
                    self._first_bad.pop(incident.probe, None)
                else:
                    self._open[incident.probe] = incident
                self._tell(incident)
            return incident

    async def _begin(self, result: ProbeResult, flap_count: int) -> None:
        incident = Incident(
            id=self._ids(),
            probe=result.probe,
            state=IncidentState.OPEN,
            worst=result.state,
            detail=result.detail,
            start=self._first_bad.get(result.probe, result.probe_time),
            opened=self._clock.now(),
            last_bad=result.probe_time,
            flap_count=flap_count,
        )
        self._open[result.probe] = incident
        self._unstored.add(incident.id)
        _LOG.warning("incident opened: %s is %s", incident.probe, incident.worst.name)
        self._tell(incident)
        await self._store(incident)

    async def _go_on(self, incident: Incident, result: ProbeResult, flap_count: int) -> None:
        changed = incident.seen_bad(result, flap_count)
        self._open[result.probe] = changed
        if changed.flap_count != incident.flap_count or changed.worst != incident.worst:
            self._tell(changed)
        if incident.id in self._unstored:
            await self._store(changed)
            return
        try:
            await self._records.change_incident(
                incident.id, lambda stored: stored.seen_bad(result, flap_count)
            )
        except NightshiftError as error:
            _LOG.warning("an incident could not be stored: %s", error)

    async def _end(self, incident: Incident, why: str) -> None:
        now = self._clock.now()
        ended = incident.resolved_by("", why, now)
        _LOG.warning("incident over: %s", incident.probe)
        self._tell(ended)
        if incident.id in self._unstored:
            await self._store(ended)
            return
        try:
            await self._records.change_incident(incident.id, lambda stored: stored.resolved_by("", why, now))
        except NightshiftError as error:
            # It stays open in the store; the next start takes it up and ends it after the stable time.
            _LOG.warning("the end of an incident could not be stored: %s", error)

    async def _store(self, incident: Incident) -> None:
        try:
            await self._records.add_incident(incident)
        except NightshiftError as error:
            _LOG.warning("an incident could not be stored: %s", error)
            return
        self._unstored.discard(incident.id)

    def _note_begin(self, result: ProbeResult, damper: Damper, turn: Turn) -> None:
        if not damper.troubled or turn is Turn.CLOSE:
            self._first_bad.pop(result.probe, None)
        else:
            self._first_bad.setdefault(result.probe, result.probe_time)

    def _damper(self, probe: str) -> Damper:
        if probe not in self._dampers:
            self._dampers[probe] = Damper(after_looks=self._after_looks, **self._limits)
        return self._dampers[probe]

    def _tell(self, incident: Incident) -> None:
        for listener in self._listeners:
            listener(incident)


def _check(comment: str) -> None:
    if len(comment) > MAX_COMMENT_LENGTH or "\x00" in comment:
        raise CommentInvalid.of(MAX_COMMENT_LENGTH)

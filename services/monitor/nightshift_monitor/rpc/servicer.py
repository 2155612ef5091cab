"""MonitorService over the core: validate, one call, render."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import monitor_service_pb2_grpc as services
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.errors import EnumRequired, FieldInvalid
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call
from nightshift_monitor.activity import ActivityReport
from nightshift_monitor.errors import ActivityInvalid
from nightshift_monitor.incidents import IncidentState
from nightshift_monitor.monitor import Monitor
from nightshift_monitor.resources import IncidentName, ProbeName
from nightshift_monitor.rpc import render


class MonitorServicer(services.MonitorServiceServicer):
    """Thin face of ``Monitor``."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def RecordActivity(
        self, request: messages.RecordActivityRequest, context: Any
    ) -> messages.RecordActivityResponse:
        """Notes that a user was there."""
        self._monitor.record_activity(
            ActivityReport(
                kind=request.kind or "request",
                activity_time=_instant(request, "activity_time"),
                count=request.count or 1,
                run_id=request.run_id,
                quiet_until=_instant(request, "quiet_until_time"),
            )
        )
        return messages.RecordActivityResponse()

    async def GetStatus(self, request: messages.GetStatusRequest, context: Any) -> resources.Status:
        """Everything at one glance."""
        return render.status(await self._monitor.status())

    async def WatchStatus(
        self, request: messages.WatchStatusRequest, context: Any
    ) -> AsyncIterator[messages.WatchStatusResponse]:
        """The state first, then each change."""
        async for posted in self._monitor.watch(_after_seq(request.after_seq)):
            yield render.watched(posted)

    async def ListProbes(
        self, request: messages.ListProbesRequest, context: Any
    ) -> messages.ListProbesResponse:
        """Declared probes by name."""
        size = page_size(request.page_size)
        digest = query_digest(method="ListProbes")
        position = decode_token(request.page_token, digest, (str,))
        views = self._monitor.probes(after=str(position[0]) if position else "", limit=size + 1)
        more = len(views) > size
        return messages.ListProbesResponse(
            probes=[render.probe(view) for view in views[:size]],
            next_page_token=encode_token((views[size - 1].declaration.name,), digest) if more else "",
        )

    async def GetProbe(self, request: messages.GetProbeRequest, context: Any) -> resources.Probe:
        """One probe."""
        return render.probe(self._monitor.probe(ProbeName.parse(request.name)))

    async def RunProbe(self, request: messages.RunProbeRequest, context: Any) -> resources.ProbeResult:
        """Looks now."""
        return render.probe_result(await self._monitor.run_probe(ProbeName.parse(request.name)))

    async def ListProbeResults(
        self, request: messages.ListProbeResultsRequest, context: Any
    ) -> messages.ListProbeResultsResponse:
        """Stored answers, newest first."""
        name = ProbeName.parse(request.parent, field="parent")
        size = page_size(request.page_size)
        digest = query_digest(method="ListProbeResults", parent=name.name)
        position = decode_token(request.page_token, digest, (str,))
        rows = await self._monitor.probe_results(
            name, before_id=str(position[0]) if position else "", limit=size + 1
        )
        more = len(rows) > size
        return messages.ListProbeResultsResponse(
            probe_results=[render.probe_result(result) for _, result in rows[:size]],
            next_page_token=encode_token((rows[size - 1][0],), digest) if more else "",
        )

    async def ListGpus(self, request: messages.ListGpusRequest, context: Any) -> messages.ListGpusResponse:
        """GPUs, or why there is none."""
        return render.gpus(await self._monitor.gpus())

    async def WatchGpus(
        self, request: messages.WatchGpusRequest, context: Any
    ) -> AsyncIterator[messages.WatchGpusResponse]:
        """The GPUs first, then each change."""
        async for posted in self._monitor.watch_gpus(_after_seq(request.after_seq)):
            yield render.watched_gpus(posted)

    async def GetIdleness(self, request: messages.GetIdlenessRequest, context: Any) -> resources.Idleness:
        """The verdict."""
        return render.idleness(self._monitor.idleness())

    async def ListActivity(
        self, request: messages.ListActivityRequest, context: Any
    ) -> messages.ListActivityResponse:
        """Hours of activity, newest first."""
        size = page_size(request.page_size)
        digest = query_digest(method="ListActivity")
        position = decode_token(request.page_token, digest, (int,))
        before_us = int(position[0] or 0) if position else 0
        rows = await self._monitor.activity_hours(before_us=before_us, limit=size + 1)
        more = len(rows) > size
        return messages.ListActivityResponse(
            activity_hours=[render.activity_hour(start, count) for _, start, count in rows[:size]],
            next_page_token=encode_token((rows[size - 1][0],), digest) if more else "",
        )

    async def GetActivityProfile(
        self, request: messages.GetActivityProfileRequest, context: Any
    ) -> resources.ActivityProfile:
        """The hours of the week."""
        return render.profile(self._monitor.profile())

    async def ListIncidents(
        self, request: messages.ListIncidentsRequest, context: Any
    ) -> messages.ListIncidentsResponse:
        """Incidents, newest first."""
        size = page_size(request.page_size)
        states = _states(request.states)
        digest = query_digest(method="ListIncidents", states=sorted(states))
        position = decode_token(request.page_token, digest, (str,))
        found = await self._monitor.incidents.page(
            states=states, before_id=str(position[0]) if position else "", limit=size + 1
        )
        more = len(found) > size
        return messages.ListIncidentsResponse(
            incidents=[render.incident(incident) for incident in found[:size]],
            next_page_token=encode_token((found[size - 1].id,), digest) if more else "",
        )

    async def GetIncident(self, request: messages.GetIncidentRequest, context: Any) -> resources.Incident:
        """One incident."""
        return render.incident(await self._monitor.incidents.get(IncidentName.parse(request.name)))

    async def AcknowledgeIncident(
        self, request: messages.AcknowledgeIncidentRequest, context: Any
    ) -> resources.Incident:
        """Notes that the calling person has seen it."""
        name = IncidentName.parse(request.name)
        actor = current_call().actor
        return render.incident(
            await self._monitor.incidents.acknowledge(name, actor=actor, comment=request.comment)
        )

    async def ResolveIncident(
        self, request: messages.ResolveIncidentRequest, context: Any
    ) -> resources.Incident:
        """Ends it by the calling person's word."""
        name = IncidentName.parse(request.name)
        actor = current_call().actor
        return render.incident(
            await self._monitor.incidents.resolve(name, actor=actor, comment=request.comment)
        )


def _after_seq(number: int) -> int:
    """A position of a stream. Raises FieldInvalid for a negative one."""
    if number < 0:
        raise FieldInvalid.at("after_seq", "must not be negative")
    return number


def _states(numbers: Collection[int]) -> list[IncidentState]:
    """States to list, each once.

    Raises:
        EnumRequired: one is unspecified.
    """
    if 0 in numbers:
        raise EnumRequired.at("states", "leave it empty for all states")
    return sorted(map(IncidentState, set(numbers)))


def _instant(request: messages.RecordActivityRequest, field: str) -> datetime | None:
    """A timestamp field, None where absent.

    Raises:
        ActivityInvalid: for a timestamp outside the years 1 to 9999.
    """
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    timestamp: Timestamp = getattr(request, field)
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ActivityInvalid.of(field, "not an instant of the years 1 to 9999") from error

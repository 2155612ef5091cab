"""The core's values as messages of the contract."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.monitor.v1 import monitor_service_pb2, resources_pb2
from nightshift_monitor.board import Posted
from nightshift_monitor.hours import HourCount, Profile
from nightshift_monitor.idleness import Idleness
from nightshift_monitor.incidents import Incident
from nightshift_monitor.observations import Gpu, GpuReading, ProbeResult
from nightshift_monitor.resources import ProbeName
from nightshift_monitor.status import ProbeView, StatusView


def probe(view: ProbeView) -> resources_pb2.Probe:
    """A declared probe."""
    return resources_pb2.Probe(
        name=ProbeName(view.declaration.name).name,
        kind=view.declaration.kind,
        target=view.declaration.target,
        platform=view.declaration.platform,
        interval=_duration(view.interval_s),
        latest=None if view.latest is None else probe_result(view.latest),
    )


def probe_result(result: ProbeResult) -> resources_pb2.ProbeResult:
    """One answer."""
    return resources_pb2.ProbeResult(
        probe=ProbeName(result.probe).name,
        state=resources_pb2.ProbeState.ValueType(int(result.state)),
        probe_time=_timestamp(result.probe_time),
        latency=_duration(result.latency_s),
        detail=result.detail,
    )


def gpu(value: Gpu) -> resources_pb2.Gpu:
    """One GPU."""
    return resources_pb2.Gpu(
        index=value.index,
        display_name=value.display_name,
        total_bytes=value.total_bytes,
        used_bytes=value.used_bytes,
        utilization_percent=value.utilization_percent,
        processes=[
            resources_pb2.GpuProcess(pid=process.pid, used_bytes=process.used_bytes, kind=process.kind)
            for process in value.processes
        ],
        detail=value.detail,
        mig=value.mig,
        failed=value.failed,
    )


def gpus(reading: GpuReading) -> monitor_service_pb2.ListGpusResponse:
    """All GPUs."""
    return monitor_service_pb2.ListGpusResponse(
        gpus=[gpu(value) for value in reading.gpus], detail=reading.detail
    )


def watched_gpus(posted: Posted[GpuReading]) -> monitor_service_pb2.WatchGpusResponse:
    """One message of the stream of GPUs."""
    return monitor_service_pb2.WatchGpusResponse(
        seq=posted.seq,
        gpus=[gpu(value) for value in posted.state.gpus],
        detail=posted.state.detail,
        keep_alive=posted.keep_alive,
    )


def idleness(value: Idleness) -> resources_pb2.Idleness:
    """The verdict."""
    return resources_pb2.Idleness(
        idle=value.idle,
        reasons=[
            resources_pb2.IdlenessReason(
                code=reason.code, allows_idle=reason.allows_idle, message=reason.message
            )
            for reason in value.reasons
        ],
        since_time=_timestamp(value.since),
        last_activity_time=_timestamp_or_none(value.last_activity),
        quiet_remaining=_duration(value.quiet_remaining_s),
        platform_up=value.platform_up,
        predicted_busy_time=_timestamp_or_none(value.predicted_busy),
    )


def activity_hour(start: datetime, count: HourCount) -> resources_pb2.ActivityHour:
    """One hour of activity."""
    return resources_pb2.ActivityHour(
        start_time=_timestamp(start), activity_count=count.activities, generation_count=count.generations
    )


def profile(value: Profile) -> resources_pb2.ActivityProfile:
    """The hours of the week."""
    return resources_pb2.ActivityProfile(
        time_zone=value.time_zone,
        first_time=_timestamp_or_none(value.first),
        slots=[
            resources_pb2.ActivitySlot(
                weekday=slot.weekday,
                hour=slot.hour,
                probability=slot.probability,
                mean_activity_count=slot.mean_activities,
            )
            for slot in value.slots
        ],
        predicted_busy_time=_timestamp_or_none(value.predicted),
        busy_probability=value.busy_probability,
    )


def incident(value: Incident) -> resources_pb2.Incident:
    """One incident."""
    return resources_pb2.Incident(
        name=value.name,
        probe=ProbeName(value.probe).name,
        state=resources_pb2.IncidentState.ValueType(int(value.state)),
        worst_state=resources_pb2.ProbeState.ValueType(int(value.worst)),
        detail=value.detail,
        start_time=_timestamp(value.start),
        open_time=_timestamp(value.opened),
        last_bad_time=_timestamp(value.last_bad),
        flap_count=value.flap_count,
        acknowledger=value.acknowledger,
        acknowledge_time=_timestamp_or_none(value.acknowledged),
        acknowledge_comment=value.acknowledge_comment,
        resolver=value.resolver,
        resolve_time=_timestamp_or_none(value.resolved),
        resolve_comment=value.resolve_comment,
    )


def status(view: StatusView) -> resources_pb2.Status:
    """Everything."""
    return resources_pb2.Status(
        status_time=_timestamp(view.time),
        probes=[probe(value) for value in view.probes],
        gpus=[gpu(value) for value in view.gpus.gpus],
        gpu_detail=view.gpus.detail,
        idleness=idleness(view.idleness),
        incidents=[incident(value) for value in view.incidents],
    )


def watched(posted: Posted[StatusView]) -> monitor_service_pb2.WatchStatusResponse:
    """One message of the stream."""
    return monitor_service_pb2.WatchStatusResponse(
        seq=posted.seq, status=status(posted.state), keep_alive=posted.keep_alive
    )


def _timestamp(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def _timestamp_or_none(instant: datetime | None) -> Timestamp | None:
    return None if instant is None else _timestamp(instant)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration

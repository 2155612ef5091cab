"""Domain objects as messages, and specs of messages as plain values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.trainer.v1 import resources_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as service_pb
from nightshift.type.v1 import error_pb2
from nightshift_trainer.inspection import Inspection
from nightshift_trainer.progress import Point
from nightshift_trainer.records import Adapter, State, TrainingJob
from nightshift_trainer.resources import AdapterName, TrainingJobName
from nightshift_trainer.spec import Spec

_STATES: Mapping[State, pb.TrainingJobState.ValueType] = {
    State.STARTING: pb.TRAINING_JOB_STATE_STARTING,
    State.RUNNING: pb.TRAINING_JOB_STATE_RUNNING,
    State.PAUSED: pb.TRAINING_JOB_STATE_PAUSED,
    State.SUCCEEDED: pb.TRAINING_JOB_STATE_SUCCEEDED,
    State.FAILED: pb.TRAINING_JOB_STATE_FAILED,
    State.CANCELLED: pb.TRAINING_JOB_STATE_CANCELLED,
}

_KINDS: Mapping[str, pb.ProgressKind.ValueType] = {
    "step": pb.PROGRESS_KIND_STEP,
    "phase": pb.PROGRESS_KIND_PHASE,
    "event": pb.PROGRESS_KIND_EVENT,
}


def given(spec: pb.TrainingSpec) -> dict[str, Any]:
    """What a caller set in a spec; fields with presence are None where they are not set."""
    values: dict[str, Any] = {field.name: getattr(spec, field.name) for field in spec.DESCRIPTOR.fields}
    for name in ("lora_dropout", "seed"):
        if not spec.HasField(name):
            values[name] = None
    return values


def training_spec(spec: Spec) -> pb.TrainingSpec:
    """A spec with every value."""
    return pb.TrainingSpec(**spec.as_dict())


def training_job(job: TrainingJob) -> pb.TrainingJob:
    """A job."""
    message = pb.TrainingJob(
        name=TrainingJobName(job.id).name,
        state=_STATES[job.state],
        spec=training_spec(job.spec),
        skill_run=job.skill_run,
        step=job.step,
        total_steps=job.total_steps,
        loss=job.loss,
        create_time=_timestamp(job.create_time),
        pause_count=job.pause_count,
        pause_cause=job.pause_cause,
        checkpoint_digest=job.checkpoint_digest,
        on_purpose=job.on_purpose,
    )
    if job.end_time is not None:
        message.end_time.CopyFrom(_timestamp(job.end_time))
    if job.state is State.SUCCEEDED:
        message.adapter = AdapterName(job.adapter_id).name
    if job.failure is not None:
        message.failure.CopyFrom(error_pb2.Failure(**job.failure))
    return message


def encoded_job(job: TrainingJob) -> bytes:
    """A job's answer as it is kept for a retry."""
    return training_job(job).SerializeToString(deterministic=True)


def progress_point(point: Point) -> pb.ProgressPoint:
    """A point."""
    message = pb.ProgressPoint(
        seq=point.seq,
        kind=_KINDS[point.kind],
        step=point.step,
        total_steps=point.total_steps,
        epoch=point.epoch,
        loss=point.loss,
        smoothed_loss=point.smoothed_loss,
        learning_rate=point.learning_rate,
        gradient_norm=point.gradient_norm,
        tokens_per_second=point.tokens_per_second,
        memory_bytes=point.memory_bytes,
        phase=point.phase,
        event=point.event,
        message=point.message,
    )
    message.point_time.FromMicroseconds(round(point.time_s * 1e6))
    if point.eta_s is not None:
        message.eta.CopyFrom(_duration(point.eta_s))
    return message


def news(job: TrainingJob, points: Sequence[Point]) -> service_pb.WatchTrainingJobResponse:
    """A message of the progress stream."""
    return service_pb.WatchTrainingJobResponse(
        training_job=training_job(job), points=[progress_point(point) for point in points]
    )


def estimate(
    inspection: Inspection, duration_s: float | None, detail: str
) -> service_pb.EstimateTrainingResponse:
    """An estimate."""
    message = service_pb.EstimateTrainingResponse(
        spec=training_spec(inspection.spec),
        memory_bytes=inspection.memory_bytes,
        memory_parts_bytes=dict(inspection.parts),
        total_steps=inspection.spec.total_steps(inspection.dataset.row_count),
        row_count=inspection.dataset.row_count,
        fits=inspection.room.fits,
        detail=detail,
    )
    if duration_s is not None:
        message.duration.CopyFrom(_duration(duration_s))
    return message


def adapter(found: Adapter) -> pb.Adapter:
    """An adapter."""
    return pb.Adapter(
        name=AdapterName(found.id).name,
        training_job=TrainingJobName(found.training_job).name,
        path=found.path,
        weights_digest=found.weights_digest,
        base_model_digest=found.base_model_digest,
        dataset_digest=found.dataset_digest,
        spec=training_spec(found.spec),
        loss=found.loss,
        create_time=_timestamp(found.create_time),
        code_versions=dict(found.code_versions),
        size_bytes=found.size_bytes,
    )


def _timestamp(moment: dt.datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromMicroseconds(round(seconds * 1e6))
    return message

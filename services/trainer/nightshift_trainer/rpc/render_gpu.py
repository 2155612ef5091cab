"""The GPU host as messages, and wishes of messages as domain objects."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from nightshift.trainer.v1 import resources_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as service_pb
from nightshift_kit.errors import FieldInvalid
from nightshift_trainer.gpu_host.choosing import Outcome
from nightshift_trainer.gpu_host.effects import Loaded, Unloaded
from nightshift_trainer.gpu_host.models import Form, HostModel, ModelRef, Reading
from nightshift_trainer.resources import GPU_HOST

_FORMS = {
    Form.OLD: pb.GPU_HOST_FORM_OLD,
    Form.NEW: pb.GPU_HOST_FORM_NEW,
    Form.NVML: pb.GPU_HOST_FORM_NVML,
}
_OUTCOMES = {
    Outcome.UNLOADED: service_pb.UNLOAD_OUTCOME_UNLOADED,
    Outcome.ENOUGH_FREE: service_pb.UNLOAD_OUTCOME_ENOUGH_FREE,
    Outcome.NONE_IDLE: service_pb.UNLOAD_OUTCOME_NONE_IDLE,
}
_MOST_MODELS = 100
_LONGEST_NAME = 300


def given_models(messages: Sequence[pb.ModelRef]) -> list[ModelRef]:
    """The models that may go. Raises FieldInvalid."""
    if not 1 <= len(messages) <= _MOST_MODELS:
        raise FieldInvalid.at("models", f"must name 1 to {_MOST_MODELS} models")
    models = [given_model(message, f"models[{position}]") for position, message in enumerate(messages)]
    if len(set(models)) != len(models):
        raise FieldInvalid.at("models", "must name each model once")
    return models


def given_model(message: pb.ModelRef, field: str) -> ModelRef:
    """One model. Raises FieldInvalid."""
    for part in ("backend", "model"):
        value = getattr(message, part)
        if not 1 <= len(value) <= _LONGEST_NAME or not value.isprintable():
            raise FieldInvalid.at(f"{field}.{part}", f"must be 1 to {_LONGEST_NAME} printable characters")
    return ModelRef(message.backend, message.model)


def gpu_host(reading: Reading, reserve_bytes: int) -> pb.GpuHost:
    """A reading."""
    message = pb.GpuHost(
        name=GPU_HOST,
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        foreign_bytes=reading.foreign_bytes,
        form=_FORMS[reading.form],
        eviction_in_progress=reading.eviction_in_progress,
        models=[_loaded_model(model) for model in reading.models],
        preload_models=[
            pb.PreloadModel(
                model=_ref(one.ref), vram_bytes=one.vram_bytes, loaded=one.loaded, installed=one.installed
            )
            for one in reading.preloads
        ],
        reserve_bytes=reserve_bytes,
        processes=[
            pb.GpuHostProcess(pid=one.pid, vram_bytes=one.vram_bytes, foreign=one.foreign)
            for one in reading.processes
        ],
        problems=[
            pb.GpuHostProblem(source=one.source, reason=one.reason, message=one.message)
            for one in reading.problems
        ],
    )
    message.read_time.FromDatetime(reading.read_time)
    return message


def encoded_unloaded(answer: Unloaded) -> bytes:
    """An answer as it is kept for a retry."""
    message = service_pb.UnloadIdleModelResponse(
        outcome=_OUTCOMES[answer.outcome],
        model=None if answer.ref is None else _ref(answer.ref),
        freed_bytes=answer.freed_bytes,
        used_bytes=answer.used_bytes,
        spared=[service_pb.SparedModel(model=_ref(one.ref), reason=one.reason) for one in answer.spared],
    )
    return message.SerializeToString(deterministic=True)


def encoded_loaded(answer: Loaded) -> bytes:
    """An answer as it is kept for a retry."""
    message = service_pb.LoadModelResponse(
        model=_ref(answer.ref),
        already_loaded=answer.already_loaded,
        vram_bytes=answer.vram_bytes,
        free_bytes=answer.free_bytes,
    )
    return message.SerializeToString(deterministic=True)


def _loaded_model(model: HostModel) -> pb.LoadedModel:
    message = pb.LoadedModel(
        model=_ref(model.ref),
        vram_bytes=model.vram_bytes,
        in_use=model.in_use,
        use_known=model.use_known,
        priority=model.priority,
        unloadable=model.unloadable,
    )
    if model.last_used_s is not None:
        message.last_used_time.FromDatetime(dt.datetime.fromtimestamp(model.last_used_s, dt.UTC))
    return message


def _ref(ref: ModelRef) -> pb.ModelRef:
    return pb.ModelRef(backend=ref.backend, model=ref.model)

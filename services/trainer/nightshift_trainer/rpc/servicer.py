"""TrainerService over the core: validate, one call, render."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from nightshift.trainer.v1 import resources_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as service_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc
from nightshift_kit.errors import FieldInvalid
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call
from nightshift_trainer.gpu_host.service import GpuHostService
from nightshift_trainer.jobs import TrainingJobs
from nightshift_trainer.resources import AdapterName, TrainingJobName
from nightshift_trainer.rpc import render, render_gpu
from nightshift_trainer.store.jobs import adapter_position

_JOBS = query_digest(list="trainingJobs")
_ADAPTERS = query_digest(list="adapters")


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """See the proto for every method."""

    def __init__(self, jobs: TrainingJobs, gpu_host: GpuHostService) -> None:
        self._jobs = jobs
        self._gpu_host = gpu_host
        self._reads = jobs.reads

    async def EstimateTraining(
        self, request: service_pb.EstimateTrainingRequest, context: Any
    ) -> service_pb.EstimateTrainingResponse:
        """See the proto."""
        return render.estimate(*await self._reads.estimate(render.given(request.spec)))

    async def CreateTrainingJob(
        self, request: service_pb.CreateTrainingJobRequest, context: Any
    ) -> pb.TrainingJob:
        """See the proto."""
        answer = await self._jobs.create(current_call().effect(), render.given(request.spec))
        return pb.TrainingJob.FromString(answer)

    async def GetTrainingJob(self, request: service_pb.GetTrainingJobRequest, context: Any) -> pb.TrainingJob:
        """See the proto."""
        return render.training_job(await self._reads.get(TrainingJobName.parse(request.name).id))

    async def ListTrainingJobs(
        self, request: service_pb.ListTrainingJobsRequest, context: Any
    ) -> service_pb.ListTrainingJobsResponse:
        """See the proto."""
        size = page_size(request.page_size)
        position = cast("tuple[str] | None", decode_token(request.page_token, _JOBS, [str]))
        jobs = await self._reads.list_jobs(before=position[0] if position else None, limit=size + 1)
        return service_pb.ListTrainingJobsResponse(
            training_jobs=[render.training_job(job) for job in jobs[:size]],
            next_page_token=encode_token([jobs[size - 1].id], _JOBS) if len(jobs) > size else "",
        )

    async def WatchTrainingJob(
        self, request: service_pb.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[service_pb.WatchTrainingJobResponse]:
        """See the proto."""
        if request.after_seq < 0:
            raise FieldInvalid.at("after_seq", "must be 0 or more")
        job_id = TrainingJobName.parse(request.name).id
        async for job, points in self._reads.watch(job_id, request.after_seq):
            yield render.news(job, points)

    async def PauseTrainingJob(
        self, request: service_pb.PauseTrainingJobRequest, context: Any
    ) -> pb.TrainingJob:
        """See the proto."""
        job_id = TrainingJobName.parse(request.name).id
        return pb.TrainingJob.FromString(await self._jobs.pause(current_call().effect(), job_id))

    async def ResumeTrainingJob(
        self, request: service_pb.ResumeTrainingJobRequest, context: Any
    ) -> pb.TrainingJob:
        """See the proto."""
        job_id = TrainingJobName.parse(request.name).id
        return pb.TrainingJob.FromString(await self._jobs.resume(current_call().effect(), job_id))

    async def CancelTrainingJob(
        self, request: service_pb.CancelTrainingJobRequest, context: Any
    ) -> pb.TrainingJob:
        """See the proto."""
        job_id = TrainingJobName.parse(request.name).id
        return pb.TrainingJob.FromString(await self._jobs.cancel(current_call().effect(), job_id))

    async def ListAdapters(
        self, request: service_pb.ListAdaptersRequest, context: Any
    ) -> service_pb.ListAdaptersResponse:
        """See the proto."""
        size = page_size(request.page_size)
        position = cast("tuple[int, str] | None", decode_token(request.page_token, _ADAPTERS, [int, str]))
        found = await self._reads.list_adapters(before=position, limit=size + 1)
        return service_pb.ListAdaptersResponse(
            adapters=[render.adapter(one) for one in found[:size]],
            next_page_token=(
                encode_token(adapter_position(found[size - 1]), _ADAPTERS) if len(found) > size else ""
            ),
        )

    async def GetAdapter(self, request: service_pb.GetAdapterRequest, context: Any) -> pb.Adapter:
        """See the proto."""
        return render.adapter(await self._reads.get_adapter(AdapterName.parse(request.name).id))

    async def GetGpuHost(self, request: service_pb.GetGpuHostRequest, context: Any) -> pb.GpuHost:
        """See the proto."""
        return render_gpu.gpu_host(await self._gpu_host.read(), self._gpu_host.reserve_bytes)

    async def UnloadIdleModel(
        self, request: service_pb.UnloadIdleModelRequest, context: Any
    ) -> service_pb.UnloadIdleModelResponse:
        """See the proto."""
        models = render_gpu.given_models(request.models)
        if request.target_used_bytes < 0:
            raise FieldInvalid.at("target_used_bytes", "must be 0 or more")
        effect = current_call().effect()
        answer = await self._gpu_host.effects.unload_idle(effect, models, request.target_used_bytes)
        return service_pb.UnloadIdleModelResponse.FromString(answer)

    async def LoadModel(
        self, request: service_pb.LoadModelRequest, context: Any
    ) -> service_pb.LoadModelResponse:
        """See the proto."""
        model = render_gpu.given_model(request.model, "model")
        if request.vram_bytes <= 0:
            raise FieldInvalid.at("vram_bytes", "must be more than 0")
        answer = await self._gpu_host.effects.load(current_call().effect(), model, request.vram_bytes)
        return service_pb.LoadModelResponse.FromString(answer)

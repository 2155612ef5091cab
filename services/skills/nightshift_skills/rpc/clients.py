"""The ports of the core over gRPC: every error becomes `Upstream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import forgetting_pb2, tuning_pb2
from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.lab.v1.lab_service_pb2_grpc import LabServiceStub
from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1.control_service_pb2_grpc import OutboxServiceStub, StopServiceStub
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from nightshift_kit.errors import Code
from nightshift_kit.rpc.channels import decode_error, grant_metadata
from nightshift_skills.errors import Upstream, upstream
from nightshift_skills.granting import audience_of

T = TypeVar("T")

READ_TIMEOUT_S = 10.0
# The scheduler asks on each turn, and a report of activity waits for none: a monitor that is slow counts as
# away.
MONITOR_TIMEOUT_S = 3.0
# Drafting composes and validates a whole config; estimating reads a whole dataset.
SLOW_READ_TIMEOUT_S = 60.0
# A local model writes a few texts a second; what it has written by then is kept for the next try.
DRAFT_TIMEOUT_S = 120.0
_PAGE = 1000

# Codes that a transport which could not get through uses, without details of ours.
_TRANSPORT_REASON = "SERVICE_UNAVAILABLE"


async def asked(service: str, call: Awaitable[T]) -> T:
    """Awaits a call. Raises Upstream."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise translated(service, error) from error


def translated(service: str, error: grpc.aio.AioRpcError) -> Upstream:
    """The error of another service in our words."""
    rich = decode_error(error)
    code = Code[rich.code.name]
    return upstream(
        rich.message if rich.reason else f"{service} cannot be reached ({code.value}).",
        code=code,
        reason=rich.reason or _TRANSPORT_REASON,
        metadata={**rich.metadata, "service": service},
        violations=rich.violations,
        retry_after_s=rich.retry_after_s,
    )


class MonitorClient:
    """MonitorPort."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = MonitorServiceStub(channel)

    async def get_idleness(self) -> monitor_types.Idleness:
        """See MonitorPort."""
        request = monitor_pb.GetIdlenessRequest()
        return await asked("monitor", self._stub.GetIdleness(request, timeout=MONITOR_TIMEOUT_S))

    async def get_status(self) -> monitor_types.Status:
        """See MonitorPort."""
        request = monitor_pb.GetStatusRequest()
        return await asked("monitor", self._stub.GetStatus(request, timeout=MONITOR_TIMEOUT_S))

    async def watch_status(self) -> AsyncIterator[monitor_pb.WatchStatusResponse]:
        """See MonitorPort."""
        try:
            async for response in self._stub.WatchStatus(monitor_pb.WatchStatusRequest()):
                yield response
        except grpc.aio.AioRpcError as error:
            raise translated("monitor", error) from error

    async def record_activity(self, request: monitor_pb.RecordActivityRequest) -> None:
        """See MonitorPort."""
        await asked("monitor", self._stub.RecordActivity(request, timeout=MONITOR_TIMEOUT_S))


class ExperienceClient:
    """ExperiencePort."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ExperienceServiceStub(channel)

    async def get_state(self, project: str) -> experience_pb.ExperienceState:
        """See ExperiencePort."""
        request = experience_pb.GetExperienceStateRequest(parent=project)
        return await asked("experience", self._stub.GetExperienceState(request, timeout=READ_TIMEOUT_S))

    async def get_footprint(self, project: str, device: str) -> forgetting_pb2.DeviceFootprint:
        """See ExperiencePort."""
        request = forgetting_pb2.GetDeviceFootprintRequest(parent=project, device=device)
        return await asked("experience", self._stub.GetDeviceFootprint(request, timeout=READ_TIMEOUT_S))

    async def list_opportunities(self, project: str) -> Sequence[experience_types.Opportunity]:
        """See ExperiencePort."""
        request = experience_pb.ListOpportunitiesRequest(parent=project, page_size=_PAGE)
        response = await asked("experience", self._stub.ListOpportunities(request, timeout=READ_TIMEOUT_S))
        return list(response.opportunities)

    async def get_tuning(self, name: str) -> tuning_pb2.Tuning:
        """See ExperiencePort."""
        request = tuning_pb2.GetTuningRequest(name=name)
        return await asked("experience", self._stub.GetTuning(request, timeout=READ_TIMEOUT_S))


class LabClient:
    """LabPort."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = LabServiceStub(channel)

    async def draft_proposal(self, request: lab_pb.DraftProposalRequest) -> lab_pb.DraftProposalResponse:
        """See LabPort."""
        return await asked("lab", self._stub.DraftProposal(request, timeout=SLOW_READ_TIMEOUT_S))

    async def list_proposals(self) -> Sequence[lab_types.Proposal]:
        """See LabPort."""
        proposals: list[lab_types.Proposal] = []
        token = ""
        while True:
            request = lab_pb.ListProposalsRequest(page_size=100, page_token=token)
            response = await asked("lab", self._stub.ListProposals(request, timeout=READ_TIMEOUT_S))
            proposals.extend(response.proposals)
            token = response.next_page_token
            if not token:
                return proposals

    async def get_proposal(self, name: str) -> lab_types.Proposal:
        """See LabPort."""
        request = lab_pb.GetProposalRequest(name=name)
        return await asked("lab", self._stub.GetProposal(request, timeout=READ_TIMEOUT_S))

    async def diff_proposal(self, name: str) -> lab_pb.DiffProposalResponse:
        """See LabPort."""
        request = lab_pb.DiffProposalRequest(name=name)
        return await asked("lab", self._stub.DiffProposal(request, timeout=READ_TIMEOUT_S))

    async def get_promotion(self, name: str) -> lab_types.Promotion:
        """See LabPort."""
        request = lab_pb.GetPromotionRequest(name=name)
        return await asked("lab", self._stub.GetPromotion(request, timeout=READ_TIMEOUT_S))

    async def get_config(self, name: str) -> lab_types.Config:
        """See LabPort."""
        request = lab_pb.GetConfigRequest(name=name)
        return await asked("lab", self._stub.GetConfig(request, timeout=READ_TIMEOUT_S))

    async def get_state(self) -> lab_pb.LabState:
        """See LabPort."""
        request = lab_pb.GetLabStateRequest()
        return await asked("lab", self._stub.GetLabState(request, timeout=READ_TIMEOUT_S))

    async def list_configs(self) -> Sequence[lab_types.Config]:
        """See LabPort."""
        configs: list[lab_types.Config] = []
        token = ""
        while True:
            request = lab_pb.ListConfigsRequest(page_size=_PAGE, page_token=token)
            response = await asked("lab", self._stub.ListConfigs(request, timeout=READ_TIMEOUT_S))
            configs.extend(response.configs)
            token = response.next_page_token
            if not token:
                return configs

    async def draft_translations(self, name: str, *, redraft: bool) -> lab_pb.DraftTranslationsResponse:
        """See LabPort."""
        request = lab_pb.DraftTranslationsRequest(name=name, redraft=redraft)
        return await asked("lab", self._stub.DraftTranslations(request, timeout=DRAFT_TIMEOUT_S))


class TrainerClient:
    """TrainerPort."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = TrainerServiceStub(channel)

    async def estimate(self, spec: trainer_types.TrainingSpec) -> trainer_pb.EstimateTrainingResponse:
        """See TrainerPort."""
        request = trainer_pb.EstimateTrainingRequest(spec=spec)
        return await asked("trainer", self._stub.EstimateTraining(request, timeout=SLOW_READ_TIMEOUT_S))

    async def get_job(self, name: str) -> trainer_types.TrainingJob:
        """See TrainerPort."""
        request = trainer_pb.GetTrainingJobRequest(name=name)
        return await asked("trainer", self._stub.GetTrainingJob(request, timeout=READ_TIMEOUT_S))

    async def get_gpu_host(self) -> trainer_types.GpuHost:
        """See TrainerPort."""
        request = trainer_pb.GetGpuHostRequest()
        return await asked("trainer", self._stub.GetGpuHost(request, timeout=READ_TIMEOUT_S))


class ActingClient:
    """ActingPort over one channel a service."""

    def __init__(self, channels: Callable[[str], grpc.aio.Channel]) -> None:
        self._channels = channels
        self._methods: dict[str, Any] = {}

    async def call(self, method: str, request: Message, grant: str, *, timeout_s: float) -> Message:
        """See ActingPort."""
        callable_ = self._methods.get(method)
        if callable_ is None:
            found = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
            callable_ = self._channels(audience_of(method)).unary_unary(
                method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
            )
            self._methods[method] = callable_
        metadata = grant_metadata(grant) if grant else ()
        answer: Message = await asked(
            audience_of(method), callable_(request, timeout=timeout_s, metadata=metadata)
        )
        return answer


class StopClient:
    """StopPort; made and used on the stop loop."""

    def __init__(self, channels: dict[str, grpc.aio.Channel]) -> None:
        self._stubs = {service: StopServiceStub(channel) for service, channel in channels.items()}

    async def stop(
        self, service: str, request: control_pb.StopRequest, *, timeout_s: float
    ) -> AsyncIterator[control_pb.StopResponse]:
        """See StopPort."""
        try:
            async for response in self._stubs[service].Stop(request, timeout=timeout_s):
                yield response
        except grpc.aio.AioRpcError as error:
            raise translated(service, error) from error

    async def renew_lease(
        self, service: str, request: control_pb.RenewLeaseRequest, *, timeout_s: float
    ) -> control_pb.RenewLeaseResponse:
        """See StopPort."""
        return await asked(service, self._stubs[service].RenewLease(request, timeout=timeout_s))


class OutboxClient:
    """OutboxPort."""

    def __init__(self, channels: dict[str, grpc.aio.Channel]) -> None:
        self._stubs = {service: OutboxServiceStub(channel) for service, channel in channels.items()}

    async def list_events(
        self, service: str, after_seq: int, page_size: int
    ) -> control_pb.ListOutboxEventsResponse:
        """See OutboxPort."""
        request = control_pb.ListOutboxEventsRequest(after_seq=after_seq, page_size=page_size)
        return await asked(service, self._stubs[service].ListOutboxEvents(request, timeout=READ_TIMEOUT_S))


async def close_all(channels: Sequence[grpc.aio.Channel]) -> None:
    """Closes channels on the loop on which they were made."""
    await asyncio.gather(*(channel.close() for channel in channels))

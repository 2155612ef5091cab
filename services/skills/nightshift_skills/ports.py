"""What the core asks of the other services. The gRPC side stands in `rpc/`; errors come as `Upstream`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from google.protobuf.message import Message

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import forgetting_pb2, tuning_pb2
from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb

# Services that act: they have a fence gate, work to stop, and an outbox.
ACTING_SERVICES = ("experience", "lab", "trainer")
# Services whose outboxes are sealed: these, and monitor, which takes people's word on incidents.
AUDITED_SERVICES = ("monitor", *ACTING_SERVICES)


class MonitorPort(Protocol):
    """What is true now."""

    async def get_idleness(self) -> monitor_types.Idleness:
        """Whether the machine is idle, and why."""
        ...

    async def get_status(self) -> monitor_types.Status:
        """Probes, GPUs, incidents, idleness."""
        ...

    def watch_status(self) -> AsyncIterator[monitor_pb.WatchStatusResponse]:
        """The state first, then each change."""
        ...

    async def record_activity(self, request: monitor_pb.RecordActivityRequest) -> None:
        """Passes on that a user was there."""
        ...


class ExperiencePort(Protocol):
    """What happened, and what it teaches."""

    async def get_state(self, project: str) -> experience_pb.ExperienceState:
        """Counts and watermarks of a project."""
        ...

    async def get_footprint(self, project: str, device: str) -> forgetting_pb2.DeviceFootprint:
        """What is stored of a device."""
        ...

    async def list_opportunities(self, project: str) -> Sequence[experience_types.Opportunity]:
        """Found opportunities, best first."""
        ...

    async def get_tuning(self, name: str) -> tuning_pb2.Tuning:
        """What a project lets be tuned, or the global switch."""
        ...


class LabPort(Protocol):
    """Changes to the platform, read only."""

    async def draft_proposal(self, request: lab_pb.DraftProposalRequest) -> lab_pb.DraftProposalResponse:
        """A draft that is stored nowhere."""
        ...

    async def list_proposals(self) -> Sequence[lab_types.Proposal]:
        """All proposals, newest first."""
        ...

    async def get_proposal(self, name: str) -> lab_types.Proposal:
        """One proposal."""
        ...

    async def diff_proposal(self, name: str) -> lab_pb.DiffProposalResponse:
        """Diff between a proposal and its nearest config."""
        ...

    async def get_promotion(self, name: str) -> lab_types.Promotion:
        """One promotion."""
        ...

    async def get_config(self, name: str) -> lab_types.Config:
        """One config of production's folder."""
        ...

    async def get_state(self) -> lab_pb.LabState:
        """Production's configs in numbers, and the lab's language model."""
        ...

    async def list_configs(self) -> Sequence[lab_types.Config]:
        """All configs of production's folder, by id."""
        ...

    async def draft_translations(self, name: str, *, redraft: bool) -> lab_pb.DraftTranslationsResponse:
        """A draft of what a config lacks; asks the language model where none is kept."""
        ...


class TrainerPort(Protocol):
    """Training and the GPU, read only."""

    async def estimate(self, spec: trainer_types.TrainingSpec) -> trainer_pb.EstimateTrainingResponse:
        """A spec with all values filled in, and what it would take."""
        ...

    async def get_job(self, name: str) -> trainer_types.TrainingJob:
        """One job."""
        ...

    async def get_gpu_host(self) -> trainer_types.GpuHost:
        """Memory of the GPU, and the models on it."""
        ...


class ActingPort(Protocol):
    """The way to effects: one call of one method under one grant."""

    async def call(self, method: str, request: Message, grant: str, *, timeout_s: float) -> Message:
        """Calls a method ("/package.Service/Method"); `grant` is "" for a read."""
        ...


class StopPort(Protocol):
    """Control ports of the acting services. Lives on the control thread's loop."""

    def stop(
        self, service: str, request: control_pb.StopRequest, *, timeout_s: float
    ) -> AsyncIterator[control_pb.StopResponse]:
        """Stops work and tells how it goes."""
        ...

    async def renew_lease(
        self, service: str, request: control_pb.RenewLeaseRequest, *, timeout_s: float
    ) -> control_pb.RenewLeaseResponse:
        """Opens the service's gate and renews leases for 3 s."""
        ...


class OutboxPort(Protocol):
    """Audit events of the other services."""

    async def list_events(
        self, service: str, after_seq: int, page_size: int
    ) -> control_pb.ListOutboxEventsResponse:
        """Events after a position, oldest first."""
        ...

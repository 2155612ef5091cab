"""Small real servers that keep the contracts of monitor, experience, lab and trainer.

Stores, grants, fences, stops, leases, outboxes and stored answers are the kit's; only what the services
know is made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import experience_service_pb2_grpc as experience_grpc
from nightshift.experience.v1 import forgetting_pb2, sessions_pb2, tuning_pb2
from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as monitor_grpc
from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.errors import Code, NightshiftError
from nightshift_kit.grants import FenceGate
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.context import current_call
from nightshift_kit.rpc.control import outbox_service
from nightshift_kit.rpc.stop import StopHub, Work
from nightshift_kit.storage import Database
from tests.support.servers import Serving, serving

PROJECT = "projects/default"
THEME = f"{PROJECT}/opportunities/lanterns"


class JobState(NightshiftError):
    code = Code.FAILED_PRECONDITION
    reason = "JOB_STATE"


class Unknown(NightshiftError):
    code = Code.NOT_FOUND
    reason = "UNKNOWN"


class ProtectedFile(NightshiftError):
    code = Code.PERMISSION_DENIED
    reason = "PROTECTED_FILE"


def stamp(instant: datetime | None = None) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(instant or datetime.now(UTC))
    return message


@dataclass
class MonitorStandIn(monitor_grpc.MonitorServiceServicer):
    """Idle when it is told so and `quiet_s` have passed since the last activity."""

    idle: bool = True
    platform_up: bool = True
    probe_up: bool = True
    quiet_s: float = 0.4
    activities: list[monitor_pb.RecordActivityRequest] = field(default_factory=list)
    last_activity: datetime | None = None
    quiet_until: datetime | None = None
    predicted_busy: datetime | None = None
    incidents: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # How often the whole status was asked for, which each tick does once.
    looks: int = 0

    def idleness(self) -> monitor_types.Idleness:
        now = datetime.now(UTC)
        remaining = timedelta()
        if self.last_activity is not None:
            remaining = max(timedelta(), self.last_activity + timedelta(seconds=self.quiet_s) - now)
        if self.quiet_until is not None:
            remaining = max(remaining, self.quiet_until - now)
        idle = self.idle and self.platform_up and not remaining
        answer = monitor_types.Idleness(idle=idle, platform_up=self.platform_up, since_time=stamp())
        answer.reasons.add(
            code="QUIET", allows_idle=not remaining, message=f"{remaining} of quiet are missing."
        )
        if not self.idle:
            answer.reasons.add(code="ACTIVITY", allows_idle=False, message="The test says so.")
        answer.quiet_remaining.FromTimedelta(remaining)
        if self.predicted_busy is not None:
            answer.predicted_busy_time.FromDatetime(self.predicted_busy)
        return answer

    def tell(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.changed.set()

    async def RecordActivity(self, request: Any, context: Any) -> Any:
        self.activities.append(request)
        self.last_activity = datetime.now(UTC)
        if request.HasField("quiet_until_time"):
            self.quiet_until = request.quiet_until_time.ToDatetime(tzinfo=UTC)
        self.changed.set()
        return monitor_pb.RecordActivityResponse()

    async def GetIdleness(self, request: Any, context: Any) -> Any:
        return self.idleness()

    async def GetStatus(self, request: Any, context: Any) -> Any:
        self.looks += 1
        status = monitor_types.Status(status_time=stamp(), idleness=self.idleness())
        probe = status.probes.add(name="probes/platform")
        probe.latest.state = monitor_types.PROBE_STATE_UP if self.probe_up else monitor_types.PROBE_STATE_DOWN
        for name in self.incidents:
            status.incidents.add(name=name)
        return status

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[Any]:
        seq = 0
        was: bool | None = None
        while True:
            idleness = self.idleness()
            if idleness.idle is not was:
                was = idleness.idle
                seq += 1
                yield monitor_pb.WatchStatusResponse(seq=seq, status=monitor_types.Status(idleness=idleness))
            self.changed.clear()
            try:
                async with asyncio.timeout(0.05):
                    await self.changed.wait()
            except TimeoutError:
                continue


class _Acting:
    """An acting service: database, outbox, and effects exactly once."""

    def __init__(self, name: str, db: Database, hub: StopHub) -> None:
        self.name = name
        self.db = db
        self.hub = hub
        self.outbox = Outbox(name)
        # What really happened, in order: (method, initiator). Appended inside the effect's transaction.
        self.effects: list[tuple[str, str]] = []
        # Delays an effect's transaction, and swallows its answer, once each.
        self.delay_s = 0.0
        self.lose_answers = 0

    async def effect(self, kind: str, subject: str, answer: Message) -> Any:
        effect = current_call().effect()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)

        def transaction(connection: sa.Connection) -> bytes:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            self.outbox.append(connection, kind=kind, actor=effect.actor, subject=subject, payload={})
            effect.finish(connection, answer.SerializeToString())
            self.effects.append((kind, effect.actor))
            return answer.SerializeToString()

        stored = await self.db.write(transaction)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Lost("the answer was lost on its way")
        return type(answer).FromString(stored)


class Lost(NightshiftError):
    code = Code.UNAVAILABLE
    reason = "LOST"


class ExperienceStandIn(_Acting, experience_grpc.ExperienceServiceServicer):
    """Counts that its acting methods bring down."""

    def __init__(self, db: Database, hub: StopHub) -> None:
        super().__init__("experience", db, hub)
        self.state = experience_pb.ExperienceState(run_count=1000, production_run_count=800)
        self.state.aggregate_time.GetCurrentTime()
        self.embed_s = 0.0
        self.tuning: dict[str, tuning_pb2.Tuning] = {}
        self.opportunities = [
            experience_types.Opportunity(
                name=THEME,
                kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
                label="old lanterns",
                keywords=["lantern", "wick", "brass"],
                nearest_configs=["farbhunger"],
                runs=61,
                best_fit=0.21,
                example_prompts=["a brass lantern of my own words"],
            )
        ]

    async def GetExperienceState(self, request: Any, context: Any) -> Any:
        return self.state

    async def ListOpportunities(self, request: Any, context: Any) -> Any:
        return experience_pb.ListOpportunitiesResponse(opportunities=self.opportunities)

    async def Aggregate(self, request: Any, context: Any) -> Any:
        answer = await self.effect(
            "experience.aggregated", request.parent, experience_pb.AggregateResponse(run_count=1000)
        )
        self.state.pending_aggregation_count = 0
        self.state.aggregate_time.GetCurrentTime()
        return answer

    async def EmbedPending(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(self.embed_s)
        done = min(request.limit or 512, self.state.pending_embedding_count)
        left = self.state.pending_embedding_count - done
        answer = await self.effect(
            "experience.embedded",
            request.parent,
            experience_pb.EmbedPendingResponse(embedded_count=done, remaining_count=left),
        )
        self.state.pending_embedding_count = left
        self.state.embedded_count += done
        return answer

    async def GetTuning(self, request: Any, context: Any) -> Any:
        return self.tuning.get(request.name) or tuning_pb2.Tuning(name=request.name, etag="0")

    async def UpdateTuning(self, request: Any, context: Any) -> Any:
        before = self.tuning.get(request.name)
        version = int(before.etag) + 1 if before is not None else 1
        after = tuning_pb2.Tuning(name=request.name, enabled=request.enabled, etag=str(version))
        answer = await self.effect("tuning.updated", request.name, after)
        self.tuning[request.name] = after
        return answer

    async def GetDeviceFootprint(self, request: Any, context: Any) -> Any:
        return forgetting_pb2.DeviceFootprint(run_count=3, session_count=1)

    async def ForgetDevice(self, request: Any, context: Any) -> Any:
        return await self.effect(
            "device.forgotten", request.parent, forgetting_pb2.ForgetDeviceResponse(run_count=3)
        )

    async def SummarizeSessions(self, request: Any, context: Any) -> Any:
        answer = await self.effect(
            "experience.summarized", request.parent, sessions_pb2.SummarizeSessionsResponse(run_count=9)
        )
        self.state.pending_session_count = 0
        return answer

    async def DetectOpportunities(self, request: Any, context: Any) -> Any:
        answer = await self.effect(
            "experience.detected",
            request.parent,
            experience_pb.DetectOpportunitiesResponse(opportunities=self.opportunities),
        )
        self.state.pending_detection_count = 0
        self.state.detect_time.GetCurrentTime()
        return answer


class LabStandIn(_Acting, lab_grpc.LabServiceServicer):
    """Proposals and promotions in memory."""

    def __init__(self, db: Database, hub: StopHub) -> None:
        super().__init__("lab", db, hub)
        self.proposals: dict[str, lab_types.Proposal] = {}
        self.promotions: dict[str, lab_types.Promotion] = {}
        self.text = "Look at it by candle light."

    async def DraftProposal(self, request: Any, context: Any) -> Any:
        draft = lab_pb.DraftProposalResponse(
            config_id="old_lanterns",
            templates=["configs/farbhunger"],
            drafted_by="composer",
            diff="+ lantern",
        )
        draft.content.update(
            {"pipeline": "text_transformation", "context": {"en": self.text}, "n": 0.7, "m": 2}
        )
        draft.report.valid = True
        return draft

    async def GetLabState(self, request: Any, context: Any) -> Any:
        return lab_pb.LabState(config_count=1, validate_time=stamp())

    async def GetConfig(self, request: Any, context: Any) -> Any:
        return lab_types.Config(name=request.name, digest="ab" * 32)

    async def ListProposals(self, request: Any, context: Any) -> Any:
        return lab_pb.ListProposalsResponse(proposals=list(self.proposals.values()))

    async def GetProposal(self, request: Any, context: Any) -> Any:
        if request.name not in self.proposals:
            raise Unknown("no such proposal")
        return self.proposals[request.name]

    async def DiffProposal(self, request: Any, context: Any) -> Any:
        return lab_pb.DiffProposalResponse(diff="+ lantern")

    async def CreateProposal(self, request: Any, context: Any) -> Any:
        proposal = lab_types.Proposal(
            name=f"proposals/{new_id()}",
            config_id=request.config_id,
            state=lab_types.PROPOSAL_STATE_VALIDATED,
            content=request.content,
            content_digest="cd" * 32,
            opportunity=request.opportunity,
            etag="1",
            create_time=stamp(),
            update_time=stamp(),
        )
        proposal.report.valid = True
        answer = await self.effect("proposal.created", proposal.name, proposal)
        self.proposals[answer.name] = answer
        return answer

    async def RejectProposal(self, request: Any, context: Any) -> Any:
        proposal = lab_types.Proposal()
        proposal.CopyFrom(self.proposals[request.name])
        proposal.state = lab_types.PROPOSAL_STATE_REJECTED
        answer = await self.effect("proposal.rejected", proposal.name, proposal)
        self.proposals[answer.name] = answer
        return answer

    async def PromoteProposal(self, request: Any, context: Any) -> Any:
        if request.path:
            raise ProtectedFile("that file is nobody's to change")
        promotion = lab_types.Promotion(
            name=f"promotions/{new_id()}",
            kind=lab_types.PROMOTION_KIND_PROMOTE,
            proposal=request.name,
            path="schemas/configs/interception/old_lanterns.json",
            digest=request.content_digest,
        )
        answer = await self.effect("config.promoted", promotion.name, promotion)
        self.promotions[answer.name] = answer
        return answer

    async def RollbackPromotion(self, request: Any, context: Any) -> Any:
        promotion = lab_types.Promotion(
            name=f"promotions/{new_id()}", kind=lab_types.PROMOTION_KIND_ROLLBACK, rolls_back=request.name
        )
        return await self.effect("config.rolled_back", promotion.name, promotion)

    async def GetPromotion(self, request: Any, context: Any) -> Any:
        return self.promotions[request.name]


class TrainerStandIn(_Acting, trainer_grpc.TrainerServiceServicer):
    """One job whose steps a task counts; stops like a worker, after `exit_s`."""

    def __init__(self, db: Database, hub: StopHub) -> None:
        super().__init__("trainer", db, hub)
        self.jobs: dict[str, trainer_types.TrainingJob] = {}
        self.workers: dict[str, asyncio.Task[None]] = {}
        self.exit_s = 0.02
        self.step_s = 0.02
        self.fits = True
        # Roomy: nothing to clean up.
        self.gpu_host = trainer_types.GpuHost(name="gpuHost", total_bytes=2**30, free_bytes=2**29)
        self.gpu_looks = 0
        self.loop = asyncio.get_running_loop()

    async def EstimateTraining(self, request: Any, context: Any) -> Any:
        spec = trainer_types.TrainingSpec()
        spec.CopyFrom(request.spec)
        spec.dataset_digest = "dd" * 32
        spec.base_model_digest = "bb" * 32
        spec.max_steps = spec.max_steps or 5
        spec.learning_rate = spec.learning_rate or 2e-4
        return trainer_pb.EstimateTrainingResponse(
            spec=spec,
            memory_bytes=2**30,
            total_steps=spec.max_steps,
            row_count=9,
            fits=self.fits,
            detail="roomy",
        )

    async def GetGpuHost(self, request: Any, context: Any) -> Any:
        self.gpu_looks += 1
        return self.gpu_host

    async def GetTrainingJob(self, request: Any, context: Any) -> Any:
        return self.job(request.name)

    async def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        grant = current_call().grant
        assert grant is not None
        job = trainer_types.TrainingJob(
            name=f"trainingJobs/{new_id()}",
            state=trainer_types.TRAINING_JOB_STATE_RUNNING,
            spec=request.spec,
            skill_run=grant.skill_run,
            total_steps=request.spec.max_steps,
        )
        answer = await self.effect("job.created", job.name, job)
        if answer.name not in self.jobs:
            self.jobs[answer.name] = answer
            self.work(answer.name, grant)
        return answer

    async def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        grant = current_call().grant
        assert grant is not None
        job = self.job(request.name)
        if job.state != trainer_types.TRAINING_JOB_STATE_PAUSED:
            raise JobState("the job is not paused")
        resumed = trainer_types.TrainingJob()
        resumed.CopyFrom(job)
        resumed.state = trainer_types.TRAINING_JOB_STATE_RUNNING
        resumed.pause_cause = ""
        answer = await self.effect("job.resumed", job.name, resumed)
        if job.state == trainer_types.TRAINING_JOB_STATE_PAUSED:
            job.CopyFrom(answer)
            self.work(job.name, grant)
        return answer

    async def PauseTrainingJob(self, request: Any, context: Any) -> Any:
        job = self.job(request.name)
        await self.halt(job, "person")
        return await self.effect("job.paused", job.name, job)

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        job = self.job(request.name)
        await self.halt(job, "person")
        job.state = trainer_types.TRAINING_JOB_STATE_CANCELLED
        return await self.effect("job.cancelled", job.name, job)

    def job(self, name: str) -> trainer_types.TrainingJob:
        if name not in self.jobs:
            raise Unknown("no such job")
        return self.jobs[name]

    async def halt(self, job: trainer_types.TrainingJob, cause: str) -> None:
        worker = self.workers.get(job.name)
        if worker is not None and not worker.done():
            worker.cancel(cause)
            await asyncio.wait([worker])
        job.state = trainer_types.TRAINING_JOB_STATE_PAUSED
        job.pause_cause = cause

    def work(self, name: str, grant: Any) -> None:
        job = self.jobs[name]

        def stop(cause: str) -> None:
            self.loop.call_soon_threadsafe(self.workers[name].cancel, cause)

        def kill() -> None:
            self.loop.call_soon_threadsafe(killed.set)

        killed = asyncio.Event()
        work = Work(
            name=f"{name} worker",
            skill_run=grant.skill_run,
            fence=grant.fence,
            on_purpose=grant.on_purpose,
            stop=stop,
            kill=kill,
            leased=True,
        )
        registration = self.hub.register(work)

        async def steps() -> None:
            try:
                while job.step < job.total_steps:
                    await asyncio.sleep(self.step_s)
                    job.step += 1
                job.state = trainer_types.TRAINING_JOB_STATE_SUCCEEDED
                job.adapter = "adapters/lantern"
                job.loss = 0.5
            except asyncio.CancelledError as stopped:
                try:
                    async with asyncio.timeout(self.exit_s):
                        await killed.wait()
                except TimeoutError:
                    pass
                job.state = trainer_types.TRAINING_JOB_STATE_PAUSED
                job.pause_cause = stopped.args[0] if stopped.args else "user"
                job.pause_count += 1
            finally:
                registration.done()

        self.workers[name] = asyncio.create_task(steps())


@dataclass
class Surroundings:
    """Everything that skills talks to."""

    home: Path
    monitor: MonitorStandIn
    experience: ExperienceStandIn
    lab: LabStandIn
    trainer: TrainerStandIn
    serving: dict[str, Serving]

    @property
    def addresses(self) -> dict[str, str]:
        return {name: one.address for name, one in self.serving.items()}

    @property
    def control_addresses(self) -> dict[str, str]:
        return {
            name: f"127.0.0.1:{one.control_port}" for name, one in self.serving.items() if one.control_port
        }


@asynccontextmanager
async def surroundings(home: Path) -> AsyncIterator[Surroundings]:
    """All four, on ephemeral ports, until the block ends."""
    async with AsyncExitStack() as stack:
        monitor_class: Any = MonitorStandIn
        monitor = monitor_class()
        monitor_db = stack.enter_context(
            Database(f"sqlite:///{home / 'monitor.db'}", migrations="nightshift_skills", name="monitor")
        )
        monitor_db.migrate()
        running = {
            "monitor": await stack.enter_async_context(
                serving(
                    "monitor",
                    [
                        (
                            monitor_grpc.add_MonitorServiceServicer_to_server,
                            monitor,
                            "nightshift.monitor.v1.MonitorService",
                        )
                    ],
                    home=home,
                    control=[outbox_service(monitor_db, Outbox("monitor"))],
                )
            )
        }
        made: dict[str, Any] = {}
        acting: tuple[tuple[str, Any, Any, str], ...] = (
            (
                "experience",
                ExperienceStandIn,
                experience_grpc.add_ExperienceServiceServicer_to_server,
                "nightshift.experience.v1.ExperienceService",
            ),
            ("lab", LabStandIn, lab_grpc.add_LabServiceServicer_to_server, "nightshift.lab.v1.LabService"),
            (
                "trainer",
                TrainerStandIn,
                trainer_grpc.add_TrainerServiceServicer_to_server,
                "nightshift.trainer.v1.TrainerService",
            ),
        )
        for name, servicer_class, add, full_name in acting:
            # The schema of skills has the kit's tables, and that is all that these need.
            db = stack.enter_context(
                Database(f"sqlite:///{home / name}.db", migrations="nightshift_skills", name=name)
            )
            db.migrate()
            hub = StopHub(FenceGate(db, SystemClock()), SystemClock())
            made[name] = servicer_class(db, hub)
            running[name] = await stack.enter_async_context(
                serving(
                    name,
                    [(add, made[name], full_name)],
                    home=home,
                    db=db,
                    hub=hub,
                    open_gate=False,
                    grace_s=0.2,
                )
            )
        found = Surroundings(home, monitor, made["experience"], made["lab"], made["trainer"], running)
        try:
            yield found
        finally:
            for worker in found.trainer.workers.values():
                worker.cancel("test over")
            await asyncio.gather(*found.trainer.workers.values(), return_exceptions=True)

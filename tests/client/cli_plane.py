"""Servicers for the command's tests: they answer with what the test put there and remember what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nightshift.experience.v1 import experience_service_pb2, experience_service_pb2_grpc
from nightshift.experience.v1 import profiles_pb2 as profile_types
from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.experience.v1 import tuning_pb2 as tuning_types
from nightshift.lab.v1 import lab_service_pb2, lab_service_pb2_grpc
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.monitor.v1 import monitor_service_pb2, monitor_service_pb2_grpc
from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2, skills_service_pb2_grpc
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from nightshift.type.v1 import policy_pb2
from nightshift_kit.errors import Code, FieldInvalid, GlobalLock, NightshiftError, NotFound
from tests.client.plane import Plane, only

# What a child might type to see what happens: an override, zero width, an escape sequence, rich's markup.
HOSTILE = "ein \u202eBoot\u200b \x1b[31mrot\x07 [bold red]x[/] ﷽ 👩\u200d🚀\nzweite Zeile"


ADA = "spiffe://nightshift.local/person/admin/0"


class UserActive(NightshiftError):
    """A user is here."""

    code = Code.UNAVAILABLE
    reason = "USER_ACTIVE"


def plan(**fields: Any) -> types.Plan:
    """A plan of the tests."""
    made = types.Plan(
        skill="skills/propose_config",
        subject="themes/boats",
        summary="Store a config for boats.",
        diff="--- a\n+++ b\n-old \u202eline\n+new line\n",
        evidence=["69 runs are about it."],
        reasoning=f"Because {HOSTILE}",
        reversibility=types.REVERSIBILITY_REVERSIBLE,
        digest="d" * 64,
        **fields,
    )
    made.calls.add(method="/nightshift.lab.v1.LabService/CreateProposal", arguments_digest="a" * 64)
    return made


class Skills(skills_service_pb2_grpc.SkillsServiceServicer):
    """One skill of each tier."""

    METHODS = (
        "PlanSkill",
        "GetSkill",
        "ListSkills",
        "ListPlugins",
        "RunSkill",
        "GetSkillRun",
        "ListApprovals",
        "GetApproval",
        "DecideApproval",
        "GetLock",
        "EngageLock",
        "GetSchedule",
        "UpdateSchedule",
        "VerifyAudit",
        "WatchApprovals",
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.nothing_to_do = ""
        self.locked = False
        self.looks = 0
        self.audit = skills_service_pb2.VerifyAuditResponse(valid=True, event_count=41, checkpoint_count=7)

    def skill(self, name: str) -> types.Skill:
        tiers = {
            "auto": policy_pb2.TIER_AUTO,
            "confirm": policy_pb2.TIER_CONFIRM,
            "manual": policy_pb2.TIER_MANUAL,
        }
        tier = tiers.get(name.rpartition("/")[2], policy_pb2.TIER_MANUAL)
        return types.Skill(name=name, tier=tier, description="Does what it says.", triggers=["command"])

    async def PlanSkill(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.name == "skills/unknown":
            raise NotFound("There is no skill of that name.")
        if self.nothing_to_do:
            return skills_service_pb2.PlanSkillResponse(nothing_to_do=self.nothing_to_do)
        return skills_service_pb2.PlanSkillResponse(plan=plan())

    async def GetSkill(self, request: Any, context: Any) -> types.Skill:
        return self.skill(request.name)

    async def ListSkills(self, request: Any, context: Any) -> Any:
        return skills_service_pb2.ListSkillsResponse(
            skills=[self.skill(f"skills/{tier}") for tier in ("auto", "confirm")]
        )

    async def ListPlugins(self, request: Any, context: Any) -> Any:
        answer = skills_service_pb2.ListPluginsResponse()
        answer.plugins.add(
            name="tidy",
            skill="skills/plugin_tidy",
            state=types.PLUGIN_STATE_DISABLED,
            detail="To enable it: …",
            distribution="tidy",
            version="1.0",
            digest="d" * 64,
            description=HOSTILE,
            methods=["/nightshift.lab.v1.LabService/CreateProposal"],
        )
        answer.layers.add(name="seccomp", present=True)
        answer.layers.add(name="landlock", waived=True, detail="Function not implemented")
        answer.layers.add(name="cgroup", detail="not delegated to us")
        return answer

    async def RunSkill(self, request: Any, context: Any) -> types.SkillRun:
        self.asked.append(request)
        if self.locked:
            raise GlobalLock("The global lock is on.")
        if request.comment == "busy":
            raise UserActive("A user is here.", retry_after_s=2)
        waits = not request.plan_digest
        state = types.SKILL_RUN_STATE_AWAITING_APPROVAL if waits else types.SKILL_RUN_STATE_RUNNING
        return types.SkillRun(
            name="skillRuns/1",
            skill=request.name,
            state=state,
            plan=plan(),
            approval="approvals/1" if waits else "",
        )

    async def GetSkillRun(self, request: Any, context: Any) -> types.SkillRun:
        self.looks += 1
        done = self.looks >= 2
        state = types.SKILL_RUN_STATE_SUCCEEDED if done else types.SKILL_RUN_STATE_RUNNING
        return types.SkillRun(
            name=request.name, skill="skills/x", state=state, plan=plan(), outcome="It is stored."
        )

    def approval(self) -> types.Approval:
        return types.Approval(
            name="approvals/1",
            state=types.APPROVAL_STATE_PENDING,
            plan=plan(),
            nonce="n1",
            skill_run="skillRuns/1",
        )

    async def ListApprovals(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return skills_service_pb2.ListApprovalsResponse(approvals=[self.approval()])

    async def GetApproval(self, request: Any, context: Any) -> types.Approval:
        return self.approval()

    async def DecideApproval(self, request: Any, context: Any) -> types.Approval:
        self.asked.append(request)
        decided = self.approval()
        decided.state = types.APPROVAL_STATE_APPROVED
        return decided

    async def GetLock(self, request: Any, context: Any) -> types.Lock:
        return types.Lock(engaged=self.locked, actor="somebody", comment=HOSTILE)

    async def EngageLock(self, request: Any, context: Any) -> types.Lock:
        self.locked = True
        return types.Lock(engaged=True, actor=ADA, comment=request.comment)

    async def GetSchedule(self, request: Any, context: Any) -> skills_service_pb2.Schedule:
        schedule = skills_service_pb2.Schedule(open=True, fence=7)
        schedule.budget.runs = 41
        entry = schedule.entries.add(skill="skills/confirm", paused=True, paused_by=ADA)
        entry.reasons.append("Its triggers were paused.")
        return schedule

    async def UpdateSchedule(self, request: Any, context: Any) -> types.ScheduleEntry:
        self.asked.append(request)
        return types.ScheduleEntry(
            skill=request.skill, paused=request.paused, paused_by=ADA if request.paused else ""
        )

    async def VerifyAudit(self, request: Any, context: Any) -> skills_service_pb2.VerifyAuditResponse:
        return self.audit

    async def WatchApprovals(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for seq in (1, 2, 3):
            yield skills_service_pb2.WatchApprovalsResponse(seq=seq, approval=self.approval())


class Lab(lab_service_pb2_grpc.LabServiceServicer):
    """One proposal."""

    METHODS = ("ListProposals", "GetProposal", "DiffProposal", "ListConfigReports", "GetConfigReport")

    def proposal(self) -> lab_types.Proposal:
        made = lab_types.Proposal(
            name="proposals/1", config_id="boats", state=lab_types.PROPOSAL_STATE_VALIDATED
        )
        made.content.update({"name": {"en": HOSTILE}})
        return made

    async def ListProposals(self, request: Any, context: Any) -> Any:
        return lab_service_pb2.ListProposalsResponse(proposals=[self.proposal()])

    async def GetProposal(self, request: Any, context: Any) -> lab_types.Proposal:
        if request.name != "proposals/1":
            raise FieldInvalid.at("name", "there is none \x1b[2J")
        return self.proposal()

    async def DiffProposal(self, request: Any, context: Any) -> Any:
        return lab_service_pb2.DiffProposalResponse(diff="+a\n-b\n", config="configs/x")

    def report(self) -> lab_types.ConfigReport:
        made = lab_types.ConfigReport(name="configs/boats", path=f"interception/{HOSTILE}.json", valid=True)
        made.findings.add(
            level="id", severity=lab_types.SEVERITY_WARNING, reason="NAME_IS_ID", message=HOSTILE
        )
        for field in ("name", "description"):
            made.missing.add(field=field, languages=["ar", "bg", "es", "fr", "he", "ko", "tr", "uk"])
        return made

    async def ListConfigReports(self, request: Any, context: Any) -> Any:
        return lab_service_pb2.ListConfigReportsResponse(config_reports=[self.report()])

    async def GetConfigReport(self, request: Any, context: Any) -> lab_types.ConfigReport:
        return self.report()


class Trainer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """One training that never ends by itself."""

    METHODS = ("ListTrainingJobs", "WatchTrainingJob", "ListAdapters", "GetGpuHost")

    def __init__(self) -> None:
        self.endless = False

    def job(self) -> trainer_types.TrainingJob:
        return trainer_types.TrainingJob(
            name="trainingJobs/1",
            state=trainer_types.TRAINING_JOB_STATE_RUNNING,
            step=3,
            total_steps=10,
            loss=1.5,
        )

    async def GetGpuHost(self, request: Any, context: Any) -> trainer_types.GpuHost:
        host = trainer_types.GpuHost(
            name="gpuHost",
            total_bytes=100 * 2**30,
            free_bytes=10 * 2**30,
            foreign_bytes=2**30,
            reserve_bytes=2**30,
            form=trainer_types.GPU_HOST_FORM_NEW,
        )
        old = host.models.add(vram_bytes=20 * 2**30, use_known=True, unloadable=True)
        old.model.backend, old.model.model = "diffusers", "sd35 \u202e[bold]x[/]"
        old.last_used_time.seconds = 1
        busy = host.models.add(vram_bytes=2**30, use_known=True, in_use=2)
        busy.model.backend, busy.model.model = "mmaudio", "sounds"
        quiet = host.models.add(vram_bytes=2**30, unloadable=True)
        quiet.model.backend, quiet.model.model = "ollama", "qwen3:4b"
        wanted = host.preload_models.add(vram_bytes=2**30, installed=True)
        wanted.model.backend, wanted.model.model = "ollama", "gemma3:1b"
        host.problems.add(source="ollama", reason="GPU_HOST_UNAVAILABLE", message="no answer \x1b[2J")
        return host

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        return trainer_service_pb2.ListTrainingJobsResponse(training_jobs=[self.job()])

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        return trainer_service_pb2.ListAdaptersResponse(
            adapters=[trainer_types.Adapter(name="adapters/a", loss=1.0)]
        )

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for step in range(1, 4):
            point = trainer_types.ProgressPoint(
                seq=step, step=step, total_steps=10, loss=2.0, tokens_per_second=100, phase="training"
            )
            yield trainer_service_pb2.WatchTrainingJobResponse(training_job=self.job(), points=[point])
        while self.endless:
            await asyncio.sleep(0.1)


class Runs(experience_service_pb2_grpc.ExperienceServiceServicer):
    """Two runs, one of them hostile."""

    METHODS = (
        "ImportRuns",
        "WatchImportJob",
        "ListRuns",
        "ExportRuns",
        "SearchRuns",
        "ListConfigPerformance",
        "GetProfile",
        "ListRecommendations",
        "PredictRunCost",
        "GetTuning",
        "ListTuningOutcomes",
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fails = False

    def runs(self) -> list[experience_types.Run]:
        return [
            experience_types.Run(name="projects/default/runs/run_1", prompt=HOSTILE, seed=2**53 + 1),
            experience_types.Run(name="projects/default/runs/run_2", prompt="ein Haus"),
        ]

    async def ImportRuns(self, request: Any, context: Any) -> experience_types.ImportJob:
        self.asked.append(request)
        return experience_types.ImportJob(name="projects/default/importJobs/1", directory=request.directory)

    async def WatchImportJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for seq in range(1, 4):
            ended = (
                experience_types.IMPORT_JOB_STATE_FAILED
                if self.fails
                else experience_types.IMPORT_JOB_STATE_SUCCEEDED
            )
            state = ended if seq == 3 else experience_types.IMPORT_JOB_STATE_RUNNING
            job = experience_types.ImportJob(
                name=request.name, state=state, found_count=30, scanned_count=10 * seq
            )
            yield experience_service_pb2.WatchImportJobResponse(seq=seq, import_job=job)

    async def ListRuns(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return experience_service_pb2.ListRunsResponse(runs=self.runs(), next_page_token="more")

    async def ExportRuns(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for run in self.runs():
            yield experience_service_pb2.ExportRunsResponse(runs=[run])

    async def SearchRuns(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return experience_service_pb2.SearchRunsResponse(
            hits=[experience_service_pb2.SearchHit(run=self.runs()[0], score=0.5)]
        )

    async def ListConfigPerformance(self, request: Any, context: Any) -> Any:
        rate = experience_types.Rate(count=1, total=10, value=0.1, lower=0.02, upper=0.4)
        row = experience_types.ConfigPerformance(config="kartenhaus", production_runs=10, favorite_rate=rate)
        return experience_service_pb2.ListConfigPerformanceResponse(config_performance=[row])

    async def GetProfile(self, request: Any, context: Any) -> Any:
        cost = profile_types.CostStatistics(runs=8, min_usd=0.5, median_usd=0.8, mean_usd=0.9, max_usd=1.2)
        group = profile_types.GroupStatistics(
            key="3loop",
            runs=8,
            cost=cost,
            qa_pass_rate=experience_types.Rate(count=6, total=8, value=0.75),
            mean_rounds=2.5,
            max_rounds=4,
            score=0.81,
        )
        return profile_types.Profile(
            name=request.name,
            runs=8,
            sufficient_data=True,
            modes=[group],
            strategies=[profile_types.GroupStatistics(key=HOSTILE, runs=1, cost=cost)],
            total=group,
            preferred_mode="3loop",
            rounds_distribution=[profile_types.RoundsCount(rounds=2, runs=8)],
            trend=profile_types.Trend(runs=5, quality_change=-0.2, cost_change=0.1, worse_probability=0.6),
            left_out=[experience_types.Count(key="COST_IMPLAUSIBLE", count=1)],
            left_out_runs=[
                profile_types.LeftOutRun(run="projects/default/runs/run_9", reason="COST_IMPLAUSIBLE")
            ],
        )

    async def ListRecommendations(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        found = profile_types.Recommendation(
            category=profile_types.RECOMMENDATION_CATEGORY_MODE,
            current_value="2loop",
            recommended_value="3loop",
            explanation=f"Because {HOSTILE}",
            confidence=profile_types.CONFIDENCE_MEDIUM,
            estimated_impact=profile_types.Impact(cost_usd=-0.4, cost_percent=-33.3, quality_points=4.0),
        )
        return profile_types.ListRecommendationsResponse(
            recommendations=[found], settings=request.settings, runs=8
        )

    async def GetTuning(self, request: Any, context: Any) -> Any:
        return tuning_types.Tuning(
            name=request.name,
            enabled=True,
            apply_safely=True,
            min_runs_for_recommendations=5,
            confidence_threshold=profile_types.CONFIDENCE_MEDIUM,
            etag="3",
        )

    async def ListTuningOutcomes(self, request: Any, context: Any) -> Any:
        outcome = tuning_types.TuningOutcome(
            field="strategy",
            original_value="baseline",
            tuned_value=HOSTILE,
            state=tuning_types.TUNING_STATE_REVERTED,
            tuned=profile_types.GroupStatistics(runs=9),
            worse_probability=0.91,
        )
        return tuning_types.ListTuningOutcomesResponse(tuning_outcomes=[outcome])

    async def PredictRunCost(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return profile_types.RunCostPrediction(
            median_usd=0.8, lower_usd=0.05, upper_usd=1.2, level=0.6, runs=4, basis="mode 3loop"
        )


class Monitor(monitor_service_pb2_grpc.MonitorServiceServicer):
    """Idle, with one incident, and a week that knows Tuesday mornings."""

    METHODS = (
        "GetStatus",
        "GetIdleness",
        "GetActivityProfile",
        "ListActivity",
        "ListGpus",
        "ListIncidents",
        "GetIncident",
        "AcknowledgeIncident",
        "ResolveIncident",
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.incident = monitor_types.Incident(
            name="incidents/01900000-0000-7000-8000-000000000000",
            probe="probes/platform",
            state=monitor_types.INCIDENT_STATE_OPEN,
            worst_state=monitor_types.PROBE_STATE_DOWN,
            detail=f"connection refused {HOSTILE}",
            flap_count=3,
        )

    async def ListIncidents(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return monitor_service_pb2.ListIncidentsResponse(incidents=[self.incident])

    async def GetIncident(self, request: Any, context: Any) -> Any:
        return self.incident

    async def AcknowledgeIncident(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.incident.state = monitor_types.INCIDENT_STATE_ACKNOWLEDGED
        self.incident.acknowledger = "person/admin/1000"
        self.incident.acknowledge_comment = request.comment
        return self.incident

    async def ResolveIncident(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.incident.state = monitor_types.INCIDENT_STATE_RESOLVED
        self.incident.resolve_time.seconds = 1
        return self.incident

    async def ListGpus(self, request: Any, context: Any) -> Any:
        card = monitor_types.Gpu(
            display_name="NVIDIA RTX PRO 6000 Blackwell Workstation",
            total_bytes=96 * 2**30,
            used_bytes=22 * 2**30,
            utilization_percent=37,
            processes=[monitor_types.GpuProcess(pid=42, used_bytes=2**30, kind="compute")],
        )
        lost = monitor_types.Gpu(index=1, detail="GPU is lost", failed=True)
        return monitor_service_pb2.ListGpusResponse(gpus=[card, lost])

    async def GetActivityProfile(self, request: Any, context: Any) -> Any:
        profile = monitor_types.ActivityProfile(time_zone="Europe/Berlin", busy_probability=0.5)
        profile.first_time.seconds = 1_700_000_000
        profile.predicted_busy_time.seconds = 1_800_000_000
        for number in range(168):
            weekday, hour = divmod(number, 24)
            probability = 1.0 if weekday == 1 and 9 <= hour < 13 else 0.0
            profile.slots.add(weekday=weekday + 1, hour=hour, probability=probability)
        return profile

    async def ListActivity(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        answer = monitor_service_pb2.ListActivityResponse()
        hour = answer.activity_hours.add(activity_count=120, generation_count=7)
        hour.start_time.seconds = 1_700_000_000
        return answer

    async def GetIdleness(self, request: Any, context: Any) -> monitor_types.Idleness:
        reason = monitor_types.IdlenessReason(code="QUIET", allows_idle=True, message="Quiet for 5 s.")
        return monitor_types.Idleness(idle=True, platform_up=True, reasons=[reason])

    async def GetStatus(self, request: Any, context: Any) -> monitor_types.Status:
        return monitor_types.Status(idleness=await self.GetIdleness(None, None), gpu_detail="no GPU")


class CommandPlane:
    """All five services as the command meets them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.skills = Skills()  # type: ignore[abstract]
        self.lab = Lab()  # type: ignore[abstract]
        self.trainer = Trainer()  # type: ignore[abstract]
        self.runs = Runs()  # type: ignore[abstract]
        self.monitor = Monitor()  # type: ignore[abstract]
        self._plane = Plane(home)

    def start(self) -> None:
        """Listens and writes endpoints.json."""
        adders: dict[str, tuple[Any, Any, str]] = {
            "skills": (
                skills_service_pb2_grpc.add_SkillsServiceServicer_to_server,
                self.skills,
                "skills.v1.SkillsService",
            ),
            "lab": (lab_service_pb2_grpc.add_LabServiceServicer_to_server, self.lab, "lab.v1.LabService"),
            "trainer": (
                trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
                self.trainer,
                "trainer.v1.TrainerService",
            ),
            "experience": (
                experience_service_pb2_grpc.add_ExperienceServiceServicer_to_server,
                self.runs,
                "experience.v1.ExperienceService",
            ),
            "monitor": (
                monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server,
                self.monitor,
                "monitor.v1.MonitorService",
            ),
        }
        self._plane.start(
            **{
                name: (only(add, *servicer.METHODS), servicer, f"nightshift.{full_name}")
                for name, (add, servicer, full_name) in adders.items()
            }
        )

    def close(self) -> None:
        """Ends everything."""
        self._plane.close()

"""The core's things as messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.type.v1 import error_pb2, policy_pb2
from nightshift_kit.audit.chain import SealedRow
from nightshift_kit.audit.export import export_line
from nightshift_skills.approvals import Approval
from nightshift_skills.budgets import Left
from nightshift_skills.plans import NothingToDo, Plan
from nightshift_skills.plugins.host import Listed
from nightshift_skills.plugins.layers import Layers
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run
from nightshift_skills.schedule import Entry, Situation
from nightshift_skills.sealer import AuditReport
from nightshift_skills.skill import Skill
from nightshift_skills.store.plane import Lock, Preemption


def timestamp(instant: datetime | None) -> Timestamp | None:
    """An instant; None stays absent."""
    if instant is None:
        return None
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def duration_s(span_s: float) -> Duration:
    """A span of seconds."""
    return duration_ns(round(span_s * 1e9))


def duration_ns(span_ns: int) -> Duration:
    """A span of nanoseconds."""
    message = Duration()
    message.FromNanoseconds(span_ns)
    return message


def struct(values: Mapping[str, Any]) -> Struct:
    """A JSON object."""
    return json_format.ParseDict(dict(values), Struct())


def skill(skill: Skill, registry: Registry) -> types.Skill:
    """A skill."""
    return types.Skill(
        name=skill.name,
        tier=policy_pb2.Tier.ValueType(skill.tier.value),
        description=skill.description,
        triggers=skill.triggers,
        cooldown=duration_s(skill.cooldown_s),
        digest=registry.digest(skill.id),
        methods=skill.methods,
        parameters_schema=json.dumps(skill.parameters.model_json_schema(), sort_keys=True),
    )


def plugins(listed: Iterable[Listed], layers: Layers) -> pb.ListPluginsResponse:
    """Plug-ins and layers."""
    return pb.ListPluginsResponse(
        plugins=map(_plugin, listed),
        layers=[
            types.SandboxLayer(
                name=layer.name, present=not layer.problem, waived=layer.waived, detail=layer.problem
            )
            for layer in layers.all
        ],
    )


def _plugin(entry: Listed) -> types.Plugin:
    declared = entry.manifest
    return types.Plugin(
        name=entry.name,
        skill=entry.skill,
        state=types.PluginState.Value(f"PLUGIN_STATE_{entry.state}"),
        detail=entry.detail,
        distribution=entry.distribution,
        version=entry.version,
        digest=entry.digest,
        pinned_digest=entry.pinned,
        tier=policy_pb2.Tier.Value(f"TIER_{declared.tier}") if declared else policy_pb2.TIER_UNSPECIFIED,
        description=declared.description if declared else "",
        reads=declared.reads if declared else (),
        methods=declared.methods if declared else (),
    )


def plan(plan: Plan) -> types.Plan:
    """A plan."""
    return types.Plan(
        skill=plan.skill,
        subject=plan.subject,
        summary=plan.summary,
        calls=[
            types.PlannedCall(
                method=call.method,
                arguments=struct(call.arguments),
                arguments_digest=call.arguments_digest,
            )
            for call in plan.calls
        ],
        base_versions=plan.base_versions,
        limits=plan.limits,
        diff=plan.diff,
        cost_usd=plan.cost_usd,
        vram_bytes=plan.vram_bytes,
        duration=duration_s(plan.duration_s) if plan.duration_s else None,
        reversibility=types.Reversibility.Value(f"REVERSIBILITY_{plan.reversibility.value}"),
        evidence=plan.evidence,
        reasoning=plan.reasoning,
        digest=plan.digest,
    )


def planned(plan_or_nothing: Plan | NothingToDo) -> pb.PlanSkillResponse:
    """Answer to a dry run."""
    if isinstance(plan_or_nothing, NothingToDo):
        return pb.PlanSkillResponse(nothing_to_do=plan_or_nothing.reason)
    return pb.PlanSkillResponse(plan=plan(plan_or_nothing))


def run(run: Run, preemptions: Sequence[Preemption] = ()) -> types.SkillRun:
    """A run, with the pre-emptions that stopped it."""
    return types.SkillRun(
        name=f"skillRuns/{run.id}",
        skill=f"skills/{run.skill}",
        state=types.SkillRunState.Value(f"SKILL_RUN_STATE_{run.state.value}"),
        plan=plan(run.plan),
        initiator=run.initiator,
        approval=f"approvals/{run.approval}" if run.approval else "",
        on_purpose=run.on_purpose,
        create_time=timestamp(run.create_time),
        start_time=timestamp(run.start_time),
        end_time=timestamp(run.end_time),
        done_calls=run.done_calls,
        outcome=run.outcome,
        results=[struct(result) for result in run.results],
        failure=error_pb2.Failure(
            reason=run.failure.reason, message=run.failure.message, metadata=run.failure.metadata
        )
        if run.failure
        else None,
        preemption_count=run.preemption_count,
        preemptions=map(preemption, preemptions),
        standing_approval=f"standingApprovals/{run.standing}" if run.standing else "",
    )


def approval(approval: Approval) -> types.Approval:
    """An approval."""
    return types.Approval(
        name=f"approvals/{approval.id}",
        state=types.ApprovalState.Value(f"APPROVAL_STATE_{approval.state.value}"),
        plan=plan(approval.plan),
        skill_run=f"skillRuns/{approval.run}",
        nonce=approval.nonce,
        create_time=timestamp(approval.create_time),
        expire_time=timestamp(approval.expire_time),
        decide_time=timestamp(approval.decide_time),
        decider=approval.decider,
        comment=approval.comment,
    )


def schedule(
    situation: Situation, entries: list[Entry], left: Left, *, is_open: bool, fence: int
) -> pb.Schedule:
    """The schedule."""
    return pb.Schedule(
        schedule_time=timestamp(situation.now),
        open=situation.quiet and is_open,
        reasons=situation.reasons(),
        entries=map(entry, entries),
        fence=fence,
        budget=budget_left(left),
        predicted_busy_time=timestamp(situation.predicted_busy),
    )


def entry(entry: Entry) -> types.ScheduleEntry:
    """One skill's place in the schedule."""
    facts = entry.facts
    return types.ScheduleEntry(
        skill=entry.skill.name,
        due=entry.starts,
        reasons=entry.reasons,
        next_time=timestamp(entry.next_time),
        last_run_time=timestamp(entry.last_run_time),
        triggers=[
            types.TriggerStatus(
                trigger=call.trigger,
                fires=call.fires,
                detail=call.text,
                next_time=timestamp(call.next_time),
            )
            for call in entry.calls
        ],
        paused=facts.pause is not None,
        paused_by=facts.pause.actor if facts.pause else "",
        budget=budget_left(facts.left) if facts.left else None,
        age=None if facts.age_s is None else duration_s(facts.age_s),
    )


def budget_left(left: Left) -> types.BudgetLeft:
    """What is left of a budget."""
    return types.BudgetLeft(
        runs=left.runs,
        cost_usd=left.cost_usd,
        gpu_hours=left.gpu_hours,
        renew_time=timestamp(left.renew_time),
    )


def lock(lock: Lock) -> types.Lock:
    """The lock."""
    return types.Lock(
        engaged=lock.engaged,
        actor=lock.actor,
        comment=lock.comment,
        change_time=timestamp(lock.change_time),
    )


def preemption(preemption: Preemption) -> types.Preemption:
    """A pre-emption."""

    def span(span_ns: int | None) -> Duration | None:
        return None if span_ns is None else duration_ns(span_ns)

    return types.Preemption(
        name=f"preemptions/{preemption.id}",
        fence=preemption.fence,
        start_time=timestamp(preemption.start_time),
        send_time=timestamp(preemption.send_time),
        t1=span(preemption.t1_ns),
        t2=span(preemption.t2_ns),
        t3=span(preemption.t3_ns),
        t4=span(preemption.t4_ns),
        t5=span(preemption.t5_ns),
        t5_detail=preemption.t5_detail,
        skill_runs=[f"skillRuns/{run_id}" for run_id in preemption.skill_runs],
        killed_count=preemption.killed_count,
        confirmed=preemption.confirmed,
        lapsed_services=preemption.lapsed_services,
    )


def audit_event(row: SealedRow, *, with_line: bool = False) -> types.AuditEvent:
    """One event of the sealed chain."""
    event_time = Timestamp()
    event_time.FromJsonString(row.time)
    return types.AuditEvent(
        seq=row.seq,
        source=row.source,
        source_seq=row.source_seq,
        event_time=event_time,
        kind=row.kind,
        actor=row.actor,
        subject=row.subject,
        payload=struct(json.loads(row.payload)),
        hash=row.hash,
        line=export_line(row) if with_line else "",
    )


def audit_report(report: AuditReport) -> pb.VerifyAuditResponse:
    """What a check found."""
    return pb.VerifyAuditResponse(
        valid=report.valid,
        event_count=report.event_count,
        checkpoint_count=report.checkpoint_count,
        first_bad_seq=report.first_bad_seq,
        detail=report.detail,
        unsealed_count=report.unsealed_count,
        unreachable=report.unreachable,
        copied_checkpoint_count=report.copied_checkpoint_count,
        copy_problem=report.copy_problem,
    )

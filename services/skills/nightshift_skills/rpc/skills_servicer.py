"""SkillsService: validate, one call of the core, render."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as pb_grpc
from nightshift_kit.rpc.context import current_call
from nightshift_skills.books import Books
from nightshift_skills.desk import SETTLE_S, Desk
from nightshift_skills.fences import Fences
from nightshift_skills.gate import Gate
from nightshift_skills.lockdown import Lockdown
from nightshift_skills.pauses import Pauses
from nightshift_skills.plugins.host import Plugins
from nightshift_skills.preemption import Preemptor
from nightshift_skills.registry import Registry
from nightshift_skills.resources import ApprovalName, SkillName, SkillRunName
from nightshift_skills.rpc import render, requests
from nightshift_skills.rpc.control_servicer import report_activity
from nightshift_skills.scheduler import Scheduler
from nightshift_skills.sealer import Sealer
from nightshift_skills.store import chain, decisions, plane
from nightshift_skills.watching import watch_approvals, watch_runs


class SkillsServicer(pb_grpc.SkillsServiceServicer):
    """The methods of SkillsService."""

    def __init__(
        self,
        *,
        registry: Registry,
        plugins: Plugins,
        desk: Desk,
        scheduler: Scheduler,
        pauses: Pauses,
        preemptor: Preemptor,
        lockdown: Lockdown,
        sealer: Sealer,
        books: Books,
        gate: Gate,
        fences: Fences,
    ) -> None:
        self._registry = registry
        self._plugins = plugins
        self._desk = desk
        self._scheduler = scheduler
        self._pauses = pauses
        self._preemptor = preemptor
        self._lockdown = lockdown
        self._sealer = sealer
        self._books = books
        self._gate = gate
        self._fences = fences

    async def ReportActivity(
        self, request: pb.ReportActivityRequest, context: Any
    ) -> pb.ReportActivityResponse:
        """See the proto."""
        return await report_activity(self._preemptor, request)

    async def StreamActivity(
        self, request_iterator: AsyncIterator[pb.StreamActivityRequest], context: Any
    ) -> pb.ReportActivityResponse:
        """See the proto."""
        answer = pb.ReportActivityResponse(fence=self._fences.current)
        async for batch in request_iterator:
            for report in batch.reports:
                heard = await report_activity(self._preemptor, report)
                heard.preempted = heard.preempted or answer.preempted
                answer = heard
        return answer

    async def ListSkills(self, request: pb.ListSkillsRequest, context: Any) -> pb.ListSkillsResponse:
        """See the proto."""
        page = requests.Page(request.page_size, request.page_token, str, of="skills")
        rows = sorted((s for s in self._registry if s.name > page.after_text), key=lambda s: s.name)
        rows, token = page.cut(rows, lambda row: row.name)
        return pb.ListSkillsResponse(
            skills=[render.skill(row, self._registry) for row in rows], next_page_token=token
        )

    async def GetSkill(self, request: pb.GetSkillRequest, context: Any) -> types.Skill:
        """See the proto."""
        return render.skill(self._registry.get(SkillName.parse(request.name).id), self._registry)

    async def ListPlugins(self, request: pb.ListPluginsRequest, context: Any) -> pb.ListPluginsResponse:
        """See the proto."""
        listed = await asyncio.to_thread(self._plugins.listed)
        return render.plugins(listed, await asyncio.to_thread(self._plugins.layers))

    async def PlanSkill(self, request: pb.PlanSkillRequest, context: Any) -> pb.PlanSkillResponse:
        """See the proto."""
        skill = self._registry.get(SkillName.parse(request.name).id)
        name = requests.planning(skill, current_call().identity).name
        return render.planned(await self._desk.plan(name, requests.parameters(request.parameters)))

    async def RunSkill(self, request: pb.RunSkillRequest, context: Any) -> types.SkillRun:
        """See the proto."""
        call = current_call()
        remaining_s = call.remaining_s()
        run = await self._desk.run(
            SkillName.parse(request.name).name,
            requests.parameters(request.parameters),
            initiator=call.identity.spiffe,
            plan_digest=requests.digest(request.plan_digest, "plan_digest"),
            request_id=requests.request_id(request.request_id),
            comment=requests.comment(request.comment),
            # Half of the time is for the answer: a quick command tells its outcome, a long one that it works.
            wait_s=SETTLE_S if remaining_s is None else min(SETTLE_S, remaining_s / 2),
            vouched_by=call.identity.vouched_by,
        )
        return render.run(run)

    async def GetSkillRun(self, request: pb.GetSkillRunRequest, context: Any) -> types.SkillRun:
        """See the proto."""
        name = SkillRunName.parse(request.name)
        run = await self._books.read(decisions.get_run, name.id)
        preemptions = await self._books.read(plane.preemptions_of, [run.id])
        return render.run(run, preemptions.get(run.id, ()))

    async def ListSkillRuns(self, request: pb.ListSkillRunsRequest, context: Any) -> pb.ListSkillRunsResponse:
        """See the proto."""
        skill = self._registry.get(SkillName.parse(request.skill, "skill").id).id if request.skill else ""
        page = requests.Page(request.page_size, request.page_token, str, of="runs", skill=skill)
        rows = await self._books.read(decisions.list_runs, skill, page.after_text, page.limit + 1)
        rows, token = page.cut(rows, lambda row: row.id)
        stopped = await self._books.read(plane.preemptions_of, [row.id for row in rows])
        return pb.ListSkillRunsResponse(
            skill_runs=[render.run(row, stopped.get(row.id, ())) for row in rows], next_page_token=token
        )

    async def CancelSkillRun(self, request: pb.CancelSkillRunRequest, context: Any) -> types.SkillRun:
        """See the proto."""
        name = SkillRunName.parse(request.name)
        initiator = current_call().identity.spiffe
        return render.run(await self._desk.cancel(name.id, initiator=initiator))

    async def WatchSkillRuns(
        self, request: pb.WatchSkillRunsRequest, context: Any
    ) -> AsyncIterator[pb.WatchSkillRunsResponse]:
        """See the proto."""
        async for seq, run in watch_runs(self._books, requests.after_seq(request.after_seq)):
            yield pb.WatchSkillRunsResponse(seq=seq, skill_run=render.run(run) if run else None)

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Any) -> types.Approval:
        """See the proto."""
        name = ApprovalName.parse(request.name)
        return render.approval(await self._books.read(decisions.get_approval, name.id))

    async def ListApprovals(self, request: pb.ListApprovalsRequest, context: Any) -> pb.ListApprovalsResponse:
        """See the proto."""
        state = requests.approval_state(request.state)
        page = requests.Page(
            request.page_size, request.page_token, str, of="approvals", state=int(request.state)
        )
        rows = await self._books.read(decisions.list_approvals, state, page.after_text, page.limit + 1)
        rows, token = page.cut(rows, lambda row: row.id)
        return pb.ListApprovalsResponse(approvals=map(render.approval, rows), next_page_token=token)

    async def DecideApproval(self, request: pb.DecideApprovalRequest, context: Any) -> types.Approval:
        """See the proto."""
        identity = current_call().identity
        approval = await self._desk.decide(
            ApprovalName.parse(request.name).id,
            approve=requests.approve(request.decision),
            plan_digest=request.plan_digest,
            nonce=request.nonce,
            decider=identity.spiffe,
            comment=requests.comment(request.comment),
            vouched_by=identity.vouched_by,
        )
        return render.approval(approval)

    async def WatchApprovals(
        self, request: pb.WatchApprovalsRequest, context: Any
    ) -> AsyncIterator[pb.WatchApprovalsResponse]:
        """See the proto."""
        async for seq, approval in watch_approvals(self._books, requests.after_seq(request.after_seq)):
            yield pb.WatchApprovalsResponse(seq=seq, approval=render.approval(approval) if approval else None)

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> pb.Schedule:
        """See the proto."""
        situation, entries = await self._scheduler.entries()
        return render.schedule(
            situation,
            entries,
            await self._scheduler.budget_left(),
            is_open=self._gate.is_open,
            fence=self._fences.current,
        )

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Any) -> types.ScheduleEntry:
        """See the proto."""
        skill = self._registry.get(SkillName.parse(request.skill, "skill").id)
        caller = requests.pausing(request, current_call().identity)
        await self._pauses.change(skill, request.paused, caller, requests.comment(request.comment))
        _, entries = await self._scheduler.entries()
        return render.entry(next(entry for entry in entries if entry.skill.id == skill.id))

    async def GetLock(self, request: pb.GetLockRequest, context: Any) -> types.Lock:
        """See the proto."""
        return render.lock(await self._lockdown.get())

    async def EngageLock(self, request: pb.EngageLockRequest, context: Any) -> types.Lock:
        """See the proto."""
        actor = current_call().identity.spiffe
        return render.lock(await self._lockdown.engage(actor, requests.comment(request.comment)))

    async def ReleaseLock(self, request: pb.ReleaseLockRequest, context: Any) -> types.Lock:
        """See the proto."""
        actor = current_call().identity.spiffe
        return render.lock(await self._lockdown.release(actor, requests.comment(request.comment)))

    async def ListPreemptions(
        self, request: pb.ListPreemptionsRequest, context: Any
    ) -> pb.ListPreemptionsResponse:
        """See the proto."""
        page = requests.Page(request.page_size, request.page_token, str, of="preemptions")
        rows = await self._books.read(plane.list_preemptions, page.after_text, page.limit + 1)
        rows, token = page.cut(rows, lambda row: row.id)
        return pb.ListPreemptionsResponse(preemptions=map(render.preemption, rows), next_page_token=token)

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        """See the proto."""
        prefix = requests.kind_prefix(request.kind_prefix)
        page = requests.Page(request.page_size, request.page_token, int, of="audit", kind_prefix=prefix)
        rows = await self._books.read(chain.list_rows, page.after_number, prefix, page.limit + 1)
        rows, token = page.cut(rows, lambda row: row.seq)
        return pb.ListAuditEventsResponse(
            audit_events=[render.audit_event(row, with_line=request.with_lines) for row in rows],
            next_page_token=token,
            last_seq=await self._books.read(chain.last_seq),
        )

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: Any) -> pb.VerifyAuditResponse:
        """See the proto."""
        return render.audit_report(await self._sealer.verify())

"""A person at skills: commands under request ids, repeated until acknowledged; runs followed to their end."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1.skills_service_pb2_grpc import SkillsServiceStub
from tests.chaos.flights import PATIENCE_S, Flights
from tests.chaos.journal import Journal
from tests.support.plane import RealPlane

ENDED = frozenset(
    {
        types.SKILL_RUN_STATE_SUCCEEDED,
        types.SKILL_RUN_STATE_FAILED,
        types.SKILL_RUN_STATE_CANCELLED,
        types.SKILL_RUN_STATE_DENIED,
        types.SKILL_RUN_STATE_NOTHING_TO_DO,
    }
)
_DEADLINE_S = 8.0
_LOOK_S = 0.05


class Person:
    """Gives commands."""

    def __init__(self, plane: RealPlane, flights: Flights, journal: Journal, source: random.Random) -> None:
        self.stub = plane.stub(SkillsServiceStub, "skills")
        self.flights = flights
        self._journal = journal
        self._source = source

    async def plan(self, skill: str, **parameters: Any) -> types.Plan | None:
        """What the skill would do; None where nothing."""
        request = pb.PlanSkillRequest(name=f"skills/{skill}", parameters=_struct(parameters))
        answer, _ = await self.flights.insist(
            f"plan {skill}", lambda: self.stub.PlanSkill(request, timeout=30), quiet=True
        )
        return answer.plan if answer.HasField("plan") else None

    async def run(self, skill: str, *, plan_digest: str = "", **parameters: Any) -> types.SkillRun:
        """RunSkill under a request id; the run as it was acknowledged."""
        request_id = str(uuid.UUID(int=self._source.getrandbits(128), version=4))
        request = pb.RunSkillRequest(
            name=f"skills/{skill}",
            parameters=_struct(parameters),
            plan_digest=plan_digest,
            request_id=request_id,
        )
        told = {"request_id": request_id, "skill": skill, "parameters": parameters}
        self._journal.intends("RunSkill", **told)
        answer: types.SkillRun
        answer, tries = await self.flights.insist(
            f"run {skill}", lambda: self.stub.RunSkill(request, timeout=_DEADLINE_S)
        )
        if tries:
            self.flights.found_done[f"run {skill}"] += answer.create_time.ToSeconds() > 0
        self._journal.acknowledged("RunSkill", **told, run=answer.name, state=answer.state)
        if self._source.random() < 0.1:
            # A retry after the answer: it must be the very same run.
            again, _ = await self.flights.insist(
                f"run {skill}", lambda: self.stub.RunSkill(request, timeout=_DEADLINE_S)
            )
            assert again.name == answer.name, (again, answer)
        return answer

    async def approve(self, approval: types.Approval) -> None:
        """Approves the very plan."""
        request = pb.DecideApprovalRequest(
            name=approval.name,
            decision=pb.DECISION_APPROVE,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
        )
        told = {"approval": approval.name, "run": approval.skill_run, "skill": approval.plan.skill}
        self._journal.intends("DecideApproval", **told)
        answer, _ = await self.flights.insist(
            "decide", lambda: self.stub.DecideApproval(request, timeout=_DEADLINE_S)
        )
        assert answer.state == types.APPROVAL_STATE_APPROVED, answer
        self._journal.acknowledged("DecideApproval", **told)

    async def pending(self) -> list[types.Approval]:
        """Approvals that wait."""
        request = pb.ListApprovalsRequest(page_size=100, state=types.APPROVAL_STATE_PENDING)
        answer, _ = await self.flights.insist(
            "look", lambda: self.stub.ListApprovals(request, timeout=5), quiet=True
        )
        return list(answer.approvals)

    async def get(self, run: str) -> types.SkillRun:
        """A run as it is now; that it is known no more is a loss."""
        request = pb.GetSkillRunRequest(name=run)
        answer, _ = await self.flights.insist(
            "look", lambda: self.stub.GetSkillRun(request, timeout=5), quiet=True
        )
        return answer  # type: ignore[no-any-return]

    async def ended(self, run: types.SkillRun, timeout_s: float = PATIENCE_S) -> types.SkillRun:
        """The run once it has ended; its end is journalled as acknowledged."""
        until_s = time.monotonic() + timeout_s
        with self.flights.under_way(f"run {run.skill.removeprefix('skills/')}"):
            while run.state not in ENDED and not run.HasField("end_time"):
                assert time.monotonic() < until_s, f"{run.skill} has not ended in {timeout_s:.0f} s: {run}"
                await asyncio.sleep(_LOOK_S)
                run = await self.get(run.name)
        self._journal.acknowledged(
            "end",
            run=run.name,
            skill=run.skill,
            state=types.SkillRunState.Name(run.state),
            reason=run.failure.reason,
            results=[MessageToDict(result) for result in run.results],
        )
        return run


def _struct(parameters: Mapping[str, Any]) -> Struct:
    message = Struct()
    message.update(parameters)
    return message

"""ControlService: reports and the lock. Its handlers run on the control thread."""

from __future__ import annotations

from typing import Any

from nightshift.skills.v1 import control_service_pb2_grpc as pb_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.rpc.context import current_call
from nightshift_skills.lockdown import Lockdown
from nightshift_skills.preemption import Preemptor
from nightshift_skills.resources import PreemptionName
from nightshift_skills.rpc import render, requests


async def report_activity(
    preemptor: Preemptor, request: pb.ReportActivityRequest
) -> pb.ReportActivityResponse:
    """One report, heard on whatever thread it came in; the stop is on its way before anything is kept."""
    heard = preemptor.report(*requests.activity(request))
    await preemptor.keep(heard)
    return pb.ReportActivityResponse(
        fence=heard.fence,
        preempted=heard.preempted,
        preemption=PreemptionName(heard.preemption).name if heard.preemption else "",
    )


class ControlServicer(pb_grpc.ControlServiceServicer):
    """The methods of ControlService."""

    def __init__(self, preemptor: Preemptor, lockdown: Lockdown) -> None:
        self._preemptor = preemptor
        self._lockdown = lockdown

    async def ReportActivity(
        self, request: pb.ReportActivityRequest, context: Any
    ) -> pb.ReportActivityResponse:
        """See the proto."""
        return await report_activity(self._preemptor, request)

    async def EngageLock(self, request: pb.EngageLockRequest, context: Any) -> types.Lock:
        """See the proto."""
        actor = current_call().identity.spiffe
        return render.lock(await self._lockdown.engage(actor, requests.comment(request.comment)))

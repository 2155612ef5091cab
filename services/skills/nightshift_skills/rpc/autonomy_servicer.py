"""AutonomyService: validate, one call of the core, render."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from nightshift.skills.v1 import autonomy_service_pb2 as pb
from nightshift.skills.v1 import autonomy_service_pb2_grpc as pb_grpc
from nightshift.skills.v1 import standing_approvals_pb2 as types
from nightshift_kit.errors import EnumRequired, EnumUnknown, FieldInvalid
from nightshift_kit.rpc.context import current_call
from nightshift_skills.autonomy import LONGEST, Autonomy
from nightshift_skills.books import Books
from nightshift_skills.catalogue.set_autonomy import scope_message
from nightshift_skills.errors import AutonomyBySkill
from nightshift_skills.resources import SkillName, StandingApprovalName
from nightshift_skills.rpc import render, requests
from nightshift_skills.standing import Bound, Scope, StandingApproval, StandingState
from nightshift_skills.store import standing as store


class AutonomyServicer(pb_grpc.AutonomyServiceServicer):
    """The methods of AutonomyService."""

    def __init__(self, autonomy: Autonomy, books: Books) -> None:
        self._autonomy = autonomy
        self._books = books

    async def GetAutonomy(self, request: pb.GetAutonomyRequest, context: Any) -> types.Autonomy:
        """See the proto."""
        return await self._answer(SkillName.parse(request.skill, "skill").name if request.skill else "")

    async def UpdateAutonomy(self, request: pb.UpdateAutonomyRequest, context: Any) -> types.Autonomy:
        """See the proto."""
        if request.mode == types.AUTONOMY_MODE_UNSPECIFIED:
            raise EnumRequired.at("mode", "say AUTONOMY_MODE_MANUAL_ONLY")
        if request.mode != types.AUTONOMY_MODE_MANUAL_ONLY:
            raise AutonomyBySkill("More autonomy is given by an admin: nightshift autonomy set.")
        actor = current_call().identity.spiffe
        await self._autonomy.back_to_manual(actor, requests.comment(request.comment))
        return await self._answer("")

    async def SetAutonomy(self, request: pb.SetAutonomyRequest, context: Any) -> types.StandingApproval:
        """See the proto."""
        ttl = request.ttl.ToTimedelta()
        if not timedelta() < ttl <= LONGEST:
            raise FieldInvalid.at("ttl", f"more than nothing, and at most {LONGEST.days} days")
        if not 1 <= request.max_uses <= 1000:
            raise FieldInvalid.at("max_uses", "1 to 1000")
        answer = await self._autonomy.give(
            current_call().effect(),
            SkillName.parse(request.skill, "skill").name,
            _scope(request.scope),
            max_uses=request.max_uses,
            ttl=ttl,
            policy_digest=requests.digest(request.policy_digest, "policy_digest"),
            encode=lambda standing: rendered(standing).SerializeToString(),
        )
        return types.StandingApproval.FromString(answer)

    async def GetStandingApproval(
        self, request: pb.GetStandingApprovalRequest, context: Any
    ) -> types.StandingApproval:
        """See the proto."""
        name = StandingApprovalName.parse(request.name)
        return rendered(await self._books.read(store.get_standing, name.id))

    async def ListStandingApprovals(
        self, request: pb.ListStandingApprovalsRequest, context: Any
    ) -> pb.ListStandingApprovalsResponse:
        """See the proto."""
        state = _state(request.state)
        page = requests.Page(request.page_size, request.page_token, str, of="standing", state=str(state))
        rows = await self._books.read(store.list_standing, state, page.after_text, page.limit + 1)
        rows, token = page.cut(rows, lambda row: row.id)
        return pb.ListStandingApprovalsResponse(standing_approvals=map(rendered, rows), next_page_token=token)

    async def RevokeStandingApproval(
        self, request: pb.RevokeStandingApprovalRequest, context: Any
    ) -> types.StandingApproval:
        """See the proto."""
        name = StandingApprovalName.parse(request.name)
        actor = current_call().identity.spiffe
        return rendered(await self._autonomy.revoke(name.id, actor, requests.comment(request.comment)))

    async def _answer(self, skill: str) -> types.Autonomy:
        standing = await self._autonomy.in_force()
        facts = await self._autonomy.facts(skill) if skill else []
        bounded = any(not one.promotion for one in standing)
        return types.Autonomy(
            mode=types.AUTONOMY_MODE_BOUNDED_AUTO if bounded else types.AUTONOMY_MODE_MANUAL_ONLY,
            policy_digest=self._autonomy.policy_digest,
            readiness=[types.ReadinessFact(fact=f.fact, met=f.met, detail=f.detail) for f in facts],
            standing_approvals=map(rendered, standing),
        )


def rendered(standing: StandingApproval) -> types.StandingApproval:
    """A standing approval."""
    return types.StandingApproval(
        name=standing.name,
        state=types.StandingApprovalState.Value(f"STANDING_APPROVAL_STATE_{standing.state.value}"),
        skill=f"skills/{standing.skill}",
        scope=scope_message(standing.scope),
        policy_digest=standing.policy_digest,
        approver=standing.approver,
        create_time=render.timestamp(standing.create_time),
        expire_time=render.timestamp(standing.expire_time),
        max_uses=standing.max_uses,
        use_count=standing.use_count,
        end_time=render.timestamp(standing.end_time),
        ended_by=standing.ended_by,
        end_detail=standing.end_detail,
        promotion=standing.promotion,
        skill_run=f"skillRuns/{standing.run}",
    )


def _scope(message: types.StandingScope) -> Scope:
    try:
        return Scope(
            subjects=tuple(message.subjects),
            methods=tuple(message.methods),
            bounds=tuple(
                Bound(
                    path=bound.path,
                    minimum=bound.minimum if bound.HasField("minimum") else None,
                    maximum=bound.maximum if bound.HasField("maximum") else None,
                    allowed=tuple(bound.allowed),
                )
                for bound in message.bounds
            ),
            max_cost_usd=message.max_cost_usd,
            max_vram_bytes=message.max_vram_bytes,
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise FieldInvalid.at(".".join(("scope", *map(str, problem["loc"]))), problem["msg"]) from error


def _state(value: int) -> StandingState | None:
    if value == types.STANDING_APPROVAL_STATE_UNSPECIFIED:
        return None
    if value not in types.StandingApprovalState.values():
        raise EnumUnknown.at("state", f"there is no state {value}")
    name = types.StandingApprovalState.Name(types.StandingApprovalState.ValueType(value))
    return StandingState(name.removeprefix("STANDING_APPROVAL_STATE_"))

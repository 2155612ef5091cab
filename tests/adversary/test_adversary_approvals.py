"""Attacks through skills itself: other plans' decisions, plans that change, grants that are used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.grants import Tier
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import grant_metadata
from tests.adversary.intruders import refusal
from tests.skills.skills_support import Plane, plane_in
from tests.skills.stand_ins import LabStandIn

TRAINING = {"base_model": "/models/tiny", "dataset": "/data/rows.jsonl", "max_steps": 60}
CREATE = "nightshift.lab.v1.LabService/CreateProposal"


@pytest_asyncio.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with plane_in(tmp_path / "home") as made:
        # A user is there: nothing begins by itself while a test attacks.
        made.around.monitor.tell(idle=False)
        yield made


def decision(approval: types.Approval, **fields: Any) -> pb.DecideApprovalRequest:
    fitting: dict[str, Any] = {
        "name": approval.name,
        "decision": pb.DECISION_APPROVE,
        "plan_digest": approval.plan.digest,
        "nonce": approval.nonce,
    }
    return pb.DecideApprovalRequest(**(fitting | fields))


def command(skill: str, parameters: dict[str, Any] | None = None, **fields: Any) -> pb.RunSkillRequest:
    request = pb.RunSkillRequest(name=f"skills/{skill}", **fields)
    request.parameters.update(parameters or {})
    return request


async def test_another_plans_digest_and_nonce(plane: Plane) -> None:
    small = await plane.approval_of(await plane.run("train_adapter", TRAINING))
    large = await plane.approval_of(await plane.run("train_adapter", TRAINING | {"max_steps": 9_000}))
    assert small.nonce != large.nonce
    for wrong in (
        {"plan_digest": small.plan.digest, "nonce": small.nonce},
        {"plan_digest": large.plan.digest, "nonce": small.nonce},
        {"plan_digest": small.plan.digest, "nonce": large.nonce},
        {"plan_digest": large.plan.digest.upper(), "nonce": large.nonce},
    ):
        assert (await plane.refused("DecideApproval", decision(large, **wrong))).reason == "PLAN_CHANGED"
    assert (await plane.approval_of(await plane.get(large.skill_run))).state == types.APPROVAL_STATE_PENDING
    assert plane.around.trainer.effects == []


async def test_of_many_deciders_at_once_one_decides(plane: Plane) -> None:
    approval = await plane.approval_of(await plane.run("train_adapter", TRAINING))
    asked = [
        refusal(
            plane.call(
                "DecideApproval",
                decision(approval, decision=pb.DECISION_APPROVE if number % 2 else pb.DECISION_DENY),
                f"approver{number}",
            )
        )
        for number in range(8)
    ]
    answers = [answer.reason for answer in await asyncio.gather(*asked)]
    assert answers.count("") == 1, answers
    assert set(answers) == {"", "APPROVAL_DECIDED"}
    events = await plane.call("ListAuditEvents", pb.ListAuditEventsRequest(page_size=1000))
    while not any(event.kind == "approval.decided" for event in events.audit_events):
        await asyncio.sleep(0.1)
        events = await plane.call("ListAuditEvents", pb.ListAuditEventsRequest(page_size=1000))
    decided = [event for event in events.audit_events if event.kind == "approval.decided"]
    assert len(decided) == 1
    assert decided[0].subject == approval.name


async def test_a_proposal_that_changes_between_plan_and_approval(plane: Plane) -> None:
    run = await plane.run("propose_config")
    approval = await plane.approval_of(run)
    plane.around.lab.text = "Now quite another text that nobody has seen."
    # Confirming what was shown: the plan of today is another.
    stale = await plane.refused("RunSkill", command("propose_config", plan_digest=run.plan.digest))
    assert stale.reason == "PLAN_CHANGED"
    # A new plan voids the old question.
    newer = await plane.run("propose_config")
    assert newer.plan.digest != run.plan.digest
    assert (await plane.refused("DecideApproval", decision(approval))).reason == "APPROVAL_EXPIRED"
    assert (await plane.get(run.name)).state == types.SKILL_RUN_STATE_DENIED
    assert plane.around.lab.effects == []


async def test_a_command_for_a_plan_that_is_no_more(plane: Plane) -> None:
    for skill, parameters in (("propose_config", {}), ("train_adapter", TRAINING)):
        planned = (await plane.call("PlanSkill", _plan(skill, parameters))).plan
        almost = planned.digest[:-1] + ("0" if planned.digest[-1] != "0" else "1")
        for digest in ("0" * 64, almost):
            request = command(skill, parameters, plan_digest=digest)
            assert (await plane.refused("RunSkill", request)).reason == "PLAN_CHANGED", skill
    assert not (await plane.call("ListApprovals", pb.ListApprovalsRequest())).approvals


def _plan(skill: str, parameters: dict[str, Any]) -> pb.PlanSkillRequest:
    request = pb.PlanSkillRequest(name=f"skills/{skill}")
    request.parameters.update(parameters)
    return request


async def test_the_lock_stands_before_every_yes_and_no_no(plane: Plane) -> None:
    approval = await plane.approval_of(await plane.run("train_adapter", TRAINING))
    other = await plane.approval_of(await plane.run("train_adapter", TRAINING | {"max_steps": 61}))
    # Anybody who is known as a person may set it; of those only an admin lifts it.
    await plane.call("EngageLock", pb.EngageLockRequest(comment="stop"), "viewer")
    assert (await plane.refused("DecideApproval", decision(approval))).reason == "GLOBAL_LOCK"
    for skill, parameters in (("train_adapter", TRAINING), ("aggregate_experience", {}), ("rollback", {})):
        assert (await plane.refused("RunSkill", command(skill, parameters))).reason == "GLOBAL_LOCK"
    denied = await plane.call("DecideApproval", decision(other, decision=pb.DECISION_DENY))
    assert denied.state == types.APPROVAL_STATE_DENIED
    for role in ("viewer", "approver"):
        assert (
            await plane.refused("ReleaseLock", pb.ReleaseLockRequest(), role)
        ).reason == "ROLE_INSUFFICIENT"
    assert (await plane.call("GetLock", pb.GetLockRequest())).engaged
    assert plane.around.trainer.effects == []


async def test_a_command_on_its_way_when_the_lock_is_set_has_no_effect_later(plane: Plane) -> None:
    """The grant was minted before the lock; its call reaches the lab after it."""
    lab = plane.around.serving["lab"]
    assert lab.hub is not None
    request = lab_pb.PromoteProposalRequest(name="proposals/x", etag="1")
    fence = (await plane.call("GetSchedule", pb.GetScheduleRequest())).fence
    token = lab.mint(
        "nightshift.lab.v1.LabService/PromoteProposal",
        request,
        skill="promote_config",
        tier=Tier.MANUAL,
        fence=fence,
    )
    await plane.call("EngageLock", pb.EngageLockRequest())
    while lab.hub.gate.highest <= fence:
        await asyncio.sleep(0.01)
    stub = lab.stub(lab_grpc.LabServiceStub, "service/skills")
    error = await refusal(stub.PromoteProposal(request, timeout=5, metadata=grant_metadata(token)))
    assert error.reason == "PREEMPTED"
    assert plane.around.lab.effects == []


async def test_a_grant_that_was_used_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, str]] = []
    create = LabStandIn.CreateProposal

    async def listening(self: LabStandIn, request: Any, context: Any) -> Any:
        token = dict(context.invocation_metadata())["nightshift-grant"]
        seen.append((request, token if isinstance(token, str) else token.decode()))
        return await create(self, request, context)

    monkeypatch.setattr(LabStandIn, "CreateProposal", listening)
    async with plane_in(tmp_path / "home") as plane:
        run = await plane.run("propose_config")
        await plane.decide(await plane.approval_of(run))
        run = await plane.until(run.name)
        assert run.state == types.SKILL_RUN_STATE_SUCCEEDED
        [(original, token)] = seen
        lab = plane.around.serving["lab"]
        other = lab_pb.CreateProposalRequest(config_id="another")
        stub = lab.stub(lab_grpc.LabServiceStub, "service/skills")
        # The very same call gets the very same answer; nothing is done again.
        answer = await stub.CreateProposal(original, timeout=5, metadata=grant_metadata(token))
        assert answer.name == run.results[0]["name"]
        error = await refusal(stub.CreateProposal(other, timeout=5, metadata=grant_metadata(token)))
        assert error.reason == "GRANT_ARGS"
        for identity in ("admin", "platform/default", "service/lab"):
            thief = lab.stub(lab_grpc.LabServiceStub, identity)
            error = await refusal(thief.CreateProposal(original, timeout=5, metadata=grant_metadata(token)))
            assert error.reason == "GRANT_SUBJECT"
        # Even whoever signs as skills does cannot use its id for something else.
        jti = jwt.decode(token, options={"verify_signature": False})["jti"]
        assert lab.hub is not None
        claims = {"skill": "propose_config", "jti": jti, "fence": lab.hub.gate.highest}
        again = lab.mint(CREATE, other, **claims)
        error = await refusal(stub.CreateProposal(other, timeout=5, metadata=grant_metadata(again)))
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "GRANT_REPLAYED")
        assert [kind for kind, _ in plane.around.lab.effects] == ["proposal.created"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("request_id", ["", "uuid"])
async def test_parameters_that_json_has_not(plane: Plane, value: float, request_id: str) -> None:
    request = command("train_adapter", TRAINING, request_id=new_id() if request_id else "")
    request.parameters.fields["lora_dropout"].number_value = value
    for method, asked in (
        ("RunSkill", request),
        ("PlanSkill", pb.PlanSkillRequest(name=request.name, parameters=request.parameters)),
    ):
        error = await plane.refused(method, asked)
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT, (method, error)


async def test_what_a_person_asked_for_is_not_said_back(plane: Plane) -> None:
    """Parameters may be a child's words; a refusal names the field, never the value."""
    for parameters in (
        {"base_model": {"nested": "Jorinde Quastenbeck"}},
        {"Jorinde": 1},
        TRAINING | {"preset": ["Jorinde Quastenbeck"]},
    ):
        error = await plane.refused("RunSkill", command("train_adapter", parameters))
        assert error.reason == "PARAMETERS_INVALID"
        assert "Quastenbeck" not in f"{error}"

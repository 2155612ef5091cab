"""Bad input of the skills service → reason, over the wire, as the table of the quality page has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.grants import Tier
from nightshift_kit.ids import new_id
from tests.skills.skills_support import Plane, plane_in


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    async with plane_in(tmp_path_factory.mktemp("bad-input") / "home") as plane:
        yield plane


def run_request(skill: str, parameters: dict[str, Any] | None = None, **fields: Any) -> pb.RunSkillRequest:
    request = pb.RunSkillRequest(name=f"skills/{skill}", **fields)
    request.parameters.update(parameters or {})
    return request


REFUSED: list[tuple[str, Any, grpc.StatusCode, str, str]] = [
    ("GetSkill", pb.GetSkillRequest(name="skills/none"), grpc.StatusCode.NOT_FOUND, "SKILL_UNKNOWN", "admin"),
    ("GetSkill", pb.GetSkillRequest(name="runs/x"), grpc.StatusCode.INVALID_ARGUMENT, "ID_INVALID", "admin"),
    ("GetSkill", pb.GetSkillRequest(), grpc.StatusCode.INVALID_ARGUMENT, "ID_INVALID", "admin"),
    (
        "PlanSkill",
        pb.PlanSkillRequest(name="skills/none"),
        grpc.StatusCode.NOT_FOUND,
        "SKILL_UNKNOWN",
        "admin",
    ),
    ("RunSkill", run_request("none"), grpc.StatusCode.NOT_FOUND, "SKILL_UNKNOWN", "admin"),
    (
        "RunSkill",
        run_request("propose_config", {"colour": "red"}),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PARAMETERS_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("train_adapter", {"base_model": "/m", "dataset": "/d", "max_steps": 1.5}),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PARAMETERS_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("rollback"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PARAMETERS_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("rollback", request_id="not a uuid"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "ID_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("propose_config", plan_digest="abc"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("propose_config", plan_digest="0" * 64),
        grpc.StatusCode.FAILED_PRECONDITION,
        "PLAN_CHANGED",
        "admin",
    ),
    (
        "RunSkill",
        run_request("propose_config", comment="x" * 5_000),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "RunSkill",
        run_request("promote_config", {"proposal": "proposals/none"}),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN",
        "admin",
    ),
    ("RunSkill", run_request("rollback"), grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT", "viewer"),
    (
        "PlanSkill",
        pb.PlanSkillRequest(name="skills/translate_configs"),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_INSUFFICIENT",
        "viewer",
    ),
    *(
        (
            "ListAuditEvents",
            pb.ListAuditEventsRequest(kind_prefix=prefix),
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_INVALID",
            "admin",
        )
        for prefix in ("nul\0", "Lock", "x" * 65, "%")
    ),
    (
        "DecideApproval",
        pb.DecideApprovalRequest(),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_INSUFFICIENT",
        "viewer",
    ),
    (
        "DecideApproval",
        pb.DecideApprovalRequest(name="approvals/none", decision=pb.DECISION_APPROVE),
        grpc.StatusCode.NOT_FOUND,
        "APPROVAL_UNKNOWN",
        "admin",
    ),
    (
        "DecideApproval",
        pb.DecideApprovalRequest(name="approvals/none"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "ENUM_REQUIRED",
        "admin",
    ),
    (
        "DecideApproval",
        pb.DecideApprovalRequest(name="approvals/none", decision=77),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "ENUM_UNKNOWN",
        "admin",
    ),
    ("GetApproval", pb.GetApprovalRequest(name="x"), grpc.StatusCode.INVALID_ARGUMENT, "ID_INVALID", "admin"),
    (
        "GetSkillRun",
        pb.GetSkillRunRequest(name="skillRuns/none"),
        grpc.StatusCode.NOT_FOUND,
        "SKILL_RUN_UNKNOWN",
        "admin",
    ),
    (
        "CancelSkillRun",
        pb.CancelSkillRunRequest(name="skillRuns/none"),
        grpc.StatusCode.NOT_FOUND,
        "SKILL_RUN_UNKNOWN",
        "admin",
    ),
    (
        "CancelSkillRun",
        pb.CancelSkillRunRequest(name="skillRuns/none"),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_INSUFFICIENT",
        "viewer",
    ),
    (
        "ListSkillRuns",
        pb.ListSkillRunsRequest(skill="skills/none"),
        grpc.StatusCode.NOT_FOUND,
        "SKILL_UNKNOWN",
        "admin",
    ),
    (
        "ListSkillRuns",
        pb.ListSkillRunsRequest(page_size=-1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_SIZE_INVALID",
        "admin",
    ),
    (
        "ListApprovals",
        pb.ListApprovalsRequest(page_token="nonsense"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
        "admin",
    ),
    (
        "ListApprovals",
        pb.ListApprovalsRequest(state=99),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "ENUM_UNKNOWN",
        "admin",
    ),
    (
        "ListAuditEvents",
        pb.ListAuditEventsRequest(page_token="AAAA"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
        "admin",
    ),
    (
        "ReleaseLock",
        pb.ReleaseLockRequest(),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_INSUFFICIENT",
        "approver",
    ),
    (
        "ReportActivity",
        pb.ReportActivityRequest(kind="Not A Kind"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "ReportActivity",
        pb.ReportActivityRequest(count=-1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "ReportActivity",
        pb.ReportActivityRequest(count=2**63 - 1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "EngageLock",
        pb.EngageLockRequest(comment="nul\0"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
    (
        "ReportActivity",
        pb.ReportActivityRequest(run_id="x" * 300),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELD_INVALID",
        "admin",
    ),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "identity"),
    REFUSED,
    ids=[f"{number}-{row[0]}-{row[3]}" for number, row in enumerate(REFUSED)],
)
async def test_bad_input_has_its_reason(
    shared: Plane, method: str, request_: Any, code: grpc.StatusCode, reason: str, identity: str
) -> None:
    refusal = await shared.refused(method, request_, identity)
    assert (refusal.code, refusal.reason) == (code, reason), refusal
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert refusal.violations


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("method", ["WatchSkillRuns", "WatchApprovals"])
async def test_a_watch_from_another_life_is_refused(shared: Plane, method: str) -> None:
    message = getattr(pb, f"{method}Request")
    for after_seq, reason in ((10**9, "SEQ_GONE"), (-1, "FIELD_INVALID")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in getattr(shared.stub(), method)(message(after_seq=after_seq), timeout=5):
                pass
        from nightshift_kit.rpc.channels import decode_error

        assert decode_error(caught.value).reason == reason


@pytest.mark.asyncio(loop_scope="module")
async def test_idle_work_by_command_is_refused_while_a_user_is_active(shared: Plane) -> None:
    shared.around.experience.state.pending_aggregation_count = 3
    shared.around.monitor.tell(idle=False)
    try:
        refusal = await shared.refused("RunSkill", run_request("aggregate_experience"))
    finally:
        shared.around.experience.state.pending_aggregation_count = 0
        shared.around.monitor.tell(idle=True)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "USER_ACTIVE")
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s >= 1


@pytest.mark.asyncio(loop_scope="module")
async def test_decisions_that_come_too_late_or_for_another_plan(shared: Plane) -> None:
    run = await shared.run("propose_config")
    approval = await shared.approval_of(run)

    def decision(**fields: Any) -> pb.DecideApprovalRequest:
        fitting: dict[str, Any] = {
            "name": approval.name,
            "decision": pb.DECISION_APPROVE,
            "plan_digest": approval.plan.digest,
            "nonce": approval.nonce,
        }
        return pb.DecideApprovalRequest(**(fitting | fields))

    for wrong in ({"plan_digest": "1" * 64}, {"plan_digest": ""}, {"nonce": "other"}, {"nonce": ""}):
        refusal = await shared.refused("DecideApproval", decision(**wrong))
        assert refusal.reason == "PLAN_CHANGED"
    await shared.decide(approval, approve=False)
    assert (await shared.refused("DecideApproval", decision())).reason == "APPROVAL_DECIDED"
    other = await shared.refused("DecideApproval", decision(decision=pb.DECISION_DENY), "approver2")
    assert other.reason == "APPROVAL_DECIDED"
    # Denied: the skill rests on this theme, whoever asks.
    nothing = await shared.call("PlanSkill", pb.PlanSkillRequest(name="skills/propose_config"))
    assert "rests until" in nothing.nothing_to_do
    ended = await shared.refused("CancelSkillRun", pb.CancelSkillRunRequest(name=run.name))
    assert ended.reason == "SKILL_RUN_ENDED"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_denied_training_rests_and_another_one_may_be_asked_for(shared: Plane) -> None:
    parameters = {"base_model": "/m", "dataset": "/d", "max_steps": 7}
    run = await shared.run("train_adapter", parameters)
    await shared.decide(await shared.approval_of(run), approve=False)
    refusal = await shared.refused("RunSkill", run_request("train_adapter", parameters))
    assert refusal.reason == "COOLDOWN"
    assert refusal.metadata["cause"] == "denied"
    other = await shared.run("train_adapter", parameters | {"max_steps": 8})
    assert other.plan.digest != run.plan.digest
    cancelled = await shared.call("CancelSkillRun", pb.CancelSkillRunRequest(name=other.name))
    assert cancelled.end_time.seconds
    refusal = await shared.refused(
        "DecideApproval",
        pb.DecideApprovalRequest(
            name=other.approval,
            decision=pb.DECISION_APPROVE,
            plan_digest=other.plan.digest,
            nonce=(await shared.approval_of(other)).nonce,
        ),
    )
    assert refusal.reason == "APPROVAL_EXPIRED"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_id_gives_the_same_run_and_no_other(shared: Plane) -> None:
    parameters = {"base_model": "/m", "dataset": "/d", "max_steps": 9}
    request_id = new_id()
    first = await shared.call("RunSkill", run_request("train_adapter", parameters, request_id=request_id))
    again = await shared.call("RunSkill", run_request("train_adapter", parameters, request_id=request_id))
    assert again.name == first.name
    refusal = await shared.refused(
        "RunSkill", run_request("train_adapter", parameters | {"max_steps": 10}, request_id=request_id)
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


@pytest.mark.asyncio(loop_scope="module")
async def test_nobody_reaches_an_effect_beside_skills(shared: Plane) -> None:
    from nightshift.lab.v1 import lab_service_pb2 as lab_pb
    from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
    from nightshift_kit.rpc.channels import decode_error, grant_metadata

    lab = shared.around.serving["lab"]
    request = lab_pb.PromoteProposalRequest(name="proposals/x")
    for token, reason in (
        ("", "GRANT_MISSING"),
        ("not.a.grant", "GRANT_INVALID"),
        (
            lab.mint(
                "nightshift.lab.v1.LabService/PromoteProposal",
                request,
                skill="rollback",
                tier=Tier.MANUAL,
            ),
            "GRANT_SUBJECT",
        ),
    ):
        stub = lab.stub(lab_grpc.LabServiceStub, "service/skills")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PromoteProposal(request, timeout=5, metadata=grant_metadata(token) if token else ())
        assert decode_error(caught.value).reason == reason


@pytest.mark.asyncio(loop_scope="module")
async def test_everything_that_acts_is_refused_under_the_lock(shared: Plane) -> None:
    parameters = {"base_model": "/m", "dataset": "/d", "max_steps": 11}
    run = await shared.run("train_adapter", parameters)
    approval = await shared.approval_of(run)
    lock = await shared.call("EngageLock", pb.EngageLockRequest(comment="stop it"), "viewer")
    assert lock.engaged
    assert lock.actor.endswith("person/viewer/viewer")
    try:
        for skill, given in (("rollback", {"promotion": "promotions/x"}), ("aggregate_experience", {})):
            assert (await shared.refused("RunSkill", run_request(skill, given))).reason == "GLOBAL_LOCK"
        refusal = await shared.refused(
            "DecideApproval",
            pb.DecideApprovalRequest(
                name=approval.name,
                decision=pb.DECISION_APPROVE,
                plan_digest=approval.plan.digest,
                nonce=approval.nonce,
            ),
        )
        assert refusal.reason == "GLOBAL_LOCK"
        denied = await shared.decide(approval, approve=False)
        assert denied.decide_time.seconds
    finally:
        lock = await shared.call("ReleaseLock", pb.ReleaseLockRequest())
    assert not lock.engaged

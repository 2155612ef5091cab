"""Standing approvals: given by an admin when all facts hold, cited, spent, taken back, voided."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.skills.v1 import autonomy_service_pb2 as pb
from nightshift.skills.v1 import autonomy_service_pb2_grpc as pb_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1 import standing_approvals_pb2 as standing_types
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.channels import RichError, decode_error, grant_metadata
from nightshift_kit.rpc.context import current_call
from nightshift_skills.budgets import Budgets, BudgetSettings
from nightshift_skills.catalogue import BUILT_IN
from nightshift_skills.errors import NotArmed, StandingApprovalEnded, StandingScopeExceeded
from nightshift_skills.plans import Plan, PlannedCall
from nightshift_skills.proposals import ApprovalRule
from nightshift_skills.registry import Registry
from nightshift_skills.skill import Limits
from nightshift_skills.standing import Bound, Scope, StandingApproval, StandingState, policy_digest
from tests.skills.skills_support import Plane, eventually, plane_in
from tests.skills.stand_ins import PROJECT

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
# A theme after the other: without the week that lies between two proposals.
SETTINGS: dict[str, Any] = {"autonomy_min_runs": 1, "cooldowns_s": {"propose_config": 0}}


def made(**changes: Any) -> StandingApproval:
    standing = StandingApproval(
        id="1",
        skill="propose_config",
        scope=Scope(),
        policy_digest="a" * 64,
        approver="spiffe://nightshift.local/person/admin/ada",
        create_time=AT,
        expire_time=AT + timedelta(days=1),
        max_uses=2,
        run="r",
    )
    return replace(standing, **changes)


def planned(subject: str = "themes/boats", **changes: Any) -> Plan:
    call = PlannedCall(
        method="/x.Y/Z",
        arguments={"config_id": "boats", "spec": {"max_steps": "200", "rate": 0.5}},
        arguments_digest="b" * 64,
    )
    fields: dict[str, Any] = {"skill": "skills/propose_config", "summary": "s", "calls": (call,)}
    return Plan(subject=subject, **(fields | changes))


def test_each_use_counts_and_the_last_one_spends_it() -> None:
    once = made().used(planned(), "a" * 64, AT)
    twice = once.used(planned(), "a" * 64, AT)
    assert (once.state, twice.state, twice.use_count) == (StandingState.ACTIVE, StandingState.SPENT, 2)
    with pytest.raises(StandingApprovalEnded, match="spent"):
        twice.used(planned(), "a" * 64, AT)
    # What the last use began may be brought to its end.
    twice.check_goes_on(AT)
    with pytest.raises(StandingApprovalEnded):
        twice.check_goes_on(AT + timedelta(days=2))
    revoked = once.ended(StandingState.REVOKED, AT, "me", "why")
    with pytest.raises(StandingApprovalEnded, match="revoked"):
        revoked.check_goes_on(AT)
    assert revoked.ended(StandingState.VOID, AT, "x", "y") is revoked


@pytest.mark.parametrize(
    ("digest", "later"), [("c" * 64, timedelta()), ("a" * 64, timedelta(days=1))], ids=["policy", "expiry"]
)
def test_another_policy_or_a_later_hour_ends_it(digest: str, later: timedelta) -> None:
    with pytest.raises(StandingApprovalEnded):
        made().used(planned(), digest, AT + later)


@pytest.mark.parametrize(
    "scope",
    [
        Scope(subjects=("themes/boat",)),
        Scope(subjects=("themes/b*x", "trains/*")),
        Scope(methods=("/x.Y/Other",)),
        Scope(bounds=(Bound(path="config_id", allowed=("lanterns",)),)),
        Scope(bounds=(Bound(path="spec.max_steps", maximum=199),)),
        Scope(bounds=(Bound(path="spec.max_steps", minimum=201),)),
        Scope(bounds=(Bound(path="spec.rate", maximum=0.4),)),
        Scope(bounds=(Bound(path="config_id", maximum=1),)),
        Scope(bounds=(Bound(path="missing", maximum=1),)),
        Scope(bounds=(Bound(path="spec", allowed=("x",)),)),
    ],
)
def test_whatever_goes_beyond_the_scope_waits_for_a_person(scope: Scope) -> None:
    with pytest.raises(StandingScopeExceeded):
        made(scope=scope).used(planned(), "a" * 64, AT)


def test_what_lies_within_it_does_not() -> None:
    bounds = (
        Bound(path="spec.max_steps", minimum=1, maximum=200),
        Bound(path="config_id", allowed=("boats",)),
    )
    scope = Scope(
        subjects=("themes/*",), methods=("/x.Y/Z",), bounds=bounds, max_cost_usd=1, max_vram_bytes=9
    )
    assert made(scope=scope).used(planned(cost_usd=1.0, vram_bytes=9), "a" * 64, AT).use_count == 1
    for beyond in ({"cost_usd": 1.01}, {"vram_bytes": 10}, {"calls": ()}, {"skill": "skills/rollback"}):
        with pytest.raises(StandingScopeExceeded):
            made(scope=scope).used(planned(**beyond), "a" * 64, AT)
    with pytest.raises(StandingScopeExceeded):
        # Nothing said about money or memory means none.
        made().used(planned(cost_usd=0.01), "a" * 64, AT)


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_slips_past_a_maximum(value: float, maximum: float) -> None:
    problem = Bound(path="n", maximum=maximum).problem({"n": value})
    assert (problem == "") == (value <= maximum)


def test_the_policys_digest_tells_of_every_change() -> None:
    registry = Registry(BUILT_IN, tiers={}, cooldowns_s={})
    tighter = Registry(BUILT_IN, tiers={"propose_config": "MANUAL"}, cooldowns_s={})
    slower = Registry(BUILT_IN, tiers={}, cooldowns_s={"rollback": 1})
    digests = {
        policy_digest(registry, Limits(), ApprovalRule(), budgets(), 1),
        policy_digest(tighter, Limits(), ApprovalRule(), budgets(), 1),
        policy_digest(slower, Limits(), ApprovalRule(), budgets(), 1),
        policy_digest(registry, Limits(min_production_runs=1), ApprovalRule(), budgets(), 1),
        policy_digest(registry, Limits(), ApprovalRule(two_person=True), budgets(), 1),
        policy_digest(registry, Limits(), ApprovalRule(), budgets(cost_usd_per_day=9), 1),
        policy_digest(registry, Limits(), ApprovalRule(), budgets(zone="Asia/Kolkata"), 1),
        policy_digest(registry, Limits(), ApprovalRule(), budgets(named={"runs_per_day": 9}), 1),
        policy_digest(registry, Limits(), ApprovalRule(), budgets(any_skill={"gpu_hours_per_day": 9}), 1),
        policy_digest(registry, Limits(), ApprovalRule(), budgets(), 2),
    }
    assert len(digests) == 10
    assert policy_digest(registry, Limits(), ApprovalRule(), budgets(), 1) in digests
    # What is written down and changes nothing is the same policy.
    same = budgets(named={"runs_per_day": 3}), budgets(cost_usd_per_day=5)
    assert all(policy_digest(registry, Limits(), ApprovalRule(), one, 1) in digests for one in same)


def budgets(
    *,
    zone: str = "Europe/Berlin",
    named: dict[str, float] | None = None,
    any_skill: dict[str, float] | None = None,
    **overall: float,
) -> Budgets:
    registry = Registry(BUILT_IN, tiers={}, cooldowns_s={})
    limits = {"runs_per_day": 3, "cost_usd_per_day": 5.0, "gpu_hours_per_day": 2.0}
    return Budgets.from_settings(
        registry,
        ZoneInfo(zone),
        BudgetSettings.model_validate(limits | overall),
        BudgetSettings.model_validate(limits | (any_skill or {})),
        {"propose_config": BudgetSettings.model_validate(named)} if named else {},
    )


# Over the wire.


@pytest.fixture
async def proven(tmp_path: Path) -> AsyncIterator[Plane]:
    """A plane on which one propose_config has succeeded under a person's approval."""
    async with plane_in(tmp_path / "home", **SETTINGS) as plane:
        run = await plane.run("propose_config")
        await plane.decide(await plane.approval_of(run))
        done = await plane.until(run.name)
        assert done.state == types.SKILL_RUN_STATE_SUCCEEDED
        yield plane


def service(plane: Plane, identity: str = "admin") -> Any:
    return pb_grpc.AutonomyServiceStub(plane.channel(identity))


async def autonomy(plane: Plane, skill: str = "") -> standing_types.Autonomy:
    answer: standing_types.Autonomy = await service(plane).GetAutonomy(
        pb.GetAutonomyRequest(skill=skill), timeout=10
    )
    return answer


async def refusal(call: Any) -> RichError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode_error(caught.value)


async def given_to(plane: Plane, **parameters: Any) -> standing_types.StandingApproval:
    run = await plane.run("set_autonomy", {"skill": "propose_config", **parameters})
    assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
    name = str(run.results[0]["name"])
    answer: standing_types.StandingApproval = await service(plane).GetStandingApproval(
        pb.GetStandingApprovalRequest(name=name), timeout=10
    )
    return answer


def theme(plane: Plane, name: str) -> None:
    plane.around.experience.opportunities.insert(
        0,
        experience_types.Opportunity(
            name=f"{PROJECT}/opportunities/{name}",
            kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
            label=name,
            keywords=["a", "b", "c"],
            runs=90,
        ),
    )
    plane.around.experience.state.detect_time.GetCurrentTime()


async def test_missing_facts_refuse_each_with_its_reason(plane: Plane) -> None:
    error = await plane.refused("RunSkill", _set_request())
    assert error.reason == "NOT_READY"
    assert set(error.metadata) >= {"proven_runs"}
    facts = {fact.fact: fact.met for fact in (await autonomy(plane, "skills/propose_config")).readiness}
    assert facts == {
        "no_lock": True,
        "audit_verifies": True,
        "probes_up": True,
        "no_incident": True,
        "proven_runs": False,
    }
    plane.around.monitor.incidents.append("incidents/1")
    facts = {fact.fact: fact.met for fact in (await autonomy(plane, "skills/propose_config")).readiness}
    assert not facts["no_incident"]
    assert "incidents/1" in (await plane.refused("RunSkill", _set_request())).message
    plane.around.monitor.incidents.clear()
    assert (await plane.refused("RunSkill", _set_request("rollback"))).reason == "NOT_DELEGABLE"
    assert (await plane.refused("RunSkill", _set_request("train_adapter"))).reason == "NOT_DELEGABLE"
    assert (await plane.refused("RunSkill", _set_request(), "approver")).reason == "ROLE_INSUFFICIENT"
    direct = await refusal(service(plane).SetAutonomy(pb.SetAutonomyRequest(), timeout=5))
    assert direct.reason == "GRANT_MISSING"
    wider = pb.UpdateAutonomyRequest(mode=standing_types.AUTONOMY_MODE_BOUNDED_AUTO)
    assert (await refusal(service(plane).UpdateAutonomy(wider, timeout=5))).reason == "AUTONOMY_BY_SKILL"
    viewer = pb.UpdateAutonomyRequest(mode=standing_types.AUTONOMY_MODE_MANUAL_ONLY)
    error = await refusal(service(plane, "viewer").UpdateAutonomy(viewer, timeout=5))
    assert error.reason == "ROLE_INSUFFICIENT"


def _set_request(skill: str = "propose_config") -> skills_pb.RunSkillRequest:
    request = skills_pb.RunSkillRequest(name="skills/set_autonomy")
    request.parameters.update({"skill": skill})
    return request


async def set_by_grant(plane: Plane, token: str, request: pb.SetAutonomyRequest) -> Any:
    stub = service(plane, "service/skills")
    return await stub.SetAutonomy(request, timeout=20, metadata=grant_metadata(token))


async def granted(plane: Plane) -> tuple[str, pb.SetAutonomyRequest]:
    """A delegation that is granted, and not yet called."""
    request = pb.SetAutonomyRequest(
        skill="skills/propose_config", max_uses=1, policy_digest=(await autonomy(plane)).policy_digest
    )
    request.ttl.FromTimedelta(timedelta(hours=1))
    fence = (await plane.call("GetSchedule", skills_pb.GetScheduleRequest())).fence
    token = plane.around.serving["lab"].mint(
        "nightshift.skills.v1.AutonomyService/SetAutonomy",
        request,
        skill="set_autonomy",
        tier=Tier.MANUAL,
        audience="skills",
        fence=fence,
    )
    return token, request


async def test_a_lost_answer_is_given_again_whatever_has_changed_since(proven: Plane) -> None:
    token, request = await granted(proven)
    given = await set_by_grant(proven, token, request)
    proven.around.monitor.probe_up = False
    assert (await refusal(set_by_grant(proven, *await granted(proven)))).reason == "NOT_READY"
    assert await set_by_grant(proven, token, request) == given
    assert [one.name for one in (await autonomy(proven)).standing_approvals] == [given.name]


async def test_a_grant_from_before_the_lock_delegates_nothing_after_it(proven: Plane) -> None:
    token, request = await granted(proven)
    await proven.call("EngageLock", skills_pb.EngageLockRequest())
    assert (await refusal(set_by_grant(proven, token, request))).reason == "PREEMPTED"
    await proven.call("ReleaseLock", skills_pb.ReleaseLockRequest())
    assert (await refusal(set_by_grant(proven, token, request))).reason == "PREEMPTED"
    # Nor does one of an earlier life of the service.
    token, request = await granted(proven)
    await proven.stop()
    await proven.start()
    assert (await refusal(set_by_grant(proven, token, request))).reason == "PREEMPTED"
    assert not (await autonomy(proven)).standing_approvals
    await set_by_grant(proven, *await granted(proven))


async def test_a_covered_plan_runs_by_itself_and_cites_who_allowed_it(proven: Plane) -> None:
    cited: list[str] = []
    effect = proven.around.lab.effect

    async def noted(kind: str, subject: str, answer: Message) -> Any:
        grant = current_call().grant
        cited.append(grant.approval if grant else "")
        return await effect(kind, subject, answer)

    proven.around.lab.effect = noted  # type: ignore[method-assign]
    standing = await given_to(proven, max_uses=1)
    assert standing.state == standing_types.STANDING_APPROVAL_STATE_ACTIVE
    assert standing.approver.endswith("person/admin/admin")
    assert (await autonomy(proven)).mode == standing_types.AUTONOMY_MODE_BOUNDED_AUTO
    theme(proven, "kites")
    await proven.open()

    async def newest() -> types.SkillRun:
        return (await proven.runs("propose_config"))[0]

    run = await eventually(
        newest, lambda one: one.standing_approval and one.state == types.SKILL_RUN_STATE_SUCCEEDED
    )
    assert run.standing_approval == standing.name
    assert run.approval == ""
    assert run.initiator == "trigger:idle"
    assert cited == [standing.name]
    spent = await service(proven).GetStandingApproval(pb.GetStandingApprovalRequest(name=standing.name))
    assert (spent.state, spent.use_count) == (standing_types.STANDING_APPROVAL_STATE_SPENT, 1)
    assert (await autonomy(proven)).mode == standing_types.AUTONOMY_MODE_MANUAL_ONLY
    # The next one asks again.
    theme(proven, "trains")
    run = await eventually(newest, lambda one: one.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL)
    assert run.standing_approval == ""
    events = await eventually(
        lambda: proven.call("ListAuditEvents", skills_pb.ListAuditEventsRequest(kind_prefix="autonomy.")),
        lambda answer: len(answer.audit_events) >= 2,
    )
    assert [event.kind for event in events.audit_events] == ["autonomy.given", "autonomy.used"]
    assert {event.subject for event in events.audit_events} == {standing.name}


async def test_the_way_back_is_one_call_for_any_approver(proven: Plane) -> None:
    standing = await given_to(proven)
    back = pb.UpdateAutonomyRequest(mode=standing_types.AUTONOMY_MODE_MANUAL_ONLY, comment="enough")
    answer = await service(proven, "approver").UpdateAutonomy(back, timeout=10)
    assert answer.mode == standing_types.AUTONOMY_MODE_MANUAL_ONLY
    listed = await service(proven).ListStandingApprovals(pb.ListStandingApprovalsRequest(), timeout=5)
    (revoked,) = listed.standing_approvals
    assert revoked.name == standing.name
    assert revoked.state == standing_types.STANDING_APPROVAL_STATE_REVOKED
    assert revoked.ended_by.endswith("person/approver/approver")
    assert revoked.end_detail == "enough"
    theme(proven, "kites")
    await proven.open()

    async def newest() -> types.SkillRun:
        return (await proven.runs("propose_config"))[0]

    await eventually(newest, lambda one: one.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL)


async def test_a_changed_policy_voids_and_an_unchanged_one_survives_a_restart(proven: Plane) -> None:
    standing = await given_to(proven)
    asked = pb.GetStandingApprovalRequest(name=standing.name)
    await proven.stop()
    await proven.start()
    kept = await service(proven).GetStandingApproval(asked, timeout=5)
    assert kept.state == standing_types.STANDING_APPROVAL_STATE_ACTIVE
    await proven.stop()
    proven.settings["min_production_runs"] = 499
    await proven.start()
    void = await service(proven).GetStandingApproval(asked, timeout=5)
    assert void.state == standing_types.STANDING_APPROVAL_STATE_VOID
    assert (await autonomy(proven)).mode == standing_types.AUTONOMY_MODE_MANUAL_ONLY


async def test_an_armed_rollback_happens_once_and_ends_autonomy(proven: Plane) -> None:
    standing = await given_to(proven)
    proposal = next(iter(proven.around.lab.proposals))
    promoted = await proven.run("promote_config", {"proposal": proposal, "rollback_on_guardrail": True})
    assert promoted.state == types.SKILL_RUN_STATE_SUCCEEDED, promoted
    promotion = str(promoted.results[0]["name"])
    armed = next(one for one in (await autonomy(proven)).standing_approvals if one.promotion)
    assert (armed.promotion, armed.max_uses, armed.skill) == (promotion, 1, "skills/rollback")
    with pytest.raises(NotArmed):
        await proven.guardrail.execute("promotions/other")
    ended = await service(proven).GetStandingApproval(pb.GetStandingApprovalRequest(name=standing.name))
    assert ended.ended_by == "trigger:guardrail"
    run = await proven.guardrail.execute(promotion)
    back = await proven.until(f"skillRuns/{run.id}")
    assert back.state == types.SKILL_RUN_STATE_SUCCEEDED, back
    assert back.standing_approval == armed.name
    with pytest.raises(NotArmed):
        await proven.guardrail.execute(promotion)
    effects = [kind for kind, _ in proven.around.lab.effects]
    assert effects.count("config.rolled_back") == 1
    unarmed = await proven.run("promote_config", {"proposal": proposal})
    with pytest.raises(NotArmed):
        await proven.guardrail.execute(str(unarmed.results[0]["name"]))


async def test_an_armed_rollback_can_be_disarmed(proven: Plane) -> None:
    proposal = next(iter(proven.around.lab.proposals))
    promoted = await proven.run("promote_config", {"proposal": proposal, "rollback_on_guardrail": True})
    (armed,) = (await autonomy(proven)).standing_approvals
    # Going back to manual_only leaves it: it only ever takes something back.
    back = pb.UpdateAutonomyRequest(mode=standing_types.AUTONOMY_MODE_MANUAL_ONLY)
    assert list((await service(proven).UpdateAutonomy(back, timeout=5)).standing_approvals) == [armed]
    revoked = await service(proven, "approver").RevokeStandingApproval(
        pb.RevokeStandingApprovalRequest(name=armed.name), timeout=5
    )
    assert revoked.state == standing_types.STANDING_APPROVAL_STATE_REVOKED
    with pytest.raises(NotArmed):
        await proven.guardrail.execute(str(promoted.results[0]["name"]))

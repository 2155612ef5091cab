"""The scheduler of a real service: triggers, budgets, the predicted window, pauses, over restarts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.storage import Database
from nightshift_skills import __main__ as wiring
from nightshift_skills.books import Books
from nightshift_skills.catalogue import (
    BUILT_IN,
    aggregate_experience,
    cleanup_vram,
    detect_opportunities,
    propose_config,
)
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall
from nightshift_skills.skill import Facts, PlanContext, Skill
from tests.skills.skills_support import Plane, eventually, plane_in

AWAITING = types.SKILL_RUN_STATE_AWAITING_APPROVAL
SUCCEEDED = types.SKILL_RUN_STATE_SUCCEEDED


async def entry(plane: Plane, skill: str) -> types.ScheduleEntry:
    schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
    found: types.ScheduleEntry = next(one for one in schedule.entries if one.skill == f"skills/{skill}")
    return found


async def until_told(plane: Plane, skill: str, words: str) -> None:
    await eventually(lambda: entry(plane, skill), lambda one: words in " ".join(one.reasons))


async def until_runs(plane: Plane, skill: str, count: int) -> list[types.SkillRun]:
    found: list[types.SkillRun] = await eventually(
        lambda: plane.runs(skill), lambda runs: len([r for r in runs if r.end_time.seconds]) >= count
    )
    return found


def instead(monkeypatch: pytest.MonkeyPatch, *skills: Skill) -> None:
    """Gives the service these skills in the place of the built-in ones of their names, or beside them."""
    known = {skill.id: skill for skill in BUILT_IN}
    monkeypatch.setattr(wiring, "BUILT_IN", tuple({**known, **{s.id: s for s in skills}}.values()))


def behind(plane: Plane, statement: str) -> None:
    """Changes the store while the service is down."""
    url = f"sqlite:///{plane.home / 'skills' / 'skills.db'}"
    with Database(url, migrations="nightshift_skills", name="intruder") as db:
        db.write_sync(lambda connection: connection.exec_driver_sql(statement).close())


async def recount(context: PlanContext, parameters: aggregate_experience.AggregateParameters) -> Any:
    """Always something to do."""
    plan = await aggregate_experience.plan(context, parameters)
    if isinstance(plan, NothingToDo):
        return Plan(
            skill="skills/aggregate_experience",
            subject=context.limits.project,
            summary="again",
            calls=_CALLS,
        )
    return plan


_CALLS = (
    PlannedCall.of(aggregate_experience.METHOD, experience_pb.AggregateRequest(parent="projects/default")),
)


async def test_times_missed_while_the_plane_was_down_are_caught_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, replace(aggregate_experience.SKILL, plan=recount, cooldown_s=0))
    settings = {"crons": {"aggregate_experience": ["0 4 * * *", "30 5 * * *"]}}
    async with plane_in(tmp_path / "home", **settings) as plane:
        await plane.open()
        await asyncio.sleep(0.8)
        assert await plane.runs("aggregate_experience") == []
        before = await entry(plane, "aggregate_experience")
        (cron,) = [one for one in before.triggers if one.trigger == "cron"]
        assert not cron.fires
        assert 0 < cron.next_time.seconds - datetime.now(UTC).timestamp() <= 86_400
        await plane.stop()
        behind(plane, "UPDATE trigger_marks SET since = '2026-01-01 00:00:00.000000'")
        await plane.start()
        (run,) = await until_runs(plane, "aggregate_experience", 1)
        assert (run.state, run.initiator) == (SUCCEEDED, "trigger:cron")
        await asyncio.sleep(1.0)
        assert len(await plane.runs("aggregate_experience")) == 1
        assert not (await entry(plane, "aggregate_experience")).due


async def test_a_cron_time_of_a_confirm_skill_asks_and_never_runs(tmp_path: Path) -> None:
    settings = {"crons": {"propose_config": ["0 4 * * *"]}}
    async with plane_in(tmp_path / "home", **settings) as plane:
        await plane.open()
        await plane.stop()
        behind(plane, "UPDATE trigger_marks SET since = '2026-01-01 00:00:00.000000'")
        await plane.start()
        (run,) = await eventually(lambda: plane.runs("propose_config"), lambda runs: len(runs) == 1)
        assert run.initiator in ("trigger:cron", "trigger:idle")
        await asyncio.sleep(0.8)
        assert (await plane.get(run.name)).state == AWAITING
        assert plane.around.lab.effects == []


async def test_new_runs_and_intervals_call_for_a_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, replace(aggregate_experience.SKILL, plan=recount, cooldown_s=0))
    settings = {"new_data_runs": {"aggregate_experience": 100}}
    async with plane_in(tmp_path / "home", **settings) as plane:
        # Never yet: all 1,000 runs are new.
        (run,) = await until_runs(plane, "aggregate_experience", 1)
        assert run.initiator == "trigger:new_data"
        plane.around.experience.state.run_count += 99
        await asyncio.sleep(0.8)
        assert len(await plane.runs("aggregate_experience")) == 1
        await plane.stop()
        await plane.start()
        plane.around.experience.state.run_count += 1
        await until_runs(plane, "aggregate_experience", 2)
        await asyncio.sleep(0.6)
        assert len(await plane.runs("aggregate_experience")) == 2
        await plane.stop()
        plane.settings["intervals_s"] = {"aggregate_experience": 0.5}
        await plane.start()
        runs = await until_runs(plane, "aggregate_experience", 5)
        assert {run.initiator for run in runs[:3]} == {"trigger:interval"}


async def test_events_of_the_audit_chain_call_for_a_skill_once_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = replace(
        aggregate_experience.SKILL,
        plan=recount,
        triggers=("event", "command"),
        events=("lock.released", "users.left"),
        cooldown_s=0,
    )
    instead(monkeypatch, listener)
    async with plane_in(tmp_path / "home") as plane:
        await plane.open()
        await asyncio.sleep(0.6)
        assert await plane.runs("aggregate_experience") == []
        plane.around.monitor.tell(idle=False)
        await plane.call("EngageLock", pb.EngageLockRequest())
        await plane.call("ReleaseLock", pb.ReleaseLockRequest())
        # Nobody hears it before the service goes down.
        await asyncio.sleep(1.2)
        await plane.stop()
        await plane.start()
        plane.around.monitor.tell(idle=True)
        (run,) = await until_runs(plane, "aggregate_experience", 1)
        assert run.initiator == "trigger:event"
        await plane.open()
        await asyncio.sleep(0.6)
        assert len(await plane.runs("aggregate_experience")) == 1
        # A user comes and goes: a workshop has ended.
        await plane.report()
        await until_runs(plane, "aggregate_experience", 2)
        await asyncio.sleep(0.6)
        assert len(await plane.runs("aggregate_experience")) == 2


async def test_a_used_up_budget_of_runs_binds_triggers_over_restarts_and_no_person(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"budgets": {"build_embeddings": {"runs_per_day": 1}}}
    async with plane_in(tmp_path / "home", **settings) as plane:
        plane.around.experience.state.pending_embedding_count = 5
        await until_runs(plane, "build_embeddings", 1)
        plane.around.experience.state.pending_embedding_count = 7
        await asyncio.sleep(0.8)
        await plane.stop()
        await plane.start()
        await plane.open()
        await asyncio.sleep(0.8)
        assert len(await plane.runs("build_embeddings")) == 1
        found = await entry(plane, "build_embeddings")
        assert not found.due
        assert any("its runs of today are used up" in reason for reason in found.reasons)
        assert found.budget.runs == 0
        assert found.age.seconds >= 0
        schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
        assert schedule.budget.runs == 999
        assert schedule.budget.renew_time.seconds > schedule.schedule_time.seconds
        run = await plane.run("build_embeddings")
        assert (await plane.until(run.name)).state == SUCCEEDED


async def costly(context: PlanContext, parameters: propose_config.ProposeParameters) -> Any:
    """As propose_config plans, for 0.60 $."""
    plan = await propose_config.plan(context, parameters)
    return plan if isinstance(plan, NothingToDo) else plan.model_copy(update={"cost_usd": 0.6})


async def test_nobody_exceeds_a_cost_budget_and_two_approvals_count_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, replace(propose_config.SKILL, plan=costly, triggers=("command",), cooldown_s=0))
    settings: dict[str, Any] = {
        "skill_budget": {"runs_per_day": 9, "cost_usd_per_day": 1.0, "gpu_hours_per_day": 1}
    }
    async with plane_in(tmp_path / "home", **settings) as plane:
        first = await plane.run("propose_config")
        await plane.decide(await plane.approval_of(first))
        assert (await plane.until(first.name)).state == SUCCEEDED
        plane.around.lab.proposals.clear()
        second = await plane.run("propose_config")
        assert second.state == AWAITING, "asking costs nothing"
        approval = await plane.approval_of(second)
        request = pb.DecideApprovalRequest(
            name=approval.name,
            decision=pb.DECISION_APPROVE,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
        )
        error = await plane.refused("DecideApproval", request)
        assert error.reason == "BUDGET_EXCEEDED"
        assert error.code.name == "FAILED_PRECONDITION"
        assert "0.40 $ are left" in error.message
        confirm = pb.RunSkillRequest(name="skills/propose_config", plan_digest=approval.plan.digest)
        assert (await plane.refused("RunSkill", confirm)).reason == "BUDGET_EXCEEDED"
        assert (await plane.get(second.name)).state == AWAITING
        # Saying no costs nothing either.
        await plane.decide(approval, approve=False)
        assert len(plane.around.lab.effects) == 1


async def test_no_job_starts_shortly_before_users_are_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long(context: PlanContext, parameters: Any) -> Any:
        plan = await aggregate_experience.plan(context, parameters)
        return plan if isinstance(plan, NothingToDo) else plan.model_copy(update={"duration_s": 3600.0})

    instead(monkeypatch, replace(aggregate_experience.SKILL, plan=long, cooldown_s=0))
    async with plane_in(tmp_path / "home") as plane:
        busy = datetime.now(UTC) + timedelta(minutes=30)
        plane.around.monitor.tell(predicted_busy=busy)
        # A look that began before it was told is over by then.
        await asyncio.sleep(0.8)
        plane.around.experience.state.pending_aggregation_count = 5
        await plane.open()
        found = await eventually(
            lambda: entry(plane, "aggregate_experience"),
            lambda one: any("Users are expected" in reason for reason in one.reasons),
        )
        assert any("3600 s to be of use" in reason for reason in found.reasons)
        await asyncio.sleep(0.6)
        assert await plane.runs("aggregate_experience") == []
        schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
        assert schedule.predicted_busy_time.seconds == int(busy.timestamp())
        plane.around.monitor.tell(predicted_busy=busy + timedelta(hours=1))
        await until_runs(plane, "aggregate_experience", 1)


async def test_an_approver_pauses_an_admin_resumes_and_it_survives_restarts(plane: Plane) -> None:
    def wish(paused: bool) -> pb.UpdateScheduleRequest:
        return pb.UpdateScheduleRequest(skill="skills/build_embeddings", paused=paused, comment="private")

    assert (await plane.refused("UpdateSchedule", wish(True), "viewer")).reason == "ROLE_INSUFFICIENT"
    paused = await plane.call("UpdateSchedule", wish(True), "approver")
    assert paused.paused
    assert paused.paused_by.endswith("person/approver/approver")
    again = await plane.call("UpdateSchedule", wish(True), "admin")
    assert again.paused_by == paused.paused_by
    assert (await plane.refused("UpdateSchedule", wish(False), "approver")).reason == "ROLE_INSUFFICIENT"
    unknown = pb.UpdateScheduleRequest(skill="skills/nobody", paused=True)
    assert (await plane.refused("UpdateSchedule", unknown)).reason == "SKILL_UNKNOWN"
    await plane.stop()
    await plane.start()
    plane.around.experience.state.pending_embedding_count = 5
    await plane.open()
    await asyncio.sleep(0.8)
    assert await plane.runs("build_embeddings") == []
    found = await entry(plane, "build_embeddings")
    assert any("paused by" in reason for reason in found.reasons)
    # A person's command goes on.
    run = await plane.run("build_embeddings")
    assert (await plane.until(run.name)).state == SUCCEEDED
    plane.around.experience.state.pending_embedding_count = 5
    assert not (await plane.call("UpdateSchedule", wish(False), "admin")).paused
    await until_runs(plane, "build_embeddings", 2)

    async def events() -> Any:
        request = pb.ListAuditEventsRequest(kind_prefix="schedule.")
        return (await plane.call("ListAuditEvents", request)).audit_events

    told = await eventually(events, lambda rows: len(rows) == 2)
    assert [row.kind for row in told] == ["schedule.paused", "schedule.resumed"]
    assert "private" not in str(told)


async def test_an_idle_plane_asks_for_the_gpu_once_in_a_while(plane: Plane) -> None:
    """Every turn would ask the GPU service for all its models, all night."""
    await plane.open()
    await eventually(
        lambda: entry(plane, "cleanup_vram"), lambda one: "nothing to do" in " ".join(one.reasons)
    )
    looks = plane.around.trainer.gpu_looks

    async def ticks() -> int:
        return sum(run.done_calls for run in await plane.runs("health_check"))

    before = await ticks()
    await eventually(ticks, lambda count: count >= before + 5)
    assert plane.around.trainer.gpu_looks == looks == 1
    found = await entry(plane, "cleanup_vram")
    assert not found.due
    assert found.next_time.seconds > datetime.now(UTC).timestamp() + 200
    # A person's command looks at once, and so does idleness after users were there.
    await plane.run("cleanup_vram")
    assert plane.around.trainer.gpu_looks == 2
    await plane.report()

    async def seen() -> int:
        return int(plane.around.trainer.gpu_looks)

    await eventually(seen, lambda count: count == 3)


async def test_the_schedule_is_one_reading_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read = Books.read

    async def counted(self: Books, fn: Any, *args: Any) -> Any:
        asked.append(fn.__name__)
        return await read(self, fn, *args)

    async with plane_in(tmp_path / "home", tick_s=3600) as plane:
        await plane.open()
        await asyncio.sleep(0.5)
        monkeypatch.setattr(Books, "read", counted)
        answer = await plane.call("GetSchedule", pb.GetScheduleRequest())
        assert len(answer.entries) == len(BUILT_IN)
        assert asked.count("_book") == 1
        assert set(asked) <= {"_book", "get_usage"}, asked


async def test_a_long_job_leaves_hours_alone_in_which_users_are_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long(context: PlanContext, parameters: Any) -> Any:
        plan = await aggregate_experience.plan(context, parameters)
        return plan if isinstance(plan, NothingToDo) else plan.model_copy(update={"duration_s": 60.0})

    instead(monkeypatch, replace(aggregate_experience.SKILL, plan=long, cooldown_s=0))
    async with plane_in(tmp_path / "home") as plane:
        now = datetime.now(UTC)
        plane.around.monitor.tell(predicted_busy=now - timedelta(minutes=5), last_activity=now)
        await plane.open()
        plane.around.experience.state.pending_aggregation_count = 5
        found = await eventually(
            lambda: entry(plane, "aggregate_experience"),
            lambda one: any("expected in this hour" in reason for reason in one.reasons),
        )
        assert any("60 s to be of use" in reason for reason in found.reasons)
        await asyncio.sleep(0.8)
        assert await plane.runs("aggregate_experience") == []
        # The hour is over, and none like it follows.
        plane.around.monitor.tell(predicted_busy=None)
        await until_runs(plane, "aggregate_experience", 1)


async def test_a_skill_that_breaks_or_plans_too_much_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def greedy(context: PlanContext, parameters: Any) -> Any:
        plan = await aggregate_experience.plan(context, parameters)
        return plan if isinstance(plan, NothingToDo) else plan.model_copy(update={"vram_bytes": 2**30})

    async def broken(context: PlanContext, parameters: Any) -> Any:
        raise ZeroDivisionError

    def conditions(facts: Facts) -> Any:
        raise ZeroDivisionError

    instead(
        monkeypatch,
        replace(aggregate_experience.SKILL, plan=greedy),
        replace(cleanup_vram.SKILL, plan=broken),
        replace(detect_opportunities.SKILL, due=conditions),
    )
    async with plane_in(tmp_path / "home") as plane:
        plane.around.experience.state.pending_aggregation_count = 5
        await plane.open()
        for skill, words in (
            ("aggregate_experience", "planned to keep the GPU"),
            ("cleanup_vram", "An error of ours"),
            ("detect_opportunities", "An error of ours"),
        ):
            await until_told(plane, skill, words)
            assert await plane.runs(skill) == []
        request = pb.RunSkillRequest(name="skills/aggregate_experience")
        assert (await plane.refused("RunSkill", request)).reason == "PLAN_OUT_OF_BOUNDS"
        # All others go on, turn after turn.
        plane.around.experience.state.pending_embedding_count = 5
        await until_runs(plane, "build_embeddings", 1)
        assert [kind for kind, _ in plane.around.experience.effects] == ["experience.embedded"]

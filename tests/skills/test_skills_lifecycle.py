"""What survives: restarts, lost answers, services that go away, a user at any moment, a tampered log."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as pb_grpc
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.tls import create_credential, load_credential
from nightshift_kit.storage import Database
from nightshift_skills.approvals import persons_behind
from nightshift_skills.errors import TierLoosened
from tests.skills.skills_support import Plane, eventually, plane_in

TRAINING = {"base_model": "/models/tiny", "dataset": "/data/rows.jsonl", "max_steps": 60}
RUNNING = types.SKILL_RUN_STATE_RUNNING
SUCCEEDED = types.SKILL_RUN_STATE_SUCCEEDED


def change(path: Path, statement: str) -> None:
    """Changes a database behind its service's back, through the library that the service uses: two SQLite
    libraries in one process drop each other's locks.
    """
    with Database(f"sqlite:///{path}", migrations="nightshift_skills", name="intruder") as db:
        db.write_sync(lambda connection: connection.exec_driver_sql(statement).close())


async def trained(plane: Plane, steps: int = 60) -> types.SkillRun:
    """A training at work."""
    run = await plane.run("train_adapter", TRAINING | {"max_steps": steps})
    await plane.decide(await plane.approval_of(run))
    await plane.until(run.name, RUNNING)

    async def jobs() -> list[trainer_types.TrainingJob]:
        return list(plane.around.trainer.jobs.values())

    await eventually(jobs, lambda found: found and found[-1].step > 2)
    return run


async def test_an_approval_given_while_a_user_is_there_is_not_lost(plane: Plane) -> None:
    plane.around.monitor.tell(idle=False)
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    await asyncio.sleep(0.8)
    assert (await plane.get(run.name)).state == types.SKILL_RUN_STATE_QUEUED
    assert plane.around.lab.effects == []
    plane.around.monitor.tell(idle=True)
    assert (await plane.until(run.name)).state == SUCCEEDED


async def test_approvals_and_the_lock_survive_a_restart(plane: Plane) -> None:
    run = await plane.run("propose_config")
    approval = await plane.approval_of(run)
    await plane.control("person/admin").EngageLock(pb.EngageLockRequest(comment="night"), timeout=5)
    before = await plane.call("GetSchedule", pb.GetScheduleRequest())
    await plane.stop()
    await plane.start()
    schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
    assert not schedule.open
    assert schedule.fence > before.fence
    assert "lock" in schedule.reasons[0]
    assert (await plane.call("GetLock", pb.GetLockRequest())).comment == "night"
    assert await plane.approval_of(run) == approval
    await plane.call("ReleaseLock", pb.ReleaseLockRequest())
    await plane.decide(approval)
    assert (await plane.until(run.name)).state == SUCCEEDED


async def test_a_training_goes_on_after_a_restart_under_its_approval(plane: Plane) -> None:
    run = await trained(plane, 120)
    await plane.stop()
    (job,) = plane.around.trainer.jobs.values()
    assert job.state == trainer_types.TRAINING_JOB_STATE_PAUSED
    await plane.start()
    done = await plane.until(run.name)
    assert done.state == SUCCEEDED
    assert [kind for kind, _ in plane.around.trainer.effects] == ["job.created", "job.resumed"]
    assert done.approval == run.approval


async def test_a_plan_that_changed_after_its_approval_does_not_run(plane: Plane) -> None:
    plane.around.monitor.tell(idle=False)
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    plane.around.lab.text = "Look at it by daylight."
    plane.around.monitor.tell(idle=True)
    done = await plane.until(run.name)
    assert done.state == types.SKILL_RUN_STATE_FAILED
    assert done.failure.reason == "PLAN_CHANGED"
    assert plane.around.lab.effects == []


async def test_a_lost_answer_is_asked_for_again_and_the_effect_happens_once(plane: Plane) -> None:
    plane.around.lab.lose_answers = 2
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    assert (await plane.until(run.name)).state == SUCCEEDED
    assert len(plane.around.lab.effects) == 1


async def test_a_service_that_stays_away_costs_no_approved_effect(plane: Plane) -> None:
    plane.around.lab.lose_answers = 10_000
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    waiting = await plane.until(run.name, types.SKILL_RUN_STATE_INTERRUPTED)
    assert not waiting.end_time.seconds
    plane.around.lab.lose_answers = 0
    assert (await plane.until(run.name)).state == SUCCEEDED
    assert len(plane.around.lab.effects) == 1


async def test_a_user_in_the_middle_of_an_effect_neither_loses_nor_doubles_it(plane: Plane) -> None:
    plane.around.lab.delay_s = 0.5
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    await plane.until(run.name, RUNNING)
    await asyncio.sleep(0.1)
    assert (await plane.report()).preempted
    assert (await plane.until(run.name, types.SKILL_RUN_STATE_PREEMPTED)).preemption_count == 1
    plane.around.lab.delay_s = 0
    assert (await plane.until(run.name)).state == SUCCEEDED
    assert len(plane.around.lab.effects) == 1


async def test_idle_work_stopped_by_a_user_goes_on_from_its_watermark(plane: Plane) -> None:
    experience = plane.around.experience
    experience.embed_s = 0.1
    experience.state.pending_embedding_count = 512 * 8
    runs = await eventually(
        lambda: plane.runs("build_embeddings"), lambda found: found and found[0].done_calls
    )
    await plane.report("generation_started", run_id="run_1")
    await plane.until(runs[0].name, types.SKILL_RUN_STATE_PREEMPTED)
    kinds = [activity.kind for activity in plane.around.monitor.activities]
    assert "generation_started" in kinds
    done = await plane.until(runs[0].name)
    assert done.state == SUCCEEDED
    assert done.preemption_count == 1
    assert experience.state.embedded_count == 512 * 8


async def test_a_person_pauses_resumes_and_cancels(plane: Plane) -> None:
    run = await trained(plane, 400)
    (job,) = plane.around.trainer.jobs.values()
    paused = await plane.run("pause_training", {"training_job": job.name})
    assert paused.state == SUCCEEDED, paused
    held = await plane.until(run.name, types.SKILL_RUN_STATE_PREEMPTED)
    assert "resume_training" in held.outcome
    await asyncio.sleep(1)
    assert (await plane.get(run.name)).state == types.SKILL_RUN_STATE_PREEMPTED
    plan = await plane.run("resume_training", {"training_job": job.name})
    await plane.decide(await plane.approval_of(plan))
    await plane.until(plan.name, RUNNING)
    await eventually(lambda: _job(plane), lambda job: job.state == trainer_types.TRAINING_JOB_STATE_RUNNING)
    cancelled = await plane.run("cancel_training", {"training_job": job.name})
    assert cancelled.state == SUCCEEDED
    assert (await plane.until(plan.name)).state == types.SKILL_RUN_STATE_CANCELLED
    assert (await plane.until(run.name)).state == types.SKILL_RUN_STATE_CANCELLED


async def _job(plane: Plane) -> trainer_types.TrainingJob:
    return next(iter(plane.around.trainer.jobs.values()))


async def test_cancelling_a_training_run_cancels_its_job(plane: Plane) -> None:
    run = await trained(plane, 400)
    answer = await plane.call("CancelSkillRun", pb.CancelSkillRunRequest(name=run.name))
    assert answer.state == types.SKILL_RUN_STATE_CANCELLED
    job = await _job(plane)
    assert job.state == trainer_types.TRAINING_JOB_STATE_CANCELLED
    assert plane.around.trainer.effects[-1][1].endswith("person/admin/admin")


async def test_the_lock_stops_a_training_at_once(plane: Plane) -> None:
    run = await trained(plane, 400)
    await plane.control("person/admin").EngageLock(pb.EngageLockRequest(), timeout=5)
    stopped = await plane.until(run.name, types.SKILL_RUN_STATE_PREEMPTED)
    assert "lock" in stopped.outcome
    await eventually(lambda: _job(plane), lambda job: job.state == trainer_types.TRAINING_JOB_STATE_PAUSED)
    await plane.call("ReleaseLock", pb.ReleaseLockRequest())
    await plane.until(run.name, RUNNING)


async def test_a_platform_that_is_gone_stops_background_work_after_its_grace(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home", platform_gone_grace_s=0.6) as plane:
        run = await trained(plane, 400)
        plane.around.monitor.tell(platform_up=False)
        stopped = await plane.until(run.name, types.SKILL_RUN_STATE_PREEMPTED)
        assert "platform" in stopped.outcome
        schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
        assert not schedule.open
        plane.around.monitor.tell(platform_up=True)
        await plane.until(run.name, RUNNING)


async def test_two_persons_where_two_are_asked_for(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home", two_person=True) as plane:
        run = await plane.run("propose_config", identity="approver1")
        approval = await plane.approval_of(run)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plane.decide(approval, identity="approver1")
        assert decode_error(caught.value).reason == "SELF_APPROVAL"
        request = pb.RunSkillRequest(name="skills/propose_config", plan_digest=run.plan.digest)
        assert (await plane.refused("RunSkill", request, "approver1")).reason == "SELF_APPROVAL"
        # Another role makes nobody a second person.
        alone = persons_behind(run.initiator, "")
        assert alone == persons_behind(run.initiator.replace("/approver/", "/admin/"), "")
        assert not alone & persons_behind(run.initiator.replace("approver1", "approver2"), "")
        assert not persons_behind("spiffe://nightshift.local/service/approver1", "")
        create_credential(plane.plane_settings, "person", "approver1", "admin")
        promoted = load_credential(plane.plane_settings, "person/approver1")
        port = plane.plane_settings.port("skills")
        async with channel_to(f"127.0.0.1:{port}", "skills", promoted) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.SkillsServiceStub(channel).RunSkill(request, timeout=10)
        assert decode_error(caught.value).reason == "SELF_APPROVAL"
        confirmed = await plane.call("RunSkill", request, "approver2")
        assert confirmed.name == run.name
        assert (await plane.until(run.name)).state == SUCCEEDED
        assert (await plane.approval_of(run)).decider.endswith("approver2")


async def test_an_approval_expires(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home", approval_ttl_s=0.6) as plane:
        run = await plane.run("train_adapter", TRAINING)
        approval = await plane.approval_of(run)
        assert (await plane.until(run.name)).state == types.SKILL_RUN_STATE_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plane.decide(approval)
        assert decode_error(caught.value).reason == "APPROVAL_EXPIRED"


async def test_a_loosened_tier_keeps_the_service_from_starting(tmp_path: Path) -> None:
    with pytest.raises(TierLoosened):
        async with plane_in(tmp_path / "home", tiers={"train_adapter": "AUTO"}):
            pass


async def test_watchers_get_the_state_and_then_what_changes(plane: Plane) -> None:
    run = await plane.run("train_adapter", TRAINING)
    stream = plane.stub().WatchSkillRuns(pb.WatchSkillRunsRequest(), timeout=15)
    first = await stream.read()
    assert first.skill_run.name == run.name
    complete = await stream.read()
    assert not complete.HasField("skill_run")
    await plane.decide(await plane.approval_of(run))
    states: list[int] = []
    while not states or states[-1] != SUCCEEDED:
        message = await stream.read()
        if message.HasField("skill_run") and message.skill_run.name == run.name:
            states.append(message.skill_run.state)
            seq = message.seq
    stream.cancel()
    assert states[-1] == SUCCEEDED
    resumed = plane.stub().WatchSkillRuns(pb.WatchSkillRunsRequest(after_seq=first.seq), timeout=15)
    found = []
    while True:
        message = await resumed.read()
        found.append(message)
        if message.seq >= seq:
            break
    assert any(one.skill_run.state == SUCCEEDED for one in found)
    approvals = plane.stub().WatchApprovals(pb.WatchApprovalsRequest(after_seq=1), timeout=15)
    while True:
        message = await approvals.read()
        if message.HasField("approval"):
            break
    assert message.approval.state == types.APPROVAL_STATE_APPROVED
    approvals.cancel()
    resumed.cancel()


async def test_the_audit_verifies_and_a_change_in_any_outbox_is_named(plane: Plane) -> None:
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    await plane.until(run.name)

    async def verify() -> pb.VerifyAuditResponse:
        answer: pb.VerifyAuditResponse = await plane.call("VerifyAudit", pb.VerifyAuditRequest())
        return answer

    report = await eventually(
        verify, lambda found: found.checkpoint_count and found.event_count and not found.unsealed_count
    )
    assert report.valid, report
    assert list(report.unreachable) == []
    events = await plane.call("ListAuditEvents", pb.ListAuditEventsRequest(page_size=1000))
    kinds = [event.kind for event in events.audit_events]
    for kind in ("approval.requested", "approval.decided", "run.started", "grant.minted", "proposal.created"):
        assert kind in kinds
    assert {event.source for event in events.audit_events} == {"skills", "lab"}
    some = await plane.call("ListAuditEvents", pb.ListAuditEventsRequest(kind_prefix="approval."))
    assert len(some.audit_events) == 2
    bad = next(event for event in events.audit_events if event.source == "lab")
    change(plane.home / "lab.db", f"UPDATE kit_outbox SET actor = 'nobody' WHERE seq = {bad.source_seq}")
    report = await verify()
    assert not report.valid
    assert report.first_bad_seq == bad.seq
    assert "lab" in report.detail


async def test_a_report_flood_is_cheap_and_stops_once(plane: Plane) -> None:
    await plane.open()
    heard = await asyncio.gather(*(plane.report() for _ in range(400)))
    assert sum(one.preempted for one in heard) == 1
    assert len({one.preemption for one in heard}) == 1
    listed = await plane.call("ListPreemptions", pb.ListPreemptionsRequest())
    assert len(listed.preemptions) == 1
    await asyncio.sleep(1.2)
    assert sum(activity.count for activity in plane.around.monitor.activities) == 400
    assert len(plane.around.monitor.activities) <= 3


async def test_without_an_audit_nothing_is_done(plane: Plane) -> None:
    run = await plane.run("propose_config")
    approval = await plane.approval_of(run)
    change(plane.home / "skills" / "skills.db", "ALTER TABLE kit_outbox RENAME TO elsewhere")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.decide(approval)
    assert decode_error(caught.value).reason == "AUDIT_UNAVAILABLE"
    lock = await plane.refused("ReleaseLock", pb.ReleaseLockRequest())
    assert lock.reason == "AUDIT_UNAVAILABLE"
    assert (await plane.approval_of(run)).state == types.APPROVAL_STATE_PENDING
    assert (await plane.get(run.name)).state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
    change(plane.home / "skills" / "skills.db", "ALTER TABLE elsewhere RENAME TO kit_outbox")
    await plane.decide(approval)
    assert (await plane.until(run.name)).state == SUCCEEDED


async def test_a_skill_whose_code_changed_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tmp_path / "code"
    copies.mkdir()

    def copied(function: Any) -> str:
        source = Path(function.__code__.co_filename)
        copy = copies / source.name
        if not copy.exists():
            shutil.copy(source, copy)
        return str(copy)

    monkeypatch.setattr("nightshift_skills.registry.inspect.getfile", copied)
    async with plane_in(tmp_path / "home") as plane:
        with (copies / "propose_config.py").open("a") as file:
            file.write("# changed\n")
        request = pb.RunSkillRequest(name="skills/propose_config")
        assert (await plane.refused("RunSkill", request)).reason == "SKILL_MODIFIED"
        schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
        entry = next(one for one in schedule.entries if one.skill == "skills/propose_config")
        assert "changed since" in entry.reasons[0]

"""The skills service over the wire: catalogue, tiers, approvals, pre-emption, lock, audit."""

from __future__ import annotations

from typing import Any

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.type.v1 import policy_pb2
from nightshift_skills.catalogue import BUILT_IN
from tests.skills.skills_support import Plane, eventually


async def test_the_catalogue_says_what_each_skill_may_do(plane: Plane) -> None:
    answer = await plane.call("ListSkills", pb.ListSkillsRequest(page_size=5))
    rest = await plane.call(
        "ListSkills", pb.ListSkillsRequest(page_size=50, page_token=answer.next_page_token)
    )
    skills = {skill.name: skill for skill in (*answer.skills, *rest.skills)}
    assert set(skills) == {skill.name for skill in BUILT_IN}
    assert not rest.next_page_token
    assert skills["skills/aggregate_experience"].tier == policy_pb2.TIER_AUTO
    assert skills["skills/train_adapter"].tier == policy_pb2.TIER_CONFIRM
    assert skills["skills/rollback"].tier == policy_pb2.TIER_MANUAL
    assert all(len(skill.digest) == 64 and skill.methods for skill in skills.values())
    one = await plane.call("GetSkill", pb.GetSkillRequest(name="skills/rollback"))
    assert one == skills["skills/rollback"]


async def test_idle_work_runs_by_itself(plane: Plane) -> None:
    state = plane.around.experience.state
    state.pending_aggregation_count = 7
    state.pending_embedding_count = 1300
    await eventually(
        lambda: plane.runs("build_embeddings"), lambda runs: bool(runs) and runs[0].end_time.seconds
    )
    runs = await plane.runs("build_embeddings")
    assert runs[0].state == types.SKILL_RUN_STATE_SUCCEEDED
    assert runs[0].done_calls == 3
    assert runs[0].initiator == "trigger:idle"
    assert state.pending_embedding_count == 0
    await eventually(lambda: plane.runs("aggregate_experience"), bool)


async def test_a_proposal_waits_for_its_approval_and_then_happens_once(plane: Plane) -> None:
    run = await plane.run("propose_config")
    assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
    assert plane.around.lab.effects == []
    approval = await plane.approval_of(run)
    assert approval.plan == run.plan
    assert "61 of 800" in approval.plan.evidence[0]
    again = await plane.run("propose_config")
    assert again.name == run.name
    decided = await plane.decide(approval, comment="good")
    assert decided.state == types.APPROVAL_STATE_APPROVED
    assert (await plane.decide(approval)).decide_time == decided.decide_time
    run = await plane.until(run.name)
    assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
    assert [kind for kind, _ in plane.around.lab.effects] == ["proposal.created"]
    assert run.results[0]["config_id"] == "old_lanterns"
    nothing = await plane.run("propose_config")
    assert nothing.state == types.SKILL_RUN_STATE_NOTHING_TO_DO


async def test_a_command_is_its_own_approval(plane: Plane) -> None:
    await plane.decide(await plane.approval_of(await plane.run("propose_config")))
    await eventually(lambda: plane.runs("propose_config"), lambda runs: runs[0].state in (4,))
    proposal = next(iter(plane.around.lab.proposals))
    plane.around.monitor.tell(idle=False)
    run = await plane.run("promote_config", {"proposal": proposal})
    assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
    assert run.on_purpose
    approval = await plane.approval_of(run)
    assert approval.state == types.APPROVAL_STATE_APPROVED
    assert approval.decider.endswith("person/admin/admin")
    refused = await plane.run("promote_config", {"proposal": proposal, "path": "config.py"})
    assert refused.state == types.SKILL_RUN_STATE_FAILED
    assert refused.failure.reason == "PROTECTED_FILE"
    promotion = run.results[0]["name"]
    back = await plane.run("rollback", {"promotion": promotion})
    assert back.state == types.SKILL_RUN_STATE_SUCCEEDED


async def test_training_makes_room_for_a_user_and_goes_on_after_quiet(plane: Plane) -> None:
    parameters = {"base_model": "/models/tiny", "dataset": "/data/rows.jsonl", "max_steps": 60}
    plan = await plane.call("PlanSkill", _plan("train_adapter", parameters))
    await plane.open()
    run = await plane.run("train_adapter", parameters, plan_digest=plan.plan.digest)
    assert run.state == types.SKILL_RUN_STATE_RUNNING, run
    await eventually(plane_jobs(plane), lambda jobs: jobs and jobs[0].step > 3)
    heard = await plane.report()
    assert heard.preempted
    assert heard.preemption
    second = await plane.report()
    assert not second.preempted
    assert second.preemption == heard.preemption
    preempted = await plane.until(run.name, types.SKILL_RUN_STATE_PREEMPTED)
    assert preempted.preemption_count == 1
    done = await plane.until(run.name)
    assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
    assert [kind for kind, _ in plane.around.trainer.effects] == ["job.created", "job.resumed"]
    listed = await plane.call("ListPreemptions", pb.ListPreemptionsRequest())
    preemption = listed.preemptions[0]
    assert preemption.name == heard.preemption
    assert preemption.confirmed
    assert list(preemption.skill_runs) == [run.name]
    spans = [getattr(preemption, name).ToNanoseconds() for name in ("t1", "t2", "t3", "t4")]
    assert 0 < spans[0] <= spans[1] <= spans[2] <= spans[3]


def plane_jobs(plane: Plane):  # type: ignore[no-untyped-def]
    async def jobs() -> list[object]:
        return list(plane.around.trainer.jobs.values())

    return jobs


def _plan(skill: str, parameters: dict[str, Any]) -> pb.PlanSkillRequest:
    request = pb.PlanSkillRequest(name=f"skills/{skill}")
    request.parameters.update(parameters)
    return request

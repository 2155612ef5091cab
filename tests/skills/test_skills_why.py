"""Why a skill will (not) run now, and whom it asks again, over denials and restarts."""

from __future__ import annotations

from typing import Any

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.skills.skills_support import Plane, eventually
from tests.skills.test_skills_schedule import SUCCEEDED, entry, until_told


async def test_what_was_denied_is_not_asked_again_and_the_schedule_says_so_over_restarts(
    plane: Plane,
) -> None:
    await plane.open()
    host = plane.around.trainer.gpu_host
    host.free_bytes = 0
    host.models.add(
        model={"backend": "text", "model": "idle"}, vram_bytes=2**29, unloadable=True, use_known=True
    )

    await plane.report()

    async def asked() -> Any:
        return (await plane.call("ListApprovals", pb.ListApprovalsRequest())).approvals

    approvals = await eventually(asked, lambda found: len(found) == 1)
    assert approvals[0].plan.skill == "skills/cleanup_vram"
    await plane.decide(approvals[0], approve=False)
    for _ in range(2):
        await until_told(plane, "cleanup_vram", "It rests on gpuHost until")
        found = await entry(plane, "cleanup_vram")
        assert not found.due
        assert "(denied)" in found.reasons[0]
        await plane.stop()
        await plane.start()
    assert len(await asked()) == 1
    assert (
        await plane.refused("RunSkill", pb.RunSkillRequest(name="skills/cleanup_vram"))
    ).reason == "COOLDOWN"
    # A dry run tells all the same what it would do.
    planned = await plane.call("PlanSkill", pb.PlanSkillRequest(name="skills/cleanup_vram"))
    assert planned.plan.digest == approvals[0].plan.digest


async def test_a_skill_that_found_nothing_to_do_is_not_called_due(plane: Plane) -> None:
    plane.around.experience.opportunities.clear()
    plane.around.experience.state.detect_time.GetCurrentTime()
    await plane.open()
    await until_told(plane, "propose_config", "When last looked at: No theme is without a config.")
    found = await entry(plane, "propose_config")
    assert not found.due
    assert not found.age.seconds
    assert any("production runs" in reason for reason in found.reasons), "what calls for it is told, too"


async def test_a_watcher_of_approvals_resumes_over_a_restart_with_what_it_missed(plane: Plane) -> None:
    first = await plane.run("propose_config")
    second = await plane.run("train_adapter", {"base_model": "m", "dataset": "d"})
    stream = plane.stub().WatchApprovals(pb.WatchApprovalsRequest(), timeout=20)
    state = [await stream.read() for _ in range(3)]
    stream.cancel()
    assert [message.approval.name for message in state] == [first.approval, second.approval, ""]
    await plane.decide(await plane.approval_of(second), approve=False)
    await plane.stop()
    await plane.start()
    resumed = plane.stub().WatchApprovals(pb.WatchApprovalsRequest(after_seq=state[-1].seq), timeout=20)
    found = [await resumed.read() for _ in range(2)]
    assert [message.approval.name for message in found] == ["", second.approval]
    assert found[1].approval.state == types.APPROVAL_STATE_DENIED
    # The other one still waits, and is decided with the nonce from before.
    await plane.decide(await plane.approval_of(first))
    message = await resumed.read()
    resumed.cancel()
    assert (message.approval.name, message.approval.state) == (first.approval, types.APPROVAL_STATE_APPROVED)
    assert message.seq > found[1].seq
    assert (await plane.until(first.name)).state == SUCCEEDED

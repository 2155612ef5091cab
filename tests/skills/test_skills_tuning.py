"""set_tuning: a person's command, on the version that was looked at; nothing where nothing changes."""

from __future__ import annotations

from typing import Any

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.skills.skills_support import Plane


async def test_auto_tune_is_switched_by_command_alone(plane: Plane) -> None:
    tuning = plane.around.experience.tuning
    run = await plane.run("set_tuning", {"project": "default", "enabled": True})
    assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
    assert tuning["projects/default/tuning"].enabled
    assert tuning["projects/default/tuning"].etag == "1"
    shown = await plane.call("PlanSkill", _request(enabled=False))
    assert "enabled: True → False" in shown.plan.summary
    assert dict(shown.plan.base_versions) == {"projects/default/tuning": "1"}
    again = await plane.call("PlanSkill", _request(enabled=True))
    assert not again.HasField("plan") and "so already" in again.nothing_to_do
    everywhere = await plane.run("set_tuning", {"everywhere": True, "enabled": True})
    assert everywhere.state == types.SKILL_RUN_STATE_SUCCEEDED, everywhere
    assert set(tuning) == {"projects/default/tuning", "tuning"}
    viewer = pb.RunSkillRequest(name="skills/set_tuning")
    viewer.parameters.update({"enabled": False})
    assert (await plane.refused("RunSkill", viewer, "viewer")).reason == "ROLE_INSUFFICIENT"
    assert tuning["projects/default/tuning"].enabled


def _request(**parameters: Any) -> pb.PlanSkillRequest:
    request = pb.PlanSkillRequest(name="skills/set_tuning")
    request.parameters.update(parameters)
    return request

"""Skills, the real lab and a model server: missing languages are added and go again without a trace."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from tests.lab.conftest import copy_platform
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import surroundings
from tests.skills.test_skills_with_the_lab import _up, real_lab, tree
from tests.support.chat_server import chat_server
from tests.support.translator import translate

SUCCEEDED = types.SKILL_RUN_STATE_SUCCEEDED
CONFIG = "schemas/configs/interception/bauanleitung.json"


@pytest.mark.parametrize("with_model", [True, False])
async def test_languages_come_by_approval_and_go_by_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_model: bool
) -> None:
    home, base, platform = tmp_path / "home", find_free_base(), copy_platform(tmp_path / "platform")
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    before = tree(platform)
    async with chat_server(translate) as server, surroundings(home) as around:
        if with_model:
            monkeypatch.setenv("NIGHTSHIFT_LAB_LLM__BASE_URL", server.base_url)
            monkeypatch.setenv("NIGHTSHIFT_LAB_LLM__MODEL", "tiny")
        async with real_lab(home, base, platform):
            # Nothing of its own accord: the test asks, and looks at the schedule.
            plane = Plane(home, around, base, {**FAST, "tick_s": 0.5})
            plane.instead = {"lab": (settings.port("lab"), settings.control_port("lab"))}
            credential = load_credential(settings, f"person/{os.getuid()}")
            channel = channel_to(f"127.0.0.1:{settings.port('lab')}", "lab", credential)
            lab: Any = lab_grpc.LabServiceStub(channel)
            await eventually(lambda: _up(lab), bool, 30)
            await plane.start()
            try:
                await _validated(plane, lab)
                assert tree(platform) == before
                if with_model:
                    await _translated(plane, platform, before)
                else:
                    await _says_why_not(plane)
                assert tree(platform) == before
                report = await eventually(
                    lambda: plane.call("VerifyAudit", pb.VerifyAuditRequest()),
                    lambda found: not found.unsealed_count and not found.unreachable,
                )
                assert report.valid, report
            finally:
                await plane.stop()
                await channel.close()


async def _validated(plane: Plane, lab: Any) -> None:
    """Idle is enough: validate_configs is AUTO."""
    await eventually(
        lambda: lab.GetLabState(lab_pb.GetLabStateRequest(), timeout=5),
        lambda state: state.config_count and not state.pending_validation_count,
    )
    await plane.until((await plane.runs("validate_configs"))[0].name)
    run = await plane.run("validate_configs")
    assert run.state == types.SKILL_RUN_STATE_NOTHING_TO_DO, run


async def _translated(plane: Plane, platform: Path, before: dict[str, str]) -> None:
    old = json.loads((platform / CONFIG).read_text())
    run = await plane.run("translate_configs", {"config": "configs/bauanleitung"})
    assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, run
    assert "Güzel bir ad" in run.plan.diff
    assert tree(platform) == before
    again = await plane.run("translate_configs", {"config": "configs/bauanleitung"})
    assert again.name == run.name
    await plane.decide(await plane.approval_of(run))
    run = await plane.until(run.name)
    assert run.state == SUCCEEDED, run
    assert {path for path, digest in tree(platform).items() if before[path] != digest} == {CONFIG}
    new = json.loads((platform / CONFIG).read_text())
    added = 0
    for field in ("name", "description", "category"):
        for language in set(new[field]) - set(old[field]):
            del new[field][language]
            added += 1
    assert added == 22
    assert json.dumps(new) == json.dumps(old)
    back = await plane.run("rollback", {"promotion": run.results[0]["name"]})
    assert back.state == SUCCEEDED, back


async def _says_why_not(plane: Plane) -> None:
    run = await plane.run("translate_configs")
    assert run.state == types.SKILL_RUN_STATE_NOTHING_TO_DO
    assert "no language model" in run.outcome
    schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
    entry = next(one for one in schedule.entries if one.skill == "skills/translate_configs")
    assert any("no language model" in reason for reason in entry.reasons), entry

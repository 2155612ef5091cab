"""Plug-in skills over the wire: a harmless one that is approved, and one that means harm."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.channels import decode_error
from nightshift_skills.config import SkillsSettings
from nightshift_skills.plugins.host import plugins_of
from tests.skills import hostile_plugin as hostile
from tests.skills.plugin_support import digest_of, install
from tests.skills.skills_support import Plane, eventually, plane_in

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin" / "nightshift_quiet_theme"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where distributions of a test lie; skips where the kernel cannot hold a plug-in at all."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    layers = plugins_of(SkillsSettings(), tmp_path / "probe").layers()
    missing = [layer.name for layer in layers.all if layer.problem and layer.name != "cgroup"]
    if missing:
        pytest.skip(f"this kernel lacks {', '.join(missing)}")
    return folder


def install_example(site: Path) -> None:
    files = {f"{EXAMPLE.name}/{path.name}": path.read_text() for path in EXAMPLE.iterdir() if path.is_file()}
    install(site, "nightshift-quiet-theme", files, {"quiet_theme": "nightshift_quiet_theme:plan"})


def install_hostile(site: Path) -> None:
    install(site, "hostile", hostile.FILES, {"hostile": "hostile:plan"})


@asynccontextmanager
async def plane_with(tmp_path: Path, *names: str, **settings: Any) -> AsyncIterator[Plane]:
    enabled = {name: {"digest": digest_of(name)} for name in names}
    settings = {"plugins": enabled, "plugins_without": ["cgroup"], **settings}
    async with plane_in(tmp_path / "home", **settings) as plane:
        yield plane


async def events(plane: Plane, kind: str, at_least: int = 1) -> list[types.AuditEvent]:
    async def ask() -> list[types.AuditEvent]:
        request = pb.ListAuditEventsRequest(kind_prefix=kind, page_size=200)
        return list((await plane.call("ListAuditEvents", request)).audit_events)

    found: list[types.AuditEvent] = await eventually(ask, lambda answer: len(answer) >= at_least)
    return found


async def attempt(plane: Plane, name: str) -> types.SkillRun:
    parameters = {"attempt": name, "home": str(plane.home), "parent": os.getpid()}
    return await plane.run("plugin_hostile", parameters)


async def test_a_plug_in_plans_and_a_person_lets_skills_act(site: Path, tmp_path: Path) -> None:
    install_example(site)
    async with plane_with(tmp_path, "quiet_theme") as plane:
        skill = await plane.call("GetSkill", pb.GetSkillRequest(name="skills/plugin_quiet_theme"))
        assert list(skill.methods) == [hostile.CREATE]
        run = await plane.run("plugin_quiet_theme")
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, run
        assert run.plan.summary.startswith("Make 1 calls (CreateProposal) planned by the plug-in quiet_theme")
        assert run.plan.reversibility == types.REVERSIBILITY_IRREVERSIBLE
        assert plane.around.lab.effects == []
        again = await plane.run("plugin_quiet_theme")
        assert again.name == run.name
        await plane.decide(await plane.approval_of(run))
        done = await plane.until(run.name)
        assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
        assert [kind for kind, _ in plane.around.lab.effects] == ["proposal.created"]
        none = await plane.run("plugin_quiet_theme", {"least_runs": 100_000})
        assert none.state == types.SKILL_RUN_STATE_NOTHING_TO_DO
        other = pb.RunSkillRequest(name="skills/plugin_quiet_theme")
        other.parameters.update({"other": 1})
        refusal = await plane.refused("RunSkill", other)
        assert refusal.reason == "PARAMETERS_INVALID"
        assert [event.subject for event in await events(plane, "plugin.enabled")] == [skill.name]


async def test_everything_that_a_hostile_plug_in_tries_fails_and_is_audited(
    site: Path, tmp_path: Path
) -> None:
    install_hostile(site)
    async with plane_with(tmp_path, "hostile") as plane:
        before = (plane.home / "settings.toml").read_bytes()
        for name, (reason, _, _) in hostile.CAUGHT.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attempt(plane, name)
            assert decode_error(caught.value).reason == reason, name
        enabled, *audited = await events(plane, "plugin.", len(hostile.CAUGHT) + 1)
        assert enabled.kind == "plugin.enabled"
        for event, (name, (reason, violation, what)) in zip(audited, hostile.CAUGHT.items(), strict=True):
            kind = reason.removeprefix("PLUGIN_").lower()
            assert (event.kind, event.payload["reason"]) == (f"plugin.{kind}", reason), name
            assert not violation or event.payload["violation"] == violation, name
            assert not what or event.payload["what"] == what, name
        for name, said in hostile.IMPOSSIBLE.items():
            run = await attempt(plane, name)
            assert run.state == types.SKILL_RUN_STATE_NOTHING_TO_DO
            assert "opened" not in run.outcome, name
            assert said in run.outcome, name
        assert (plane.home / "settings.toml").read_bytes() == before
        assert not plane.around.lab.effects
        assert not list((plane.home / "skills" / "sandbox").iterdir())
        assert not sandboxed()


def sandboxed() -> list[psutil.Process]:
    """What still runs of plug-ins: guards, and the children that they guard."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "-I" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


async def test_a_user_ends_a_plug_in_that_will_not_go(site: Path, tmp_path: Path) -> None:
    install_hostile(site)
    async with plane_with(tmp_path, "hostile", plugin_timeout_s=30) as plane:
        await plane.open()
        staying = asyncio.create_task(attempt(plane, "stay"))

        async def busy() -> bool:
            return sum(process.num_threads() for process in sandboxed()) >= 5

        await eventually(busy, bool)
        began_s = time.monotonic()
        assert (await plane.report()).preempted
        while sandboxed():
            await asyncio.sleep(0.002)
        took_s = time.monotonic() - began_s
        assert took_s < 0.6, took_s
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await staying
        assert decode_error(caught.value).reason == "PREEMPTED"
        (event,) = await events(plane, "plugin.killed")
        assert event.subject == "skills/plugin_hostile"


async def test_a_deadline_ends_a_plug_in(site: Path, tmp_path: Path) -> None:
    install_hostile(site)
    async with plane_with(tmp_path, "hostile", plugin_timeout_s=0.5) as plane:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attempt(plane, "stay")
        assert decode_error(caught.value).reason == "PLUGIN_KILLED"
        (event,) = await events(plane, "plugin.killed")
        assert event.payload["cause"] == "deadline"
        assert not sandboxed()


async def test_only_the_pinned_distribution_runs(site: Path, tmp_path: Path) -> None:
    install_example(site)
    install_hostile(site)
    async with plane_with(tmp_path, "quiet_theme") as plane:
        listed = await plane.call("ListPlugins", pb.ListPluginsRequest())
        states = {plugin.name: plugin for plugin in listed.plugins}
        assert states["quiet_theme"].state == types.PLUGIN_STATE_ENABLED
        assert states["hostile"].state == types.PLUGIN_STATE_DISABLED
        assert states["hostile"].digest in states["hostile"].detail
        assert (await plane.refused("GetSkill", pb.GetSkillRequest(name="skills/plugin_hostile"))).reason == (
            "SKILL_UNKNOWN"
        )
        run = await plane.run("plugin_quiet_theme")
        code = site / EXAMPLE.name / "__init__.py"
        code.write_text(code.read_text() + "\n")
        request = pb.RunSkillRequest(name="skills/plugin_quiet_theme")
        assert (await plane.refused("RunSkill", request)).reason == "SKILL_MODIFIED"
        listed = await plane.call("ListPlugins", pb.ListPluginsRequest())
        assert next(p for p in listed.plugins if p.name == "quiet_theme").state == types.PLUGIN_STATE_MODIFIED
        # What was approved before the change is not executed by the changed code either.
        await plane.decide(await plane.approval_of(run))
        await asyncio.sleep(0.8)
        assert plane.around.lab.effects == []
        # Taken away for good: what waits for it ends with the next start, and stops nothing else.
        await plane.stop()
        plane.settings["plugins"] = {}
        await plane.start()
        assert (await plane.get(run.name)).failure.reason == "SKILL_UNKNOWN"


async def test_a_missing_layer_refuses_unless_it_is_waived_by_name(site: Path, tmp_path: Path) -> None:
    install_example(site)
    async with plane_with(tmp_path, "quiet_theme", plugins_without=[]) as plane:
        listed = await plane.call("ListPlugins", pb.ListPluginsRequest())
        missing = [layer.name for layer in listed.layers if not layer.present]
        request = pb.RunSkillRequest(name="skills/plugin_quiet_theme")
        if not missing:
            assert (await plane.run("plugin_quiet_theme")).state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
            return
        refusal = await plane.refused("RunSkill", request)
        assert refusal.reason == "PLUGIN_REFUSED"
        assert refusal.metadata["missing"] == ",".join(missing)
        (event,) = await events(plane, "plugin.refused")
        assert event.payload["missing"] == ",".join(missing)


async def test_a_plug_in_s_grant_opens_no_other_method(plane: Plane) -> None:
    lab = plane.around.serving["lab"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.act(
            lab_grpc.LabServiceStub,
            "PromoteProposal",
            lab_pb.PromoteProposalRequest(name="proposals/x"),
            skill="plugin_hostile",
            tier=Tier.MANUAL,
        )
    assert decode_error(caught.value).reason == "GRANT_SUBJECT"

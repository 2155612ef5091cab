"""Plug-in skills over the wire: a harmless one that is approved, and one that means harm."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.errors import GlobalLock
from nightshift_kit.grants import Tier
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from nightshift_skills.books import Books
from nightshift_skills.config import PluginSettings, SkillsSettings
from nightshift_skills.errors import PluginRefused, PluginStopped
from nightshift_skills.gate import Gate
from nightshift_skills.plugins.discovery import discover
from nightshift_skills.plugins.host import plugins_of
from nightshift_skills.plugins.manifest import READABLE
from nightshift_skills.plugins.withheld import WITHHELD
from nightshift_skills.skill import Limits, PlanContext
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
    layers = plugins_of(SkillsSettings(), PlaneSettings(home=tmp_path / "probe")).layers()
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
    async with plane_with(tmp_path, "hostile", plugin_timeout_s=60) as plane:
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
    async with plane_with(tmp_path, "hostile", plugin_timeout_s=100) as plane:
        await plane.open()
        staying = asyncio.create_task(attempt(plane, "stay"))

        async def busy() -> bool:
            return sum(process.num_threads() for process in sandboxed()) >= 5

        await eventually(busy, bool)
        # Whatever it computes, everything else of the machine comes first.
        assert {process.nice() for process in sandboxed()} == {19}
        assert (await plane.report()).preempted
        began_s = time.monotonic()
        while sandboxed():
            # Long before its own time is over. How long it takes is measured elsewhere.
            assert time.monotonic() < began_s + 20
            await asyncio.sleep(0.002)
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


async def test_nothing_of_a_plug_in_runs_under_the_lock(site: Path, tmp_path: Path) -> None:
    install_example(site)
    async with plane_with(tmp_path, "quiet_theme") as plane:
        request = pb.PlanSkillRequest(name="skills/plugin_quiet_theme")
        assert (await plane.call("PlanSkill", request)).HasField("plan")
        await plane.call("EngageLock", pb.EngageLockRequest())
        assert (await plane.refused("PlanSkill", request)).reason == "GLOBAL_LOCK"


async def test_a_plug_in_that_starts_while_a_user_comes_does_not_go_on(site: Path, tmp_path: Path) -> None:
    install_example(site)
    settings = SkillsSettings(
        plugins={"quiet_theme": PluginSettings(digest=digest_of("quiet_theme"))}, plugins_without=("cgroup",)
    )
    database = Database(f"sqlite:///{tmp_path}/skills.db", migrations="nightshift_skills", name="skills")
    database.migrate()
    plugins = plugins_of(settings, PlaneSettings(home=tmp_path / "home"))
    books = Books(database, Outbox("skills", SystemClock()), SystemClock(), new_id)
    gate = Gate(lambda: 1, lambda: 1)
    plugins.attach(books, Silent(), gate)
    (skill,) = plugins.skills
    asked = 0

    def unwanted() -> bool:
        # The gate shuts between the scheduler's last look at it and the child's first moment.
        nonlocal asked
        asked += 1
        return True

    silent: Any = Silent()
    context = PlanContext(
        experience=silent,
        lab=silent,
        trainer=silent,
        limits=Limits(),
        now=SystemClock().now(),
        resting=silent.call,
        unwanted=unwanted,
    )
    try:
        with pytest.raises(PluginStopped):
            await skill.plan(context, skill.parameters())
        assert asked == 1
        gate.restore_lock()
        with pytest.raises(GlobalLock):
            await skill.plan(context, skill.parameters())
        gate.release()
        plugins.end()
        with pytest.raises(PluginStopped):
            await skill.plan(replace(context, unwanted=lambda: False), skill.parameters())
    finally:
        database.close()
    assert not sandboxed()


class Silent:
    """The other services, where nobody is to be asked."""

    async def call(self, *told: Any, **also_told: Any) -> Any:
        raise AssertionError("asked")


@pytest.mark.parametrize("listed", ["{home}/ca/ca.key", "hostile/../../home/ca/ca.key", "hostile/key.py"])
async def test_a_list_of_files_that_leads_out_is_refused(site: Path, tmp_path: Path, listed: str) -> None:
    """The list is read by skills, and what it names would lie in the sandbox."""
    home = tmp_path / "home"
    install(
        site,
        "hostile",
        hostile.FILES,
        {"hostile": "hostile:plan"},
        also_listed=[listed.format(home=home)],
    )
    (home / "ca").mkdir(parents=True)
    (home / "ca" / "ca.key").write_text("secret")
    (site / "hostile" / "key.py").symlink_to(home / "ca" / "ca.key")
    (found,) = [found for found in discover() if found.name == "hostile"]
    for ask in (found.package, found.signature):
        with pytest.raises(PluginRefused, match="leads out"):
            ask()


def test_no_answer_to_a_plug_in_has_a_place_for_what_people_typed() -> None:
    """Fields that hold it are withheld wherever they stand in an answer that plug-ins may read."""
    pool = descriptor_pool.Default()
    seen: set[str] = set()

    def look(message: Descriptor) -> None:
        if message.full_name in seen:
            return
        seen.add(message.full_name)
        for field in message.fields:
            if field.message_type is not None:
                look(field.message_type)
            elif field.type == FieldDescriptor.TYPE_STRING and (
                "prompt" in field.name or "comment" in field.name
            ):
                assert field.name in WITHHELD.get(message.full_name, ()), field.full_name

    for method in READABLE:
        look(pool.FindMethodByName(method.lstrip("/").replace("/", ".")).output_type)
    for name, fields in WITHHELD.items():
        assert set(fields) <= set(pool.FindMessageTypeByName(name).fields_by_name)
        assert name in seen


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

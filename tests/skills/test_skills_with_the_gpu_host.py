"""Skills and the real trainer beside a stand-in platform: models go and come as approved, never in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from nightshift_kit.canonical import canonical_json
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.tls import ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import surroundings
from tests.support.platform_server import Answer, Platform, platform_server

MIB = 2**20
UNLOAD = "/api/diffusers/unload"
SUCCEEDED = types.SKILL_RUN_STATE_SUCCEEDED
PREEMPTED = types.SKILL_RUN_STATE_PREEMPTED


class TrainerProcess:
    """The trainer as a process of its own, which may be killed and started again."""

    def __init__(self, settings: PlaneSettings, told: dict[str, str]) -> None:
        self.settings = settings
        self._environment = {
            **os.environ,
            "NIGHTSHIFT_HOME": str(settings.home),
            "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
            **{f"NIGHTSHIFT_TRAINER_{key.upper()}": value for key, value in told.items()},
        }
        self.child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts, and waits until it answers."""
        self.child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nightshift_trainer",
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        channel = channel_to(
            f"127.0.0.1:{self.settings.port('trainer')}",
            "trainer",
            load_credential(self.settings, f"person/{os.getuid()}"),
        )
        stub: Any = trainer_grpc.TrainerServiceStub(channel)
        await stub.ListAdapters(trainer_pb.ListAdaptersRequest(), timeout=60, wait_for_ready=True)
        await channel.close()

    def kill(self) -> None:
        """SIGKILL; from any thread."""
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Ends it in order."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.terminate()
            await self.child.wait()


class Beside:
    """A plane, its trainer and the platform beside them."""

    def __init__(self, plane: Plane, trainer: TrainerProcess, platform: Platform) -> None:
        self.plane = plane
        self.trainer = trainer
        self.platform = platform

    async def approved(self, run: types.SkillRun) -> types.SkillRun:
        """The run of an approved plan."""
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, run
        await self.plane.decide(await self.plane.approval_of(run))
        return await self.plane.get(run.name)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with platform_server() as running:
        yield running
        assert running.evicted_in_use == []
        assert running.strangers == []
        assert running.devserver.active_users == []


@asynccontextmanager
async def beside(platform: Platform, home: Path, **told: Any) -> AsyncIterator[Beside]:
    base = find_free_base()
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    trainer = TrainerProcess(
        settings,
        {
            "gpu_service_url": platform.gpu.url,
            "ollama_url": platform.ollama.url,
            "gpu_host_timeout_s": "2",
            "unload_settle_s": "0.3",
            **told,
        },
    )
    async with surroundings(home) as around:
        plane = Plane(home, around, base, {**FAST, "cooldowns_s": {"cleanup_vram": 0}, "failed_rest_s": 60.0})
        plane.instead = {"trainer": (settings.port("trainer"), settings.control_port("trainer"))}
        await trainer.start()
        try:
            await plane.start()
            try:
                yield Beside(plane, trainer, platform)
            finally:
                await plane.stop()
        finally:
            await trainer.stop()


def crowded(platform: Platform) -> None:
    """95 % of the card: three idle models and one in use."""
    platform.gpu.load("text", "young", vram_mb=15_000, last_used=300.0)
    platform.gpu.load("diffusers", "old", vram_mb=20_000, last_used=100.0)
    platform.gpu.load("diffusers", "busy", vram_mb=30_000, last_used=50.0, in_use=1)
    platform.gpu.load("diffusers", "middle", vram_mb=30_000, last_used=200.0)


def results(run: types.SkillRun) -> list[dict[str, Any]]:
    return [MessageToDict(result) for result in run.results]


def outcomes(run: types.SkillRun) -> list[str]:
    return [str(result["outcome"]).removeprefix("UNLOAD_OUTCOME_") for result in results(run)]


async def test_idle_models_go_oldest_first_and_what_came_into_use_is_spared(
    platform: Platform, tmp_path: Path
) -> None:
    async with beside(platform, tmp_path / "home") as here:
        plane = here.plane
        quiet = await plane.run("cleanup_vram")
        assert quiet.state == types.SKILL_RUN_STATE_NOTHING_TO_DO
        assert "models are unloaded above 80 %" in quiet.outcome
        crowded(platform)
        platform.gpu.foreign_mb = 500
        run = await plane.run("cleanup_vram")
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
        arguments = MessageToDict(run.plan.calls[0].arguments)
        assert [one["model"] for one in arguments["models"]] == ["busy", "middle", "old", "young"]
        assert arguments["target_used_bytes"] == str(70_000 * MIB)
        assert len(run.plan.calls) == 4
        assert any(line.startswith("busy (diffusers)") and "in use" in line for line in run.plan.evidence)
        # What changes every moment is not bound: the same question is asked once.
        platform.gpu.use("diffusers", "busy", in_use=0, last_used=310.0)
        platform.gpu.use("text", "young", in_use=1, last_used=400.0)
        platform.gpu.foreign_mb = 100
        again = await plane.run("cleanup_vram")
        assert (again.name, again.plan.digest) == (run.name, run.plan.digest)
        # Names and limits are.
        planned = pb.PlanSkillRequest(name="skills/cleanup_vram")
        planned.parameters.update({"target_percent": 60})
        assert (await plane.call("PlanSkill", planned)).plan.digest != run.plan.digest
        platform.gpu.load("llm", "more", vram_mb=1, last_used=1.0)
        planned = pb.PlanSkillRequest(name="skills/cleanup_vram")
        assert (await plane.call("PlanSkill", planned)).plan.digest != run.plan.digest
        platform.gpu.models.pop()
        platform.gpu.use("diffusers", "busy", in_use=1, last_used=310.0)
        platform.gpu.use("text", "young", in_use=0, last_used=300.0)
        platform.gpu.foreign_mb = 0
        # While the first one goes, somebody takes the next.
        platform.gpu.before(UNLOAD, lambda: platform.gpu.use("diffusers", "middle"))
        await plane.open()
        await here.approved(run)
        run = await plane.until(run.name)
        assert run.state == SUCCEEDED, run
        assert outcomes(run) == ["UNLOADED", "UNLOADED", "ENOUGH_FREE", "ENOUGH_FREE"]
        assert platform.gpu.unloaded == ["old", "young"]
        told = {one["model"]["model"]: one["reason"] for one in results(run)[1]["spared"]}
        assert told["middle"] == "in use"
        assert told["busy"] == "in use"
        assert sorted(platform.gpu.loaded) == ["busy", "middle"]
        report = await eventually(
            lambda: plane.call("VerifyAudit", pb.VerifyAuditRequest()),
            lambda found: not found.unsealed_count and not found.unreachable and found.checkpoint_count,
        )
        assert report.valid, report
        events = await plane.call("ListAuditEvents", pb.ListAuditEventsRequest(page_size=1000))
        kinds = [event.kind for event in events.audit_events]
        assert kinds.count("gpu.model_unloaded") == 2
        assert kinds.count("gpu.unload_intended") == 2


async def test_a_user_stops_it_between_two_unloads_and_it_goes_on_after_quiet(
    platform: Platform, tmp_path: Path
) -> None:
    for position in range(4):
        platform.gpu.load("diffusers", f"m{position}", vram_mb=24_000, last_used=float(position))
    async with beside(platform, tmp_path / "home") as here:
        plane = here.plane
        await plane.open()
        run = await here.approved(await plane.run("cleanup_vram", {"target_percent": 0}))
        platform.gpu.delay_s = 0.25
        await eventually(lambda: asyncio.sleep(0, platform.gpu.unloaded), bool)
        plane.around.monitor.tell(idle=False)
        await plane.report()
        run = await plane.until(run.name, PREEMPTED)
        # What had left when the user came is gone; nothing more goes.
        await asyncio.sleep(0.6)
        gone = platform.gpu.unloaded
        assert 1 <= len(gone) <= 2
        await asyncio.sleep(0.6)
        assert platform.gpu.unloaded == gone
        # The user has taken the next one by the time that all is quiet again.
        platform.gpu.use("diffusers", "m3")
        platform.gpu.delay_s = 0.0
        plane.around.monitor.tell(idle=True)
        run = await plane.until(run.name, timeout_s=30)
        assert run.state == SUCCEEDED, run
        assert platform.gpu.unloaded == ["m0", "m1", "m2"]
        assert outcomes(run) == ["UNLOADED"] * 3 + ["NONE_IDLE"]


async def test_a_killed_trainer_unloads_nothing_twice(platform: Platform, tmp_path: Path) -> None:
    platform.gpu.load("diffusers", "old", vram_mb=50_000, last_used=1.0)
    platform.gpu.load("text", "young", vram_mb=40_000, last_used=2.0)
    async with beside(platform, tmp_path / "home") as here:
        plane = here.plane
        # Dead in the middle of the HTTP call: the model goes, and nobody heard of it.
        platform.gpu.before(UNLOAD, here.trainer.kill)
        await plane.open()
        run = await here.approved(await plane.run("cleanup_vram"))
        assert here.trainer.child is not None
        await here.trainer.child.wait()
        assert platform.gpu.unloaded == ["old"]
        # Meanwhile somebody loads it again and uses it.
        platform.gpu.load("diffusers", "old", vram_mb=50_000, last_used=900.0, in_use=1)
        await here.trainer.start()
        run = await plane.until(run.name, timeout_s=60)
        assert run.state == SUCCEEDED, run
        assert outcomes(run) == ["NONE_IDLE", "UNLOADED"]
        assert results(run)[0]["spared"][0] == {
            "model": {"backend": "diffusers", "model": "old"},
            "reason": "used meanwhile",
        }
        assert platform.gpu.unloaded == ["old", "young"]


async def test_a_workshops_models_are_loaded_where_they_fit_and_a_full_gpu_is_asked_about(
    platform: Platform, tmp_path: Path
) -> None:
    platform.gpu.load("diffusers", "big", vram_mb=60_000, in_use=1)
    platform.ollama.tags = {"qwen3:4b": 4500 * MIB, "qwen3:70b": 50_000 * MIB, "gemma3:1b": 1000 * MIB}
    preload = [{"model": name} for name in ("qwen3:4b", "qwen3:70b", "gone:1b", "gemma3:1b")]
    told = {"preload_models": canonical_json(preload).decode()}
    async with beside(platform, tmp_path / "home", **told) as here:
        plane = here.plane
        await plane.open()
        run = await plane.run("preload_models")
        assert [MessageToDict(call.arguments)["model"]["model"] for call in run.plan.calls] == [
            "qwen3:4b",
            "gemma3:1b",
        ]
        assert run.plan.vram_bytes == round(4500 * MIB * 1.2) + round(1000 * MIB * 1.2)
        assert any("qwen3:70b" in line and "does not fit" in line for line in run.plan.evidence)
        assert any("gone:1b" in line and "not installed" in line for line in run.plan.evidence)
        run = await here.approved(run)
        run = await plane.until(run.name)
        assert run.state == SUCCEEDED, run
        assert platform.ollama.loaded == ["qwen3:4b", "gemma3:1b"]
        refused = await plane.run("preload_models")
        assert refused.state == types.SKILL_RUN_STATE_NOTHING_TO_DO
        assert "does not fit" in refused.outcome
        # A host that talks nonsense is nobody's reason to act; users who left it full are one to ask.
        platform.gpu.answer_with("/api/health/vram", Answer(200, b"<html></html>", "text/html"))
        platform.gpu.load("text", "idle", vram_mb=30_000, last_used=1.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plane.run("cleanup_vram")
        assert decode_error(caught.value).reason == "GPU_HOST_INVALID"
        assert await plane.runs("cleanup_vram") == []
        platform.gpu.answer_with("/api/health/vram", None)
        await plane.report()
        runs = await eventually(lambda: plane.runs("cleanup_vram"), bool)
        assert runs[0].initiator == "trigger:idle"
        assert runs[0].state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
        assert platform.gpu.unloads == []

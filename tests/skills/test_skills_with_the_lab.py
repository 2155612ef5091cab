"""Skills with the real lab: a theme is proposed, promoted, rolled back, and the platform is as it was."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.tls import ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_skills.errors import NotArmed
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import surroundings

EXAMPLE = Path(__file__).parents[2] / "examples" / "platform"
SUCCEEDED = types.SKILL_RUN_STATE_SUCCEEDED


def tree(root: Path) -> dict[str, str]:
    """Digest of each file of a tree."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@asynccontextmanager
async def real_lab(home: Path, base: int, platform: Path) -> AsyncIterator[None]:
    """The lab as a process of its own."""
    environment = {
        **os.environ,
        "NIGHTSHIFT_HOME": str(home),
        "NIGHTSHIFT_PORT_BASE": str(base),
        "NIGHTSHIFT_PLATFORM_ROOT": str(platform),
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nightshift_lab", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        child.terminate()
        await child.wait()


async def test_a_theme_becomes_a_config_and_goes_again_without_a_trace(tmp_path: Path) -> None:
    home, base, platform = tmp_path / "home", find_free_base(), tmp_path / "platform"
    shutil.copytree(EXAMPLE, platform)
    for path in (platform, *platform.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    before = tree(platform)
    async with surroundings(home) as around, real_lab(home, base, platform):
        plane = Plane(home, around, base, {**FAST, "tick_s": 0.5})
        plane.instead = {"lab": (settings.port("lab"), settings.control_port("lab"))}
        channel = channel_to(
            f"127.0.0.1:{settings.port('lab')}", "lab", load_credential(settings, f"person/{os.getuid()}")
        )
        lab: Any = lab_grpc.LabServiceStub(channel)
        await eventually(lambda: _up(lab), bool, 30)
        await plane.start()
        try:
            run = await plane.run("propose_config")
            assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, run
            assert run.plan.base_versions
            await plane.decide(await plane.approval_of(run))
            run = await plane.until(run.name)
            assert run.state == SUCCEEDED, run
            proposal = str(run.results[0]["name"])
            stored = await lab.GetProposal(lab_pb.GetProposalRequest(name=proposal), timeout=10)
            assert stored.report.valid
            assert tree(platform) == before
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await lab.PromoteProposal(lab_pb.PromoteProposalRequest(name=proposal), timeout=10)
            assert decode_error(caught.value).reason == "GRANT_MISSING"
            refused = await plane.run("promote_config", {"proposal": proposal, "path": "config.py"})
            assert refused.state == types.SKILL_RUN_STATE_FAILED
            assert refused.failure.reason == "PROTECTED_FILE"
            assert tree(platform) == before
            promoted = await plane.run("promote_config", {"proposal": proposal})
            assert promoted.state == SUCCEEDED, promoted
            assert len(tree(platform)) == len(before) + 1
            back = await plane.run("rollback", {"promotion": promoted.results[0]["name"]})
            assert back.state == SUCCEEDED, back
            assert tree(platform) == before
            again = await plane.run("rollback", {"promotion": back.results[0]["name"]})
            assert again.state == SUCCEEDED, again
            assert len(tree(platform)) == len(before) + 1
            off = await plane.run("rollback", {"promotion": again.results[0]["name"]})
            assert off.state == SUCCEEDED, off
            # Armed with the promotion, executed when a guardrail falls, once.
            armed = await plane.run("promote_config", {"proposal": proposal, "rollback_on_guardrail": True})
            assert armed.state == SUCCEEDED, armed
            promotion = str(armed.results[0]["name"])
            fallen = await plane.until(f"skillRuns/{(await plane.guardrail.execute(promotion)).id}")
            assert fallen.state == SUCCEEDED, fallen
            assert fallen.standing_approval.startswith("standingApprovals/")
            assert fallen.initiator == "trigger:guardrail"
            assert tree(platform) == before
            with pytest.raises(NotArmed):
                await plane.guardrail.execute(promotion)
            report = await eventually(
                lambda: plane.call("VerifyAudit", pb.VerifyAuditRequest()),
                lambda found: not found.unsealed_count and not found.unreachable and found.checkpoint_count,
            )
            assert report.valid, report
        finally:
            await plane.stop()
            await channel.close()


async def _up(lab: Any) -> bool:
    try:
        await lab.ListConfigs(lab_pb.ListConfigsRequest(page_size=1), timeout=2)
    except grpc.aio.AioRpcError:
        return False
    return True

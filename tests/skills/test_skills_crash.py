"""kill -9 of the skills process at random moments: no approved effect is lost, none happens twice.

SKILLS_KILLS chooses how many kills there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from pathlib import Path

import grpc
import pytest

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import PROJECT, surroundings

KILLS = int(os.environ.get("SKILLS_KILLS", "10"))


class Process:
    """Skills as a process of its own."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = {
            **os.environ,
            "NIGHTSHIFT_HOME": str(self.plane.home),
            "NIGHTSHIFT_PORT_BASE": str(self.plane.port_base),
        }
        self.child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nightshift_skills",
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        for _ in range(5):
            # The first call may still find the connection to the process that was killed.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.plane.stub().GetLock(pb.GetLockRequest(), timeout=40, wait_for_ready=True)
                return
        raise AssertionError("skills does not come back")

    async def kill(self) -> None:
        assert self.child is not None
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        await self.child.wait()


async def approve(plane: Plane) -> str:
    """Proposes and approves; the run. Raises AioRpcError where the process dies meanwhile."""
    run = await plane.run("propose_config")
    if run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL:
        await plane.decide(await plane.approval_of(run))
    return run.name


async def all_runs(plane: Plane) -> list[types.SkillRun]:
    """Every run of the skill, page by page."""
    found: list[types.SkillRun] = []
    request = pb.ListSkillRunsRequest(skill="skills/propose_config", page_size=500)
    while True:
        answer = await plane.call("ListSkillRuns", request)
        found += answer.skill_runs
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@pytest.mark.slow
@pytest.mark.timeout(300 + 20 * KILLS)
async def test_no_approved_effect_is_lost_and_none_happens_twice(tmp_path: Path) -> None:
    home, base, chance = tmp_path / "home", find_free_base(), random.Random(20261)
    ensure_home(PlaneSettings(home=home, port_base=base))
    async with surroundings(home) as around:
        plane = Plane(home, around, base, FAST | {"denied_rest_s": 0})
        plane.write_settings()
        process = Process(plane)
        # Effects take a while, so that kills land before, within and after them.
        around.lab.delay_s = 0.15
        approved: list[str] = []
        try:
            await process.start()
            for number in range(KILLS):
                around.experience.opportunities.insert(
                    0,
                    experience_types.Opportunity(
                        name=f"{PROJECT}/opportunities/theme{number}",
                        kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
                        label=f"theme {number}",
                        keywords=["a", "b", "c"],
                        runs=60,
                    ),
                )
                work = asyncio.ensure_future(approve(plane))
                await asyncio.sleep(chance.uniform(0, 0.9))
                await process.kill()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    approved.append(await work)
                await process.start()
            for run in approved:
                done = await plane.until(run, timeout_s=30)
                assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
            listed = await eventually(
                lambda: all_runs(plane),
                lambda runs: all(
                    run.end_time.seconds or run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL
                    for run in runs
                ),
                timeout_s=30,
            )
            print(f"{KILLS} kills, {len(approved)} approvals acknowledged, {len(around.lab.effects)} effects")
            succeeded = [run for run in listed if run.state == types.SKILL_RUN_STATE_SUCCEEDED]
            assert set(approved) <= {run.name for run in succeeded}
            assert len(around.lab.effects) == len(succeeded) == len(around.lab.proposals)
            themes = [proposal.opportunity for proposal in around.lab.proposals.values()]
            assert len(set(themes)) == len(themes)
            report = await eventually(
                lambda: plane.call("VerifyAudit", pb.VerifyAuditRequest()),
                lambda found: not found.unsealed_count and not found.unreachable,
            )
            assert report.valid, report
            assert report.event_count > 3 * len(succeeded)
        finally:
            await plane.stop()
            await process.kill()

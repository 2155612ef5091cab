"""Two replicas of skills as operations.md starts them: a whole plane, and one process beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from nightshift_client import Client
from nightshift_kit.processes.table import find_free_base
from tests.support.plane import SHORT, real_plane
from tests.support.postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]


async def command(home: Path, *arguments: str) -> tuple[int, str]:
    """Runs the command; exit status and output."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from nightshift_client.cli import main; main()",
        *arguments,
        env={**os.environ, "NIGHTSHIFT_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, output.decode()


def told(home: Path) -> dict[str, Any]:
    """What endpoints.json says of skills."""
    entry: dict[str, Any] = orjson.loads((home / "endpoints.json").read_bytes())["services"]["skills"]
    return entry


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_plane_whose_skills_was_killed_goes_on_under_the_other_replica(
    tmp_path: Path, postgres_url: str
) -> None:
    ours = {"NIGHTSHIFT_SKILLS_DATABASE_URL": postgres_url, "NIGHTSHIFT_SKILLS_LEADER_LEASE_S": "3"}
    async with real_plane(tmp_path, ours) as plane:
        base = find_free_base()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nightshift_skills",
            env={
                **os.environ,
                **SHORT,
                **ours,
                "NIGHTSHIFT_HOME": str(plane.home),
                "NIGHTSHIFT_PLATFORM_ROOT": str(plane.platform_root),
                "NIGHTSHIFT_PORT_BASE": str(base),
                "NIGHTSHIFT_SKILLS_PEERS_PORT_BASE": str(plane.plane.settings.port_base),
            },
            stderr=subprocess.DEVNULL,
        )
        try:
            log = plane.home / "logs" / "skills.jsonl"
            async with asyncio.timeout(120):
                while '"standing by"' not in log.read_text():
                    await asyncio.sleep(0.1)
            os.kill(plane.pid("skills"), signal.SIGKILL)
            async with asyncio.timeout(120):
                while plane.state("skills") != "standby":
                    await asyncio.sleep(0.1)
            # Whoever looks for skills is sent to the leader: the platform's reports of users, too.
            leader = {"address": f"127.0.0.1:{base + 3}", "control_address": f"127.0.0.1:{base + 13}"}
            async with asyncio.timeout(120):
                while not leader.items() <= told(plane.home).items():
                    await asyncio.sleep(0.1)
            assert told(plane.home)["state"] == "standby"
            with Client(home=plane.home) as platform:
                platform.report_activity("generation_started", run_id="somebody")
                async with asyncio.timeout(60):
                    while platform.statistics().reports_sent == 0:
                        await asyncio.sleep(0.1)
            status, text = await command(plane.home, "status")
            assert status == 0, text
            assert leader["address"] in text
            assert "lock: off" in text
            status, text = await command(plane.home, "lock", "over to the other one")
            assert status == 0, text
            status, text = await command(plane.home, "unlock")
            assert status == 0, text
            status, text = await command(plane.home, "audit", "verify")
            assert status == 0, text
            # The other one ends in good order: the plane's own leads again.
            child.terminate()
            assert await child.wait() == 0
            await plane.until_ready("skills")
            status, text = await command(plane.home, "status")
            assert status == 0, text
            assert leader["address"] not in text
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

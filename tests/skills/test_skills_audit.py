"""The audit over the wire: its second place, its export, and the command that checks both."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.client.plane import write_endpoints
from tests.skills.skills_support import Plane, eventually, plane_in

COMMAND = Path(sys.executable).with_name("nightshift")


@pytest.fixture
async def copied(tmp_path: Path) -> AsyncIterator[Plane]:
    (tmp_path / "elsewhere").mkdir()
    settings = {"checkpoint_copy": str(tmp_path / "elsewhere"), "checkpoint_interval_s": 0.1}
    async with plane_in(tmp_path / "home", **settings) as plane:
        yield plane


async def verdict(plane: Plane) -> pb.VerifyAuditResponse:
    answer: pb.VerifyAuditResponse = await plane.call("VerifyAudit", pb.VerifyAuditRequest())
    return answer


async def signed(plane: Plane, more_than: int) -> pb.VerifyAuditResponse:
    """The verdict once so many checkpoints are in both places."""

    async def ask() -> pb.VerifyAuditResponse:
        # Each event that is sealed is worth a checkpoint.
        await plane.call("EngageLock", pb.EngageLockRequest())
        return await verdict(plane)

    found: pb.VerifyAuditResponse = await eventually(
        ask, lambda answer: answer.copied_checkpoint_count > more_than, each_s=0.3
    )
    return found


async def test_checkpoints_lie_in_two_places_and_either_tells_of_the_other(copied: Plane) -> None:
    first = copied.home / "audit" / "checkpoints.jsonl"
    second = copied.home.parent / "elsewhere" / "checkpoints.jsonl"
    found = await signed(copied, 1)
    assert (found.valid, found.copy_problem) == (True, ""), found
    await copied.stop()
    whole = first.read_bytes()
    assert second.read_bytes() == whole
    # Somebody cuts the first file while nobody looks.
    lines = whole.splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:-1]))
    await copied.start()
    found = await verdict(copied)
    assert not found.valid
    assert found.first_bad_seq == json.loads(lines[-1])["seq"]
    # Signed anew at the start, or not yet: the copy contradicts it either way.
    assert "copy" in found.detail


async def test_a_second_place_out_of_reach_is_loud_and_stops_nothing(copied: Plane) -> None:
    await signed(copied, 0)
    folder = copied.home.parent / "elsewhere"
    folder.rename(copied.home.parent / "unmounted")
    await copied.call("EngageLock", pb.EngageLockRequest())
    found = await eventually(
        lambda: verdict(copied), lambda answer: "checkpoints.jsonl" in answer.copy_problem
    )
    assert found.valid
    before = found.checkpoint_count
    await copied.call("ReleaseLock", pb.ReleaseLockRequest())
    found = await eventually(lambda: verdict(copied), lambda answer: answer.checkpoint_count > before)
    assert found.valid, "sealing and signing go on"
    assert (await metric(copied, "nightshift_checkpoint_copy_failed_total")) >= 1
    (copied.home.parent / "unmounted").rename(folder)
    found = await signed(copied, before)
    assert (found.valid, found.copy_problem) == (True, "")


async def metric(plane: Plane, name: str) -> float:
    """A figure of skills without labels."""
    url = f"http://127.0.0.1:{plane.plane_settings.metrics_port('skills')}/metrics"

    def look() -> str:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(look)).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def command(plane: Plane, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTSHIFT_")}
    environment = {**kept, "NIGHTSHIFT_HOME": str(plane.home), "COLUMNS": "100"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return await asyncio.to_thread(run)


async def test_the_chain_is_exported_and_checked_without_a_plane(plane: Plane, tmp_path: Path) -> None:
    write_endpoints(plane.home, {"skills": plane.plane_settings.port("skills")})
    for _ in range(3):
        await plane.call("EngageLock", pb.EngageLockRequest())
        await plane.call("ReleaseLock", pb.ReleaseLockRequest())
    await eventually(
        lambda: verdict(plane), lambda answer: not answer.unsealed_count and answer.checkpoint_count
    )
    file = tmp_path / "export.jsonl"
    done = await command(plane, "audit", "export", str(file), "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    lines = file.read_bytes().splitlines(keepends=True)
    assert told["event_count"] == len(lines) >= 6
    assert file.stat().st_mode & 0o777 == 0o600
    again = await command(plane, "audit", "export", str(file))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    await plane.stop()
    marks = ("--checkpoints", str(plane.home / "audit" / "checkpoints.jsonl"))
    done = await command(plane, "audit", "verify", "--file", str(file))
    assert done.returncode == 0, done.stderr
    assert "No checkpoints were given" in done.stdout
    file.write_bytes(b"".join(lines[:-2]))
    done = await command(plane, "audit", "verify", "--file", str(file), *marks, "--json")
    assert done.returncode == 1, "the stop sealed more, and two lines are missing"
    assert "cut off" in json.loads(done.stdout)["detail"]
    # Which event comes third depends on what else the plane did meanwhile.
    place = next(number for number, line in enumerate(lines) if b"lock" in line)
    lines[place] = lines[place].replace(b"lock", b"luck")
    file.write_bytes(b"".join(lines))
    done = await command(plane, "audit", "verify", "--file", str(file))
    assert done.returncode == 1
    assert f"broken at event {place + 1}" in done.stderr
    assert not list(tmp_path.glob(".*partial"))

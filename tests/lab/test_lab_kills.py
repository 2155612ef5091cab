"""kill -9 at random moments of promotion and rollback: nothing acknowledged is lost, nothing is done twice.

NIGHTSHIFT_LAB_KILLS sets how many (default 30), NIGHTSHIFT_LAB_KILL_SEED where the chance begins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("NIGHTSHIFT_LAB_KILLS", "30"))
SEED = int(os.environ.get("NIGHTSHIFT_LAB_KILL_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * KILLS)
def test_killed_at_any_moment(platform: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.promotion_kills", str(platform.parent), str(KILLS), str(SEED)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in told, told["failed"]
    print(f"kills by phase: {told['phases']}; acknowledged: {told['acknowledged']}")
    assert sum(told["phases"].values()) == KILLS
    assert told["acknowledged"] >= KILLS
    # The kills are worth something only if some land inside the effect.
    inside = {
        "committed, file not touched",
        "file half way",
        "file changed, not confirmed",
        "after the effect",
    }
    assert KILLS < 30 or inside & set(told["phases"]), told["phases"]

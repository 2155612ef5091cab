"""The demo is the first thing that a newcomer runs: it must walk through, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(420)
def test_the_demo_walks_one_whole_improvement(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--folder", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for claim in (
        "importing the same tree again changes nothing",
        "aggregate_experience ran unasked (trigger:idle)",
        "nothing happened while nobody approved",
        "UNAUTHENTICATED GRANT_MISSING",
        "PROTECTED_FILE",
        "the tree is byte-identical to before",
        "the interrupted training ended with the very same weights",
        "audit events verify",
    ):
        assert claim in done.stdout
    left = [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert not left

"""The lines of docs/operations.md, run as they stand there against a real plane."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.demo.stage import Stage

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
DEFAULT_BASE = 7700


def _blocks() -> list[list[str]]:
    """The document's shell blocks about buf curl, line by line."""
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return [block.splitlines() for block in blocks if "$B " in block]


def _setup() -> list[str]:
    return [line for block in _blocks() for line in block if re.match(r"[A-Z]=", line)]


def _cases() -> list[Any]:
    found: list[Any] = []
    words: list[str] = []
    for block in _blocks():
        for line in block:
            if line.startswith("$B "):
                found.append(
                    pytest.param(list(words), line, id=re.sub(r"^\$B |--timeout 5s ", "", line)[:70])
                )
            else:
                # A later block may set B anew, or go on with what stands above.
                words.append(line)
    return found


CASES = _cases()


def run(stage: Stage, words: list[str], line: str) -> subprocess.CompletedProcess[str]:
    """A line of the document in a shell, with the ports that this plane has instead of the usual ones."""
    base = int(stage.endpoints()["monitor"]["address"].rpartition(":")[2]) - 1
    script = re.sub(
        r"localhost:(77\d\d)",
        lambda found: f"localhost:{base + int(found.group(1)) - DEFAULT_BASE}",
        "\n".join([*words, line]),
    )
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=stage.folder,
        env={**stage.environment, "PATH": programs},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_document_shows_list_unary_stream_health_and_errors_both_ways() -> None:
    lines = [line for block in _blocks() for line in block if line.startswith("$B ")]
    assert len(lines) == len(CASES) == 15
    for scheme in ("https", "http"):
        here = " ".join(line for line in lines if f"{scheme}://" in line)
        for part in ("--list-services", "GetIdleness", "WatchStatus", "Health/Check"):
            assert part in here, (scheme, part)


@pytest.mark.parametrize(("words", "line"), CASES)
def test_a_line_of_the_document_does_what_it_says(stage: Stage, words: list[str], line: str) -> None:
    done = run(stage, words, line)
    said = done.stdout + done.stderr
    if "--list-services" in line:
        assert "nightshift.monitor.v1.MonitorService" in done.stdout.split()
        assert "grpc.health.v1.Health" in done.stdout.split()
    elif "--list-methods" in line:
        assert "nightshift.monitor.v1.MonitorService/WatchStatus" in done.stdout.split()
    elif "Health/Check" in line:
        assert json.loads(done.stdout) == {"status": "SERVING"}
    elif "GetIdleness" in line:
        assert json.loads(done.stdout)["reasons"]
    elif "WatchStatus" in line:
        first, _ = json.JSONDecoder().raw_decode(done.stdout.lstrip())
        assert first["status"]["idleness"]
        assert "deadline_exceeded" in done.stderr
    elif "base64 -d" in line:
        assert "GRANT_MISSING" in done.stdout
    else:
        code, reason = {
            "PromoteProposal": ("unauthenticated", b"GRANT_MISSING"),
            "ListRuns": ("invalid_argument", b"ID_INVALID"),
            "ReleaseLock": ("permission_denied", b"ROLE_INSUFFICIENT"),
        }[line.rpartition("/")[2]]
        refusal = json.loads(done.stderr)
        assert refusal["code"] == code, said
        assert any(reason in _bytes(detail["value"]) for detail in refusal["details"]), said
        assert done.returncode != 0
        return
    assert done.returncode == (0 if "WatchStatus" not in line else 4 << 3), said


def test_without_a_certificate_the_tls_port_answers_nobody(stage: Stage) -> None:
    line = "buf curl --protocol grpc --cacert $H/ca/ca.pem --list-services https://localhost:7701"
    done = run(stage, [word for word in _setup() if word.startswith("H=")][:1], line)
    assert done.returncode != 0
    assert "nightshift." not in done.stdout


def _bytes(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4))

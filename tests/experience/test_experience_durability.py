"""Every acknowledgement of RecordRun comes after an fsync, as the kernel saw it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import load_credential
from nightshift_kit.settings import PlaneSettings
from tests.experience.experience_support import PARENT, ROOT
from tests.support.programs import require

CALLS = 25
STRACE = ("-f", "-ttt", "-T", "-y", "-e", "trace=fsync,fdatasync")
SYNC = re.compile(r"^(?:\d+ +)?(\d+\.\d+) (?:fsync|fdatasync)\(\d+<(?P<path>[^>]*)>\) += 0 <(\d+\.\d+)>")


async def test_an_fsync_ends_before_every_acknowledgement(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "strace.log"
    base = find_free_base()
    service = subprocess.Popen(
        [require("strace"), *STRACE, "-o", str(log), sys.executable, "-m", "nightshift_experience"],
        cwd=ROOT,
        env={**os.environ, "NIGHTSHIFT_HOME": str(home), "NIGHTSHIFT_PORT_BASE": str(base)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    windows: list[tuple[float, float]] = []
    try:
        stub, channel = await connect(home, base, service)
        for number in range(CALLS):
            run = resources.Run(
                name=f"{PARENT}/runs/run_{1_770_000_000_000 + number}_abcdef",
                outcome=resources.RUN_OUTCOME_SUCCEEDED,
                language="en",
                prompt="a fox",
            )
            began = time.time()
            await stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=30)
            windows.append((began, time.time()))
        await channel.close()
    finally:
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(30)
    ends = []
    for line in log.read_text().splitlines():
        match = SYNC.match(line)
        if match and match["path"].endswith("experience.db-wal"):
            ends.append(float(match[1]) + float(match[3]))
    unproven = [window for window in windows if not any(window[0] < end < window[1] for end in ends)]
    assert len(windows) == CALLS
    assert unproven == []


async def connect(home: Path, base: int, service: subprocess.Popen[bytes]) -> tuple[Any, Any]:
    settings = PlaneSettings(home=home, port_base=base)
    for _ in range(1200):
        if (home / "credentials" / "platform" / "default.pem").exists():
            credential = load_credential(settings, "platform/default")
            channel = channel_to(f"127.0.0.1:{base + 2}", "experience", credential)
            try:
                await asyncio.wait_for(channel.channel_ready(), 1.0)
            except TimeoutError:
                await channel.close()
            else:
                return ExperienceServiceStub(channel), channel
        assert service.poll() is None, "the service has ended"
        await asyncio.sleep(0.05)
    raise TimeoutError("the service does not answer")

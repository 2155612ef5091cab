"""The same run told again after a lost answer is the same run, whatever has changed meanwhile on our side."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_kit.clock import FakeClock
from tests.experience.experience_support import PARENT, experience


async def test_a_run_from_a_clock_ahead_of_ours_can_be_told_again_later(tmp_path: Path) -> None:
    clock = FakeClock()
    ahead = Timestamp(seconds=int(clock.now().timestamp()) + 8)
    run = resources.Run(
        name=f"{PARENT}/runs/ahead", outcome=resources.RUN_OUTCOME_SUCCEEDED, prompt="a fox", start_time=ahead
    )
    async with experience(tmp_path / "home", clock=clock) as service:
        request = pb.RecordRunRequest(parent=PARENT, run=run)
        first = await service.stub.RecordRun(request, timeout=10)
        assert list(first.flags) == ["clock_skew"]
        # Now our clock has caught up with the teller's: the flag would not be set any more.
        clock.advance(10)
        assert await service.stub.RecordRun(request, timeout=10) == first

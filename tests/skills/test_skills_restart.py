"""What a sign of a user is worth when skills goes down right after it was acknowledged."""

from __future__ import annotations

from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.skills.skills_support import Plane, eventually


async def test_after_a_restart_quiet_counts_anew(plane: Plane) -> None:
    """The last life may have acknowledged a sign that the monitor never heard of."""
    monitor = plane.around.monitor
    await plane.stop()
    monitor.activities.clear()
    monitor.last_activity = None
    monitor.quiet_s = 3600
    await plane.start()
    await eventually(
        lambda: plane.call("GetSchedule", pb.GetScheduleRequest()),
        lambda schedule: any("quiet" in reason for reason in schedule.reasons),
    )
    assert [activity.kind for activity in monitor.activities] == ["restart"]
    assert not (await plane.call("GetSchedule", pb.GetScheduleRequest())).open


async def test_the_first_start_waits_for_nobody(plane: Plane) -> None:
    await eventually(
        lambda: plane.call("GetSchedule", pb.GetScheduleRequest()), lambda schedule: schedule.open
    )
    assert plane.around.monitor.activities == []

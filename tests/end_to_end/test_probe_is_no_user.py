"""The plane's own look at the example platform wakes nobody; a user's request does. All parts are real."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples.demo.stage import Stage
from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import resources_pb2 as types
from nightshift.monitor.v1.monitor_service_pb2_grpc import MonitorServiceStub
from nightshift_kit.rpc.channels import sync_channel
from nightshift_kit.settings import PlaneSettings

LOOKS = 12


@pytest.fixture
def monitor(stage: Stage) -> Iterator[Any]:
    """The real monitor."""
    settings = PlaneSettings(home=stage.home)
    with sync_channel("monitor", settings, f"person/{os.getuid()}") as channel:
        yield MonitorServiceStub(channel)


def idleness(monitor: Any) -> types.Idleness:
    answer: types.Idleness = monitor.GetIdleness(pb.GetIdlenessRequest(), timeout=20)
    return answer


def reports(monitor: Any) -> int:
    """Every report of users' activity that the monitor has counted."""
    answer = monitor.ListActivity(pb.ListActivityRequest(page_size=24), timeout=20)
    return sum(hour.activity_count for hour in answer.activity_hours)


def until(look: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def ask(stage: Stage, **headers: str) -> None:
    """One request of the very path that the platform's probe asks for."""
    url = f"http://127.0.0.1:{stage.platform_port}/api/settings/safety-level"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        assert answer.status == 200


@pytest.fixture
def quiet(monitor: Any) -> types.Idleness:
    """Nobody is there, and nothing of earlier visits is on its way any more."""
    until(lambda: idleness(monitor).idle, "the machine never became idle")
    return idleness(monitor)


def test_looks_of_the_plane_leave_idleness_and_a_user_ends_it(
    stage: Stage, monitor: Any, quiet: types.Idleness
) -> None:
    before = reports(monitor)
    for _ in range(LOOKS):
        result = monitor.RunProbe(pb.RunProbeRequest(name="probes/platform"), timeout=20)
        assert result.state == types.PROBE_STATE_UP
    after = idleness(monitor)
    assert after.idle
    assert after.since_time == quiet.since_time
    assert after.last_activity_time == quiet.last_activity_time
    # One user, by the same way through the same app. The client tells in order and counts what it puts
    # together, so that a look which had been taken for a user would be among what arrives now.
    ask(stage)
    until(lambda: idleness(monitor).last_activity_time != quiet.last_activity_time, "the user was not seen")
    seen = idleness(monitor)
    assert not seen.idle or seen.since_time.ToDatetime() > quiet.since_time.ToDatetime()
    until(lambda: reports(monitor) > before, "the user was not counted")
    until(lambda: idleness(monitor).idle, "idleness did not come back")
    assert reports(monitor) == before + 1


def test_only_the_header_makes_a_look(stage: Stage, monitor: Any, quiet: types.Idleness) -> None:
    before = reports(monitor)
    for _ in range(3):
        ask(stage, **{"X-Nightshift-Probe": "1"})
    # Whoever pretends to be the monitor in name alone is a user like all others.
    ask(stage, **{"User-Agent": "nightshift-monitor"})
    until(lambda: reports(monitor) > before, "the user was not counted")
    until(lambda: idleness(monitor).idle, "idleness did not come back")
    assert reports(monitor) == before + 1

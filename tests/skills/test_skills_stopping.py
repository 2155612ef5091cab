"""Stops that nobody confirms at once, skills that falls silent, what a run tells of its pre-emptions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.trainer.v1 import resources_pb2 as trainer_types
from nightshift_kit.clock import SystemClock
from nightshift_kit.errors import Code
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.stop import Release
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from nightshift_skills import stops
from nightshift_skills.errors import upstream
from nightshift_skills.stops import Stops
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import surroundings

TRAINING: dict[str, Any] = {"base_model": "/models/tiny", "dataset": "/data/rows.jsonl", "max_steps": 100_000}


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


class Port:
    """A control port that answers a STOP as it is told to, one word an attempt; the last one for ever."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = answers
        self.asked: dict[str, list[int]] = {}

    async def stop(
        self, service: str, request: control_pb.StopRequest, *, timeout_s: float
    ) -> AsyncIterator[control_pb.StopResponse]:
        self.asked.setdefault(service, []).append(request.fence)
        words = self.answers.get(service, ["done"])
        word = words[min(len(self.asked[service]), len(words)) - 1]
        if word == "away":
            raise upstream("away", code=Code.UNAVAILABLE, reason="SERVICE_UNAVAILABLE")
        if word == "mute":
            await asyncio.sleep(3600)
        yield control_pb.StopResponse(phase=control_pb.STOP_PHASE_DELIVERED, running_count=1)
        if word == "delivered":
            await asyncio.sleep(3600)
        yield control_pb.StopResponse(phase=control_pb.STOP_PHASE_EXITED, work="w")
        yield control_pb.StopResponse(phase=control_pb.STOP_PHASE_DONE)
        if word == "no gpu":
            yield control_pb.StopResponse(phase=control_pb.STOP_PHASE_RELEASED, detail="No GPU.")
        if word == "gpu":
            told = control_pb.StopResponse(phase=control_pb.STOP_PHASE_RELEASED, detail="Back.")
            told.boottime.FromNanoseconds(SystemClock().boottime_ns())
            yield told

    async def renew_lease(self, *_: Any, **__: Any) -> control_pb.RenewLeaseResponse:
        raise AssertionError("no lease is renewed here")


def request(**fields: Any) -> control_pb.StopRequest:
    return control_pb.StopRequest(fence=7, cause="user", **fields)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "ATTEMPT_S", 0.1)
    monkeypatch.setattr(stops, "RESEND_S", 0.02)
    monkeypatch.setattr(stops, "LAPSE_S", 0.5)


@pytest.mark.usefixtures("quick")
async def test_a_stop_is_sent_again_with_the_same_fence_until_it_is_confirmed() -> None:
    port = Port(lab=["away", "mute", "delivered", "done"], trainer=["gpu"])
    result = await Stops(port, ("lab", "trainer"), SystemClock()).deliver(request(), persist=True)
    assert result.confirmed
    assert result.lapsed == ()
    assert port.asked == {"lab": [7, 7, 7, 7], "trainer": [7]}
    assert result.done_ns is not None
    assert result.released_ns is not None
    assert result.release_detail == "Back."


@pytest.mark.usefixtures("quick")
async def test_a_silent_service_is_confirmed_by_its_lapsed_leases_and_named() -> None:
    port = Port(lab=["mute"], trainer=["done"])
    result = await Stops(port, ("lab", "trainer"), SystemClock()).deliver(request(), persist=True)
    assert (result.confirmed, result.lapsed, result.done_ns) == (True, ("lab",), None)
    assert 3 <= len(port.asked["lab"]) <= 10, "bounded"
    # A person's own work has no lease that could lapse.
    result = await Stops(port, ("lab",), SystemClock()).deliver(request(on_purpose_too=True), persist=True)
    assert (result.confirmed, result.lapsed) == (False, ())


@pytest.mark.usefixtures("quick")
async def test_other_stops_are_sent_once() -> None:
    port = Port(lab=["away"])
    result = await Stops(port, ("lab",), SystemClock()).deliver(request())
    assert (result.confirmed, port.asked) == (False, {"lab": [7]})


async def test_memory_that_nobody_can_see_is_told_as_unknown() -> None:
    result = await Stops(Port(trainer=["no gpu"]), ("trainer",), SystemClock()).deliver(request())
    assert result.confirmed
    assert (result.released_ns, result.release_detail) == (None, "No GPU.")


async def trains(plane: Plane) -> types.SkillRun:
    """A training at work."""
    asked = pb.PlanSkillRequest(name="skills/train_adapter")
    asked.parameters.update(TRAINING)
    planned = await plane.call("PlanSkill", asked)
    await plane.open()
    run = await plane.run("train_adapter", TRAINING, plan_digest=planned.plan.digest)

    async def steps() -> int:
        return max((job.step for job in plane.around.trainer.jobs.values()), default=0)

    await eventually(steps, lambda step: step > 3)
    return run


async def test_a_run_names_its_preemptions_with_their_times(plane: Plane) -> None:
    async def released() -> Release:
        return Release(SystemClock().boottime_ns(), "NVML lists no process of ours.")

    plane.around.trainer.hub.on_release(released)
    run = await trains(plane)
    heard = await plane.report()
    assert heard.preempted

    async def listed() -> list[types.Preemption]:
        (found,) = await plane.runs("train_adapter")
        return list(found.preemptions)

    (told,) = await eventually(listed, lambda found: bool(found) and found[0].confirmed)
    assert told.name == heard.preemption
    assert told.fence == heard.fence
    spans = [getattr(told, point).ToNanoseconds() for point in ("t1", "t2", "t3", "t4", "t5")]
    assert 0 < spans[0] <= spans[1] <= spans[2] <= spans[3] <= spans[4]
    assert told.t5_detail == "NVML lists no process of ours."
    shown = await plane.get(run.name)
    assert list(shown.preemptions) == [told]
    assert not (await plane.runs("rollback"))


async def test_a_skills_that_is_stopped_keeps_no_training_at_work(tmp_path: Path) -> None:
    """SIGSTOP: no STOP, no renewal, no closed connection. The lease alone ends the work, within 3 s."""
    home, base = tmp_path / "home", find_free_base()
    ensure_home(PlaneSettings(home=home, port_base=base))
    async with surroundings(home) as around:
        plane = Plane(home, around, base, dict(FAST))
        plane.write_settings()
        process = Process(plane)
        try:
            await process.start()
            await trains(plane)
            (job,) = around.trainer.jobs.values()
            assert process.child is not None
            loop = asyncio.get_running_loop()
            process.child.send_signal(signal.SIGSTOP)
            stopped_s = loop.time()

            async def state() -> int:
                return job.state

            await eventually(state, lambda found: found == trainer_types.TRAINING_JOB_STATE_PAUSED, 10)
            assert 0.9 < loop.time() - stopped_s < 3.0
            assert job.pause_cause == "lease"
            process.child.send_signal(signal.SIGCONT)
        finally:
            await plane.stop()
            if process.child is not None:
                process.child.send_signal(signal.SIGCONT)
            await process.kill()

"""The stop hub: delivery, exits, killing, leases; its threads and its control server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightshift.skills.v1 import control_service_pb2 as pb
from nightshift.skills.v1 import control_service_pb2_grpc as pb_grpc
from nightshift_kit.clock import FakeClock, SystemClock
from nightshift_kit.errors import Preempted
from nightshift_kit.grants import Effect, FenceGate
from nightshift_kit.rpc.channels import sync_channel
from nightshift_kit.rpc.stop import Phase, Registration, Release, StopEvent, StopHub, Work
from nightshift_kit.storage import Database
from tests.support.servers import serving


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/s.db", migrations="tests.kit.sample_store", name="lab") as made:
        made.migrate()
        yield made


def work(name: str, fence: int = 1, **options: Any) -> Work:
    return Work(name=name, skill_run=f"skillRuns/{name}", fence=fence, **({"stop": lambda _: None} | options))


async def collected(hub: StopHub, fence: int, **options: Any) -> list[StopEvent]:
    return [event async for event in hub.stop(fence, cause="user", **options)]


async def test_nothing_to_stop(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock())
    events = await collected(hub, 3)
    assert [event.phase for event in events] == [Phase.DELIVERED, Phase.DONE]
    assert hub.gate.highest == 3
    assert FenceGate(db, SystemClock()).highest == 3


async def test_exits_are_told_as_they_come_and_the_slow_is_killed(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock(), kill_after_s=0.3)
    registrations: dict[str, Any] = {}
    causes = []

    def soon(cause: str) -> None:
        causes.append(cause)
        threading.Timer(0.1, registrations["soon"].done).start()

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def reap() -> None:
        process.wait()
        registrations["deaf"].done()

    registrations["soon"] = hub.register(work("soon", stop=soon))
    registrations["deaf"] = hub.register(work("deaf", kill=process.kill))
    registrations["new"] = hub.register(work("new", fence=5))
    registrations["person"] = hub.register(work("person", fence=0, on_purpose=True))
    waiter = threading.Thread(target=reap)
    waiter.start()
    events = await collected(hub, 5)
    waiter.join()
    assert [(event.phase, event.work, event.killed) for event in events] == [
        (Phase.DELIVERED, "", False),
        (Phase.EXITED, "soon", False),
        (Phase.EXITED, "deaf", True),
        (Phase.DONE, "", False),
    ]
    assert events[0].running_count == 2
    assert causes == ["user"]
    took_s = (events[2].boottime_ns - events[0].boottime_ns) / 1e9
    assert 0.3 <= took_s < 2
    assert hub.works() == ["new", "person"]


async def test_killing_goes_on_where_nobody_listens(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock(), kill_after_s=0.1)
    killed = asyncio.Event()
    hub.register(work("deaf", kill=killed.set))
    async for event in hub.stop(2, cause="user"):
        assert event.phase is Phase.DELIVERED
        break
    await asyncio.wait_for(killed.wait(), 5)


async def test_one_run_alone_keeps_the_fence(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock())
    one: Registration = hub.register(work("one", stop=lambda _: one.done()))
    other = hub.register(work("other"))
    events = await collected(hub, 0, skill_run="skillRuns/one")
    assert [event.work for event in events if event.phase is Phase.EXITED] == ["one"]
    assert (hub.gate.highest, hub.works()) == (0, ["other"])
    other.done()
    other.done()


async def test_a_broken_work_does_not_keep_the_others_running(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock(), kill_after_s=0.1)

    def broken(_: str) -> None:
        raise RuntimeError("cannot stop")

    first: Registration = hub.register(work("broken", stop=broken, kill=lambda: first.done()))
    second: Registration = hub.register(work("fine", stop=lambda _: second.done()))
    events = await collected(hub, 2)
    assert {event.work for event in events if event.phase is Phase.EXITED} == {"broken", "fine"}


async def test_leases_lapse_after_two_seconds(db: Database) -> None:
    clock = FakeClock()
    hub = StopHub(FenceGate(db, clock), clock)
    stopped: list[str] = []
    leased = hub.register(work("leased", leased=True, stop=stopped.append))
    hub.register(work("free", stop=stopped.append))
    watching = asyncio.create_task(hub.watch_leases())
    for _ in range(3):
        clock.advance(1.9)
        assert await hub.renew(1, ["skillRuns/leased"]) == (1, ["skillRuns/free", "skillRuns/leased"])
        await asyncio.sleep(0.25)
    assert stopped == []
    clock.advance(1.9)
    await hub.renew(1, ["skillRuns/somebody"])
    clock.advance(0.2)
    while not stopped:
        await asyncio.sleep(0.05)
    assert stopped == ["lease"]
    leased.done()
    watching.cancel()


async def test_calls_of_any_background_grant_are_leased_and_a_persons_are_not(db: Database) -> None:
    clock = FakeClock()
    hub = StopHub(FenceGate(db, clock), clock)
    told: list[tuple[str, str]] = []
    for name, on_purpose in (("idle", False), ("person", True)):
        grant = Effect.for_tests(skill_run=f"skillRuns/{name}", fence=1, on_purpose=on_purpose).grant
        hub.track_call(grant, name, lambda error, name=name: told.append((name, error.metadata["cause"])))  # type: ignore[misc]
    watching = asyncio.create_task(hub.watch_leases())
    clock.advance(1.9)
    await hub.renew(1, ["skillRuns/idle", "skillRuns/person"])
    clock.advance(1.9)
    await asyncio.sleep(0.3)
    assert told == []
    clock.advance(0.2)
    while not told:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert told == [("idle", "lease")]
    watching.cancel()


async def test_a_service_with_a_gpu_tells_last_when_its_memory_is_back(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock())

    async def release() -> Release:
        return Release(7, "back")

    hub.on_release(release)
    events = await collected(hub, 2)
    assert [event.phase for event in events] == [Phase.DELIVERED, Phase.DONE, Phase.RELEASED]
    assert (events[-1].boottime_ns, events[-1].detail) == (7, "back")
    one_run = await collected(hub, 0, skill_run="skillRuns/one")
    assert [event.phase for event in one_run] == [Phase.DELIVERED, Phase.DONE]


async def test_a_renewal_with_a_higher_fence_stops_what_a_lost_stop_would_have(db: Database) -> None:
    hub = StopHub(FenceGate(db, SystemClock()), SystemClock())
    stopped: list[str] = []
    hub.register(work("old", fence=1, stop=stopped.append))
    hub.register(work("person", fence=1, on_purpose=True, stop=stopped.append))
    await hub.renew(1, [])
    assert stopped == []
    await hub.renew(2, ["skillRuns/old"])
    assert stopped == ["fence"]
    assert FenceGate(db, SystemClock()).highest == 2
    with pytest.raises(Preempted):
        await hub.renew(1, [])


async def test_a_stop_is_delivered_while_the_main_loop_is_blocked(tmp_path: Path, db: Database) -> None:
    async with serving("lab", [], home=tmp_path / "home", db=db) as running:
        assert running.hub is not None
        delivered = threading.Event()
        running.hub.register(work("worker", stop=lambda _: delivered.set()))

        def stop() -> None:
            address = f"127.0.0.1:{running.control_port}"
            with sync_channel("lab", running.settings, "service/skills", address=address) as channel:
                answers = pb_grpc.StopServiceStub(channel).Stop(pb.StopRequest(fence=2), timeout=10)
                assert next(iter(answers)).phase == pb.STOP_PHASE_DELIVERED
                answers.cancel()

        thread = threading.Thread(target=stop)
        thread.start()
        blocked_until_s = time.monotonic() + 5
        # Not one await in between: only another thread's loop can serve the stop.
        while time.monotonic() < blocked_until_s and not delivered.is_set():
            time.sleep(0.01)
        assert delivered.is_set()
        await asyncio.to_thread(thread.join)

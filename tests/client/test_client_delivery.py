"""The client against real planes: well, down, stopped, deaf, mad; what callers lose is printed."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nightshift.experience.v1 import resources_pb2
from nightshift_client import AsyncClient, Client, DeliveryFailed, DeliveryState, RecordRefused
from tests.client.plane import Plane, write_endpoints

Signal = Callable[[int], None]

DEADLINE_S = 0.05
# A time is measured and printed, never asserted tightly: the machine is shared. This bound is for hanging.
HANGING_S = 1.0


def run(number: int | str, **fields: Any) -> dict[str, Any]:
    record = {
        "run_id": f"run_{number}",
        "prompt": "ein Boot",
        "outcome": "succeeded",
        "start_time": 1_767_600_000,
    }
    return {**record, **fields}


def eventually(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.01)


def losses(client: Client, count: int) -> list[float]:
    """Seconds that each call cost its caller; at most three of them may have waited for the plane."""
    lost = []
    waited = 0
    for number in range(count):
        began = time.perf_counter()
        client.report_activity()
        delivery = client.record_run(run(f"loss_{number}"))
        lost.append(time.perf_counter() - began)
        assert delivery.state is DeliveryState.SPOOLED
        waited += delivery.message != "the plane is away"
    assert 1 <= waited <= 3
    return lost


def told(what: str, lost: list[float]) -> None:
    ordered = sorted(lost)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    first = ", ".join(f"{loss * 1e3:.1f}" for loss in lost[:4])
    print(
        f"{what}: first calls {first} ms; median {statistics.median(lost) * 1e6:.0f} µs, "
        f"p99 {p99 * 1e3:.2f} ms, max {ordered[-1] * 1e3:.2f} ms"
    )
    assert ordered[-1] < HANGING_S


def test_a_plane_that_works_has_the_run_on_return(plane: Plane) -> None:
    with Client(plane.home, project="workshop", deadline_s=5) as client:
        delivery = client.record_run(run(1))
        assert delivery.state is DeliveryState.STORED
        stored = plane.experience.runs["projects/workshop/runs/run_1"]
        assert stored.prompt == "ein Boot"
        assert client.record_feedback("run_1", "favorite")
        assert plane.experience.feedback[0].kind == resources_pb2.FEEDBACK_KIND_FAVORITE
        assert client.statistics().stored == 2
        assert client.statistics().waiting == 0


def test_activity_is_coalesced_and_generations_are_told_each(plane: Plane) -> None:
    with Client(plane.home) as client:
        for _ in range(200):
            client.report_activity()
        for number in range(5):
            client.report_activity("generation_started", f"run_{number}")
            client.report_activity("generation_finished", f"run_{number}")
        eventually(lambda: client.statistics().reports_sent == 210)
    requests = [report for report in plane.control.reports if report.kind == "request"]
    assert sum(report.count for report in requests) == 200
    assert len(requests) <= 4
    assert requests[0].HasField("send_time")
    generations = [
        (report.kind, report.run_id) for report in plane.control.reports if report.kind != "request"
    ]
    kinds = ("generation_started", "generation_finished")
    assert generations == [(kind, f"run_{number}") for number in range(5) for kind in kinds]


def test_reporting_costs_microseconds(plane: Plane) -> None:
    with Client(plane.home) as client:
        client.report_activity()
        lost = []
        for _ in range(5_000):
            began = time.perf_counter()
            client.report_activity()
            lost.append(time.perf_counter() - began)
        told("report_activity, plane up", lost)


def test_with_the_plane_down_nobody_waits_and_runs_arrive_once_it_is_up(home: Path) -> None:
    with Client(home, deadline_s=DEADLINE_S) as client:
        lost = losses(client, 300)
        told("plane never started", lost)
        assert client.statistics().waiting == 300
        assert client.statistics().experience_breaker != "closed"
        plane = Plane(home)
        try:
            plane.start()
            # A new endpoints.json is noticed: no waiting for the breaker's pause.
            eventually(lambda: len(plane.experience.runs) == 300)
            eventually(lambda: client.statistics().waiting == 0)
            assert client.record_run(run("after"), deadline_s=5).state is DeliveryState.STORED
        finally:
            plane.close()


def test_with_the_plane_gone_meanwhile_runs_wait_and_arrive(plane: Plane) -> None:
    with Client(plane.home, deadline_s=DEADLINE_S) as client:
        assert client.record_run(run("before"), deadline_s=5)
        plane.stop()
        told("plane gone, connection refused", losses(client, 300))
        plane.start()
        eventually(lambda: len(plane.experience.runs) == 301)
        eventually(lambda: client.statistics().waiting == 0)


def test_with_the_plane_stopped_by_sigstop_the_caller_loses_its_deadline_three_times(
    home: Path, child_plane: Signal
) -> None:
    with Client(home, deadline_s=DEADLINE_S) as client:
        assert client.record_run(run("before"), deadline_s=10).state is DeliveryState.STORED
        child_plane(signal.SIGSTOP)
        lost = losses(client, 500)
        told("plane stopped (SIGSTOP)", lost)
        child_plane(signal.SIGCONT)
        eventually(lambda: client.statistics().waiting == 0, 40)
        assert client.statistics().delivered_later == 500
        assert client.record_run(run("after"), deadline_s=10).state is DeliveryState.STORED


@pytest.mark.parametrize("mad", ["black_hole", "garbage", "mad_http2"])
def test_with_a_peer_that_is_deaf_or_mad(home: Path, mad: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(mad)
    with Client(home, deadline_s=DEADLINE_S) as client:
        lost = losses(client, 300)
        told(f"peer: {mad}", lost)
        assert client.statistics().waiting == 300
        began = time.perf_counter()
        client.close()
        assert time.perf_counter() - began < HANGING_S


def test_many_threads_lose_no_more_than_one(home: Path, child_plane: Signal) -> None:
    with Client(home, deadline_s=DEADLINE_S) as client:
        assert client.record_run(run("before"), deadline_s=10)
        child_plane(signal.SIGSTOP)

        def call(number: int) -> float:
            began = time.perf_counter()
            client.record_run(run(f"t{number}"))
            return time.perf_counter() - began

        with ThreadPoolExecutor(24) as threads:
            lost = list(threads.map(call, range(600)))
        told("24 threads, plane stopped", lost)
        child_plane(signal.SIGCONT)
        eventually(lambda: client.statistics().waiting == 0, 40)
        assert client.statistics().dropped == 0


def test_a_poison_record_is_set_aside_and_the_others_arrive(home: Path) -> None:
    with Client(home, deadline_s=DEADLINE_S) as client:
        for number in range(3):
            client.record_run(run(f"a{number}"))
        client.record_run(run("poison", prompt="refuse me"))
        client.record_run(run("broken"))
        for number in range(3):
            client.record_run(run(f"b{number}"))
        plane = Plane(home)
        try:
            plane.start()
            eventually(lambda: len(plane.experience.runs) == 6)
            eventually(lambda: client.statistics().waiting == 0, 60)
        finally:
            plane.close()
        folder = home / "client" / "spool" / "platform-default" / "refused"
        refused = sorted(path.name for path in folder.iterdir())
        assert [name.rpartition(".")[2] for name in refused] == ["FIELD_INVALID", "INTERNAL"]


def test_what_the_plane_refuses_is_told_and_not_kept(plane: Plane) -> None:
    with Client(plane.home, deadline_s=5) as client:
        delivery = client.record_run(run(1, prompt="refuse me"))
        assert (delivery.state, delivery.reason) == (DeliveryState.REFUSED, "FIELD_INVALID")
        assert not delivery
        assert client.record_run(run(2)).state is DeliveryState.STORED
        assert client.record_run(run(2, prompt="other")).reason == "RUN_ID_REUSED"
        assert client.record_run({"prompt": "no id"}).reason == "RECORD_INVALID"
        assert client.statistics().waiting == 0
        assert client.statistics().experience_breaker == "closed"


def test_errors_are_raised_where_that_is_wanted(home: Path) -> None:
    with Client(home, raise_errors=True) as client:
        with pytest.raises(RecordRefused):
            client.record_run({"prompt": "no id"})
        with pytest.raises(DeliveryFailed, match="spooled"):
            client.record_run(run(1))
        assert client.statistics().waiting == 1


def test_records_of_a_dead_process_are_delivered_by_the_next(home: Path) -> None:
    program = """
import os, sys
from nightshift_client import Client
client = Client(sys.argv[1])
for number in range(20):
    assert client.record_run({"run_id": f"run_{number}", "outcome": "failed"})
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program, str(home)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    plane = Plane(home)
    plane.start()
    try:
        with Client(home) as client:
            eventually(lambda: len(plane.experience.runs) == 20)
            eventually(lambda: client.statistics().waiting == 0)
    finally:
        plane.close()


def test_a_plane_that_moved_is_found_again(plane: Plane) -> None:
    with Client(plane.home, deadline_s=5) as client:
        assert client.record_run(run(1)).state is DeliveryState.STORED
        old = (plane.home / "endpoints.json").read_bytes()
        other = Plane(plane.home)
        other.start()
        try:
            assert (plane.home / "endpoints.json").read_bytes() != old
            plane.stop()
            time.sleep(1.2)
            client.record_run(run(2))
            eventually(lambda: "projects/default/runs/run_2" in other.experience.runs)
        finally:
            other.close()


def test_forked_children_deliver_on_their_own(plane: Plane) -> None:
    """As under a server that loads the application first and forks then; the parent has spoken already."""
    program = """
import os, sys, time
from nightshift_client import Client
client = Client(sys.argv[1], deadline_s=5)
assert client.record_run({"run_id": "parent_before", "outcome": "failed"}).state.value == "stored"
client.report_activity()
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            delivery = client.record_run({"run_id": f"child_{child}", "outcome": "failed"})
            client.report_activity("generation_started", f"child_{child}")
            for _ in range(200):
                if client.statistics().reports_sent:
                    break
                time.sleep(0.01)
            client.close()
            status = 0 if delivery else 2
        finally:
            os._exit(status)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert client.record_run({"run_id": "parent_after", "outcome": "failed"}).state.value == "stored"
print(codes)
client.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(plane.home)],
        check=False,
        timeout=90,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 0, 0]"
    with Client(plane.home):
        eventually(lambda: len(plane.experience.runs) == 5)
    assert {name.rpartition("/")[2] for name in plane.experience.runs} == {
        "parent_before",
        "parent_after",
        "child_0",
        "child_1",
        "child_2",
    }


def test_closing_is_quick_and_afterwards_nothing_raises(home: Path, child_plane: Signal) -> None:
    client = Client(home, deadline_s=5)
    client.record_run(run(1))
    child_plane(signal.SIGSTOP)
    client.report_activity()
    began = time.perf_counter()
    client.close()
    client.close()
    print(f"close with a stopped plane: {(time.perf_counter() - began) * 1e3:.0f} ms")
    assert time.perf_counter() - began < HANGING_S
    client.report_activity()
    assert client.record_run(run(2)).state is DeliveryState.DROPPED
    child_plane(signal.SIGCONT)


def test_a_platform_that_forgets_to_close_ends_all_the_same(plane: Plane) -> None:
    program = """
import sys
from nightshift_client import Client
client = Client(sys.argv[1])
client.report_activity()
print(client.record_run({"run_id": "a", "outcome": "failed"}, deadline_s=5).state.value)
"""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(plane.home)],
        check=False,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "stored", "")
    assert time.perf_counter() - began < 10
    assert [report.kind for report in plane.control.reports] == ["request"]


def test_a_disk_that_takes_nothing_is_survived(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Client(home, spool_dir=tmp_path / "file" / "spool") as client:
        delivery = client.record_run(run(1))
        assert (delivery.state, delivery.reason) == (DeliveryState.DROPPED, "SPOOL_FAILED")
        assert client.statistics().dropped == 1


def test_importing_the_package_is_light() -> None:
    program = """
import sys, time
began = time.perf_counter()
import nightshift_client
print(time.perf_counter() - began)
assert not {"grpc", "google.protobuf", "typer", "rich"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=30, capture_output=True, text=True
    )
    print(f"import nightshift_client: {float(done.stdout) * 1e3:.1f} ms")


def test_the_client_knows_neither_the_kit_nor_any_service(plane: Plane) -> None:
    program = """
import sys
from nightshift_client import Client
client = Client(sys.argv[1], deadline_s=5)
client.report_activity()
assert client.record_run({"run_id": "a", "outcome": "failed"}).state.value == "stored"
client.close()
ours = {name.partition(".")[0] for name in sys.modules if name.startswith("nightshift")}
print(sorted(ours))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(plane.home)],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['nightshift', 'nightshift_client']"


async def test_the_asynchronous_client_keeps_the_same_promises(home: Path) -> None:
    plane = Plane(home)
    await asyncio.to_thread(plane.start)
    try:
        async with AsyncClient(home, deadline_s=5) as client:
            client.report_activity()
            deliveries = await asyncio.gather(*(client.record_run(run(number)) for number in range(50)))
            assert {delivery.state for delivery in deliveries} == {DeliveryState.STORED}
            assert await client.record_feedback("run_1", "dwell", 3.5)
            assert (await client.record_run({})).reason == "RECORD_INVALID"
            assert len(plane.experience.runs) == 50
    finally:
        await asyncio.to_thread(plane.close)


async def test_the_asynchronous_client_never_blocks_the_loop(home: Path, child_plane: Signal) -> None:
    async with AsyncClient(home, deadline_s=DEADLINE_S) as client:
        assert (await client.record_run(run("before"), deadline_s=10)).state is DeliveryState.STORED
        child_plane(signal.SIGSTOP)
        gaps: list[float] = []
        done = False

        async def heartbeat() -> None:
            last = time.perf_counter()
            while not done:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        beating = asyncio.create_task(heartbeat())
        lost = []
        for number in range(200):
            began = time.perf_counter()
            assert await client.record_run(run(number))
            lost.append(time.perf_counter() - began)
        done = True
        await beating
        told("asyncio, plane stopped", lost)
        print(f"longest pause of the event loop: {max(gaps) * 1e3:.1f} ms")
        child_plane(signal.SIGCONT)


def test_answers_that_make_no_sense_count_as_failures(home: Path) -> None:
    """A server with the right certificate, speaking gRPC, whose messages are random bytes."""
    from concurrent import futures

    import grpc

    class Mad(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            answer = os.urandom(64) if "RecordRun" in details.method else b"\xff\xff\xff"
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

    servers, ports = [], {}
    for name in ("experience", "skills"):
        folder = home / "credentials" / "service"
        credentials = grpc.ssl_server_credentials(
            [((folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes())],
            (home / "ca" / "ca.pem").read_bytes(),
            True,
        )
        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Mad()])
        ports[name] = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
    write_endpoints(home, ports)
    try:
        with Client(home, deadline_s=0.5) as client:
            states = [client.record_run(run(number)).state for number in range(50)]
            assert set(states) == {DeliveryState.SPOOLED}
            assert client.statistics().experience_breaker != "closed"
            assert client.statistics().waiting == 50
    finally:
        for server in servers:
            server.stop(0).wait()


def test_threads_share_one_client(plane: Plane) -> None:
    with Client(plane.home, deadline_s=10) as client:
        problems: list[object] = []

        def work(thread: int) -> None:
            for number in range(25):
                client.report_activity()
                delivery = client.record_run(run(f"{thread}_{number}"))
                if delivery.state is not DeliveryState.STORED:
                    problems.append(delivery)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"200 runs of 8 threads in {time.perf_counter() - began:.2f} s")
        assert problems == []
        assert len(plane.experience.runs) == 200

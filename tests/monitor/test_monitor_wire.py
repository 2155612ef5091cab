"""The monitor over the wire: real server, real TLS, real store, real probes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.rpc.channels import decode_error
from nightshift_monitor.looks.http_look import ForbiddenUrl, fetch, new_http_client
from nightshift_monitor.witnesses import ComfyUiWitness, GpuServiceWitness
from tests.monitor.conftest import MakeMonitor, PlatformStandIn, RunningMonitor

QUIET_S = 0.6


async def until(stub: Any, wanted: bool, timeout_s: float = 10) -> resources.Idleness:
    async with asyncio.timeout(timeout_s):
        while True:
            verdict: resources.Idleness = await stub.GetIdleness(messages.GetIdlenessRequest())
            if verdict.idle == wanted:
                return verdict
            await asyncio.sleep(0.02)


def codes(verdict: resources.Idleness) -> set[str]:
    return {reason.code for reason in verdict.reasons if not reason.allows_idle}


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), decode_error(caught.value).reason


async def test_quiet_makes_idle_and_activity_ends_it_at_once(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=QUIET_S, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        first = await stub.GetIdleness(messages.GetIdlenessRequest())
        assert not first.idle
        assert "STARTING" in codes(first)
        assert not first.HasField("last_activity_time")
        idle = await until(stub, True)
        assert idle.platform_up
        assert idle.quiet_remaining.ToTimedelta() == timedelta(0)
        await stub.RecordActivity(messages.RecordActivityRequest(kind="request"), timeout=5)
        active = await stub.GetIdleness(messages.GetIdlenessRequest())
        assert not active.idle
        assert codes(active) == {"ACTIVITY"}
        assert timedelta(0) < active.quiet_remaining.ToTimedelta() <= timedelta(seconds=QUIET_S)


async def test_the_stream_tells_each_verdict_at_once_and_the_end_of_quiet_to_the_instant(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=QUIET_S, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        await until(stub, True)
        stream = stub.WatchStatus(messages.WatchStatusRequest())
        first = await anext(aiter(stream))
        assert first.status.idleness.idle
        delays_left, delays_entered = [], []
        seq = first.seq
        for _ in range(5):
            began = time.monotonic()
            await stub.RecordActivity(messages.RecordActivityRequest(kind="request"), timeout=5)
            async for message in stream:
                assert message.seq > seq or message.keep_alive
                seq = message.seq
                if not message.status.idleness.idle:
                    break
            delays_left.append(time.monotonic() - began)
            async for message in stream:
                seq = message.seq
                if message.status.idleness.idle:
                    break
            delays_entered.append(time.monotonic() - began - QUIET_S)
        stream.cancel()
        left_ms, entered_ms = max(delays_left) * 1e3, max(delays_entered) * 1e3
        print(f"idle left after {left_ms:.1f} ms, entered {entered_ms:.1f} ms after the quiet's end")
        assert all(delay >= -0.02 for delay in delays_entered)


async def test_a_new_watcher_gets_the_state_first_and_a_resumed_one_only_changes(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=300, platform_url=platform.url, keep_alive_s=0.3) as monitor:
        stub = monitor.stub()
        await stub.RunProbe(messages.RunProbeRequest(name="probes/platform"), timeout=10)
        await asyncio.sleep(1.5)
        async with asyncio.timeout(10):
            stream = aiter(stub.WatchStatus(messages.WatchStatusRequest()))
            first = await anext(stream)
            assert not first.keep_alive
            repeat = await anext(stream)
            assert repeat.keep_alive
            assert repeat.seq == first.seq
            resumed = aiter(stub.WatchStatus(messages.WatchStatusRequest(after_seq=repeat.seq)))
            assert (await anext(resumed)).keep_alive
            # A number of an earlier process: the state comes at once.
            stale = aiter(stub.WatchStatus(messages.WatchStatusRequest(after_seq=10**9)))
            assert not (await anext(stale)).keep_alive


async def test_a_slow_reader_gets_the_newest_and_not_the_queue(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=0.02, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        watcher = monitor.core.watch(0)
        async with asyncio.timeout(20):
            first = await anext(watcher)
            for _ in range(50):
                await stub.RecordActivity(messages.RecordActivityRequest(), timeout=5)
                await asyncio.sleep(0.03)
            newest = await anext(watcher)
            # Some hundred changes later the reader gets one message, the last.
            assert newest.seq >= first.seq + 50
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    while (await anext(watcher)).seq <= newest.seq:
                        pass


async def test_a_generation_in_flight_keeps_the_machine_busy_until_it_is_finished(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=0.2, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        await until(stub, True)
        await stub.RecordActivity(
            messages.RecordActivityRequest(kind="generation_started", run_id="run_1"), timeout=5
        )
        await asyncio.sleep(0.5)
        assert codes(await stub.GetIdleness(messages.GetIdlenessRequest())) == {"IN_FLIGHT"}
        await stub.RecordActivity(
            messages.RecordActivityRequest(kind="generation_finished", run_id="run_1"), timeout=5
        )
        await until(stub, True)


async def test_the_backoff_keeps_background_work_away(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=0.1, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        await until(stub, True)
        until_time = Timestamp()
        until_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
        await stub.RecordActivity(messages.RecordActivityRequest(quiet_until_time=until_time), timeout=5)
        await asyncio.sleep(0.3)
        verdict = await stub.GetIdleness(messages.GetIdlenessRequest())
        assert codes(verdict) == {"BACKOFF"}
        assert verdict.quiet_remaining.ToTimedelta() > timedelta(seconds=0.2)
        await until(stub, True)


async def test_without_a_platform_probe_the_machine_is_never_idle(make_monitor: MakeMonitor) -> None:
    async with make_monitor(quiet_s=0.05) as monitor:
        await asyncio.sleep(0.3)
        verdict = await monitor.stub().GetIdleness(messages.GetIdlenessRequest())
        assert not verdict.idle
        assert not verdict.platform_up
        assert codes(verdict) == {"PLATFORM_UNKNOWN"}


async def test_a_platform_that_goes_ends_idleness_and_one_that_comes_back_is_seen_soon(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(
        quiet_s=0.1, platform_url=platform.url, probe_interval_s=0.3, recheck_interval_s=0.1
    ) as monitor:
        stub = monitor.stub()
        await until(stub, True)
        # The single-page app still answers everything with its page: 200, but not the platform.
        path = "/api/settings/safety-level"
        answer = platform.answers.pop(path)
        verdict = await until(stub, False)
        assert codes(verdict) == {"PLATFORM_DOWN"}
        assert not verdict.platform_up
        assert any("catch-all" in reason.message for reason in verdict.reasons)
        platform.answers[path] = answer
        assert (await until(stub, True)).platform_up


async def test_our_requests_say_who_they_are_and_follow_no_redirect(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    looked = ("/api/settings/safety-level", "/other", "/api/health/vram", "/queue")
    for path in looked:
        # To the list of active users: following it would register us as one.
        platform.answers[path] = (302, "text/html", b"")
    async with (
        new_http_client() as http,
        make_monitor(
            platform_url=platform.url,
            probes=({"name": "other", "kind": "http", "target": f"{platform.url}/other"},),
            uses=(GpuServiceWitness(http, platform.url), ComfyUiWitness(http, platform.url)),
            corroborate_interval_s=0.1,
        ) as monitor,
    ):
        stub = monitor.stub()
        for probe in ("platform", "other"):
            result = await stub.RunProbe(messages.RunProbeRequest(name=f"probes/{probe}"), timeout=10)
            assert result.state == resources.PROBE_STATE_DOWN
            assert "302" in result.detail
        await asyncio.sleep(0.3)
    assert {path for path, _ in platform.seen} == set(looked)
    assert all(headers.get("X-Nightshift-Probe") == "1" for _, headers in platform.seen)


@pytest.mark.parametrize("path", ["/api/active-users", "/api/queue-status", "//API/%61ctive-users/x?y=1"])
async def test_a_forbidden_url_is_never_sent_however_it_came_about(
    platform: PlatformStandIn, path: str
) -> None:
    """Settings refuse it and no redirect is followed; should both ever fail, the transport still refuses."""
    async with new_http_client() as http:
        with pytest.raises(ForbiddenUrl):
            await http.get(platform.url + path)
        with pytest.raises(ForbiddenUrl):
            await fetch(http, platform.url + path, timeout_s=2)
        platform.answers["/start"] = (302, "text/html", b"")
        with pytest.raises(ForbiddenUrl):
            await http.get(f"{platform.url}/start", follow_redirects=True)
        # Nor can a caller leave out who is asking.
        await http.get(f"{platform.url}/plain", headers={"X-Nightshift-Probe": ""})
    assert [seen for seen, _ in platform.seen] == ["/start", "/plain"]
    assert all(headers.get("X-Nightshift-Probe") == "1" for _, headers in platform.seen)


async def test_probes_of_every_kind(
    make_monitor: MakeMonitor, platform: PlatformStandIn, tmp_path: Path
) -> None:
    with contextlib.closing(
        await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    ) as listener:
        tcp_port = listener.sockets[0].getsockname()[1]
        health_server = grpc.aio.server()
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_health.v1.health import aio as health_aio

        servicer = health_aio.HealthServicer()
        await servicer.set("sick", health_pb2.HealthCheckResponse.NOT_SERVING)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, health_server)
        health_port = health_server.add_insecure_port("127.0.0.1:0")
        await health_server.start()
        health = f"127.0.0.1:{health_port}"
        probes = (
            {"name": "page", "kind": "http", "target": f"{platform.url}/anything"},
            {"name": "no-page", "kind": "http", "target": f"{platform.url}/x", "expect_status": 404},
            {"name": "no-host", "kind": "http", "target": "http://127.0.0.1:1/"},
            {"name": "tcp-up", "kind": "tcp", "target": f"127.0.0.1:{tcp_port}"},
            {"name": "tcp-down", "kind": "tcp", "target": "127.0.0.1:1"},
            {"name": "disk", "kind": "disk", "target": str(tmp_path)},
            {
                "name": "disk-full",
                "kind": "disk",
                "target": str(tmp_path),
                "degraded_free_ratio": 1.0,
                "down_free_ratio": 0,
            },
            {"name": "disk-gone", "kind": "disk", "target": str(tmp_path / "nowhere")},
            {"name": "well", "kind": "grpc_health", "target": health},
            {"name": "sick", "kind": "grpc_health", "target": health, "service": "sick"},
            {"name": "strange", "kind": "grpc_health", "target": health, "service": "strange"},
            {"name": "deaf", "kind": "grpc_health", "target": "127.0.0.1:1", "timeout_s": 1},
        )
        async with make_monitor(probes=probes) as monitor:
            stub = monitor.stub("platform/default")
            seen = {}
            for probe in probes:
                result = await stub.RunProbe(
                    messages.RunProbeRequest(name=f"probes/{probe['name']}"), timeout=10
                )
                seen[probe["name"]] = resources.ProbeState.Name(result.state).removeprefix("PROBE_STATE_")
                assert result.detail
            gpu = await stub.RunProbe(messages.RunProbeRequest(name="probes/gpu"), timeout=10)
        await health_server.stop(None)
    assert seen == {
        "page": "UP",
        "no-page": "DOWN",
        "no-host": "DOWN",
        "tcp-up": "UP",
        "tcp-down": "DOWN",
        "disk": "UP",
        "disk-full": "DEGRADED",
        "disk-gone": "DOWN",
        "well": "UP",
        "sick": "DOWN",
        "strange": "DOWN",
        "deaf": "DOWN",
    }
    assert gpu.state == resources.PROBE_STATE_UNKNOWN
    assert "not installed" in gpu.detail


async def test_a_slow_answer_is_degraded_and_none_in_time_is_down(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    probes = (
        {
            "name": "slow",
            "kind": "http",
            "target": f"{platform.url}/",
            "degraded_latency_s": 0.05,
            "timeout_s": 5,
        },
        {"name": "dead", "kind": "http", "target": f"{platform.url}/", "timeout_s": 0.2},
    )
    platform.gate.clear()
    async with make_monitor(probes=probes) as monitor:
        stub = monitor.stub()
        dead = await stub.RunProbe(messages.RunProbeRequest(name="probes/dead"), timeout=10)
        assert dead.state == resources.PROBE_STATE_DOWN
        assert dead.latency.ToTimedelta() >= timedelta(seconds=0.2)
        platform.gate.set()
        slow = await stub.RunProbe(messages.RunProbeRequest(name="probes/slow"), timeout=10)
        assert slow.state == resources.PROBE_STATE_DEGRADED


async def test_pages_of_probes_and_of_their_history(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(platform_url=platform.url) as monitor:
        stub = monitor.stub()
        names, token = [], ""
        while True:
            page = await stub.ListProbes(messages.ListProbesRequest(page_size=1, page_token=token))
            names += [probe.name for probe in page.probes]
            token = page.next_page_token
            if not token:
                break
        assert names == ["probes/disk-home", "probes/gpu", "probes/platform"]
        for _ in range(5):
            await stub.RunProbe(messages.RunProbeRequest(name="probes/platform"), timeout=10)
        times, token = [], ""
        while True:
            page = await stub.ListProbeResults(
                messages.ListProbeResultsRequest(parent="probes/platform", page_size=2, page_token=token)
            )
            times += [result.probe_time.ToNanoseconds() for result in page.probe_results]
            token = page.next_page_token
            if not token:
                break
        assert len(times) >= 5
        assert times == sorted(times, reverse=True)
        probe = await stub.GetProbe(messages.GetProbeRequest(name="probes/platform"))
        assert probe.latest.probe_time.ToNanoseconds() == times[0]
        assert probe.interval.ToTimedelta() == timedelta(seconds=30)


async def test_bad_requests_have_their_reasons(make_monitor: MakeMonitor) -> None:
    async with make_monitor() as monitor:
        stub = monitor.stub()
        far = Timestamp(seconds=10**17)
        table = [
            (
                stub.GetProbe(messages.GetProbeRequest(name="probes/none")),
                grpc.StatusCode.NOT_FOUND,
                "PROBE_UNKNOWN",
            ),
            (
                stub.RunProbe(messages.RunProbeRequest(name="probes/none")),
                grpc.StatusCode.NOT_FOUND,
                "PROBE_UNKNOWN",
            ),
            (
                stub.ListProbeResults(messages.ListProbeResultsRequest(parent="probes/none")),
                grpc.StatusCode.NOT_FOUND,
                "PROBE_UNKNOWN",
            ),
            (
                stub.GetProbe(messages.GetProbeRequest(name="../gpu")),
                grpc.StatusCode.INVALID_ARGUMENT,
                "ID_INVALID",
            ),
            (
                stub.ListProbes(messages.ListProbesRequest(page_size=-1)),
                grpc.StatusCode.INVALID_ARGUMENT,
                "PAGE_SIZE_INVALID",
            ),
            (
                stub.ListProbes(messages.ListProbesRequest(page_token="nonsense")),
                grpc.StatusCode.INVALID_ARGUMENT,
                "PAGE_TOKEN_INVALID",
            ),
            (
                stub.RecordActivity(messages.RecordActivityRequest(kind="Not A Word"), timeout=5),
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD_INVALID",
            ),
            (
                stub.RecordActivity(messages.RecordActivityRequest(count=-1), timeout=5),
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD_INVALID",
            ),
            (
                stub.RecordActivity(messages.RecordActivityRequest(activity_time=far), timeout=5),
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD_INVALID",
            ),
        ]
        for call, code, reason in table:
            assert await refused(call) == (code, reason)


@pytest.mark.parametrize("identity", ["platform/default", "service/lab", "service/monitor"])
async def test_only_skills_records_activity(make_monitor: MakeMonitor, identity: str) -> None:
    async with make_monitor() as monitor:
        call = monitor.stub(identity).RecordActivity(messages.RecordActivityRequest(), timeout=5)
        code, _ = await refused(call)
        assert code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_restart_forgets_neither_activity_nor_generations(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=1.0, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        await stub.RecordActivity(
            messages.RecordActivityRequest(kind="generation_started", run_id="run_7"), timeout=5
        )
        before = await stub.GetIdleness(messages.GetIdlenessRequest())
    async with make_monitor(quiet_s=1.0, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        verdict = await stub.GetIdleness(messages.GetIdlenessRequest())
        assert verdict.last_activity_time == before.last_activity_time
        assert {"ACTIVITY", "IN_FLIGHT"} <= codes(verdict)
        await stub.RecordActivity(
            messages.RecordActivityRequest(kind="generation_finished", run_id="run_7"), timeout=5
        )
        await until(stub, True)
    # A third start, long after: the start itself is no activity any more.
    await asyncio.sleep(1.0)
    async with make_monitor(quiet_s=1.0, platform_url=platform.url) as monitor:
        stub = monitor.stub()
        await stub.RunProbe(messages.RunProbeRequest(name="probes/platform"), timeout=10)
        assert (await stub.GetIdleness(messages.GetIdlenessRequest())).idle


async def test_status_shows_everything_and_an_earlier_answer_until_there_is_a_new_one(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(platform_url=platform.url) as monitor:
        await monitor.stub().RunProbe(messages.RunProbeRequest(name="probes/platform"), timeout=10)
    platform.gate.clear()
    async with make_monitor(platform_url=platform.url, quiet_s=0.05) as monitor:
        stub = monitor.stub()
        await asyncio.sleep(0.2)
        status = await stub.GetStatus(messages.GetStatusRequest())
        probes = {probe.name: probe for probe in status.probes}
        assert probes["probes/platform"].latest.state == resources.PROBE_STATE_UP
        # … but an answer of before proves nothing about now.
        assert not status.idleness.platform_up
        assert "STARTING" in codes(status.idleness)
        assert status.gpu_detail
        platform.gate.set()


async def test_a_thousand_reports_a_second_keep_the_store_calm(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    async with make_monitor(quiet_s=0.5, platform_url=platform.url) as monitor:
        running: RunningMonitor = monitor
        stub = running.stub()
        began = time.monotonic()
        for _ in range(10):
            await asyncio.gather(
                *(stub.RecordActivity(messages.RecordActivityRequest(count=3), timeout=5) for _ in range(50))
            )
        print(f"500 reports in {time.monotonic() - began:.2f} s")
        assert codes(await stub.GetIdleness(messages.GetIdlenessRequest())) >= {"ACTIVITY"}
        await until(stub, True)

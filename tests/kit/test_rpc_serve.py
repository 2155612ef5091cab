"""A service as a process: ready, logged, measured, reachable by ops tools, drained by SIGTERM."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift_kit.clock import SystemClock
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc import tls
from nightshift_kit.rpc.channels import channel_to, credential_for, decode_error
from nightshift_kit.rpc.serve import PLAINTEXT_OFFSET, Wiring, serve
from nightshift_kit.rpc.server import ServerBuilder
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.telemetry import begin_trace, set_trace

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")
PERSON = f"person/{os.getuid()}"


@dataclass
class Process:
    popen: subprocess.Popen[bytes]
    settings: PlaneSettings
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return pb_grpc.MonitorServiceStub(self.channel)

    def log(self) -> list[dict[str, Any]]:
        path = self.settings.home / "logs" / "monitor.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.asynccontextmanager
async def process(home: Path, **options: Any) -> AsyncIterator[Process]:
    settings = PlaneSettings(home=home, port_base=find_free_base(), **options)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NIGHTSHIFT_HOME": str(home),
        "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
        "NIGHTSHIFT_INSECURE_LOOPBACK": str(settings.insecure_loopback),
    }
    popen = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.fake_services.probing"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        credentials = home / "credentials" / f"{PERSON}.pem"
        while not credentials.exists():
            assert popen.poll() is None
            await asyncio.sleep(0.05)
        address = f"127.0.0.1:{settings.port('monitor')}"
        async with channel_to(address, "monitor", credential_for(settings, PERSON)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
            yield Process(popen, settings, channel)
    finally:
        popen.terminate()
        assert await asyncio.to_thread(popen.wait, 15) == 0


async def test_sigterm_lets_running_calls_end(tmp_path: Path) -> None:
    async with process(tmp_path / "home") as running:
        call = running.stub.GetProbe(pb.GetProbeRequest(name="1.0"), timeout=10)
        await asyncio.sleep(0.3)
        started_s = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert (await call).name == "1.0"
        assert await asyncio.to_thread(running.popen.wait, 10) == 0
        assert time.monotonic() - started_s < 5
        events = [line["event"] for line in running.log()]
        assert events[-1] != "crashed"
        assert events.index("ready") < events.index("stopping")


async def test_log_metrics_and_trace(tmp_path: Path) -> None:
    async with process(tmp_path / "home") as running:
        trace = begin_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "request-7")
        set_trace(trace)
        call = running.stub.GetStatus(pb.GetStatusRequest(), timeout=5)
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "request-7"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.ListProbes(pb.ListProbesRequest(page_token="words of a user"), timeout=5)
        reference = decode_error(caught.value).metadata["reference"]
        set_trace(None)
        lines = running.log()
        line = next(one for one in lines if one["event"] == "rpc" and one["code"] == "OK")
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert line["request_id"] == "request-7"
        assert line["method"] == "nightshift.monitor.v1.MonitorService/GetStatus"
        assert line["caller"] == f"person/admin/{os.getuid()}"
        assert line["duration_ms"] >= 0
        unexpected = next(one for one in lines if one["event"] == "unexpected error")
        assert unexpected["reference"] == reference
        assert "a secret of the inside" in unexpected["exception"]
        text = (running.settings.home / "logs" / "monitor.jsonl").read_text()
        assert "words of a user" not in text
        assert "BEGIN PRIVATE KEY" not in text
        assert (running.settings.home / "logs" / "monitor.jsonl").stat().st_mode & 0o077 == 0
        url = f"http://127.0.0.1:{running.settings.metrics_port('monitor')}/metrics"
        metrics = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
        assert (
            'nightshift_rpc_duration_seconds_count{code="OK",'
            'method="nightshift.monitor.v1.MonitorService/GetStatus"} 1.0' in metrics
        )
        assert 'reason="INTERNAL"' in metrics
        assert 'nightshift_rpc_in_flight{server="main"} 0.0' in metrics


async def test_a_taken_port_is_said_and_ends_the_second_process(tmp_path: Path) -> None:
    async with process(tmp_path / "home") as running:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.kit.fake_services.probing",
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NIGHTSHIFT_HOME": str(running.settings.home),
                "NIGHTSHIFT_PORT_BASE": str(running.settings.port_base),
            },
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await second.communicate()
        assert second.returncode == 3
        assert b"cannot serve" in stderr


async def test_a_service_ends_before_its_certificate_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PlaneSettings(home=tmp_path / "home", port_base=find_free_base())
    monkeypatch.setattr(tls, "_LEAF_LIFETIME", dt.timedelta(days=1))
    tls.ensure_home(settings)

    async def wire(_: Wiring) -> None:
        return

    # Nobody stops it: it ends by itself, and the next start makes a new certificate.
    await asyncio.wait_for(serve("monitor", settings, wire), 20)


async def test_channelz_is_there_on_request(tmp_path: Path) -> None:
    settings = PlaneSettings(home=tmp_path / "home")
    tls.ensure_home(settings)
    for wanted in (True, False):
        server = ServerBuilder("monitor", settings, clock=SystemClock(), channelz=wanted).build()
        address = f"127.0.0.1:{await server.start()}"
        async with channel_to(address, "monitor", credential_for(settings, PERSON)) as channel:
            call = channelz_pb2_grpc.ChannelzStub(channel).GetServers(
                channelz_pb2.GetServersRequest(), timeout=5
            )
            if wanted:
                assert (await call).server
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)


async def buf(*arguments: str) -> tuple[int, Any]:
    ran = await asyncio.create_subprocess_exec(
        BUF, "curl", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await ran.communicate()
    return ran.returncode or 0, (out or err).decode()


async def test_buf_curl_over_mutual_tls(tmp_path: Path) -> None:
    async with process(tmp_path / "home") as running:
        home = running.settings.home
        tls = [
            "--protocol",
            "grpc",
            "--cacert",
            f"{home}/ca/ca.pem",
            "--cert",
            f"{home}/credentials/{PERSON}.pem",
            "--key",
            f"{home}/credentials/{PERSON}.key",
        ]
        base = f"https://localhost:{running.settings.port('monitor')}"
        service = "nightshift.monitor.v1.MonitorService"
        status, services = await buf(*tls, "--list-services", base)
        assert (status, sorted(services.split())) == (
            0,
            ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", service],
        )
        status, answer = await buf(*tls, "-d", '{"name": "0"}', f"{base}/{service}/GetProbe")
        assert (status, json.loads(answer)) == (0, {"name": "0"})
        status, answer = await buf(*tls, "-d", '{"afterSeq": "4"}', f"{base}/{service}/WatchStatus")
        assert status == 0
        assert [line["seq"] for line in _documents(answer)] == ["5", "6", "7"]
        status, answer = await buf(*tls, f"{base}/grpc.health.v1.Health/Check")
        assert (status, json.loads(answer)) == (0, {"status": "SERVING"})
        status, answer = await buf(*tls, "-d", "{}", f"{base}/{service}/RecordActivity")
        error = json.loads(answer)
        assert status != 0
        assert error["code"] == "permission_denied"
        assert error_info(error).reason == "CALLER_NOT_ALLOWED"
        status, answer = await buf(
            "--protocol", "grpc", "--cacert", f"{home}/ca/ca.pem", "--list-services", base
        )
        assert status != 0


async def test_buf_curl_without_tls_is_a_viewer_and_only_where_switched_on(tmp_path: Path) -> None:
    service = "nightshift.monitor.v1.MonitorService"
    async with process(tmp_path / "home", insecure_loopback=True) as running:
        base = f"http://localhost:{running.settings.port('monitor') + PLAINTEXT_OFFSET}"
        plain = ["--protocol", "grpc", "--http2-prior-knowledge"]
        status, services = await buf(*plain, "--list-services", base)
        assert status == 0
        assert service in services
        status, answer = await buf(*plain, "-d", '{"name": "0"}', f"{base}/{service}/GetProbe")
        assert (status, json.loads(answer)) == (0, {"name": "0"})
        status, answer = await buf(*plain, "-d", "{}", f"{base}/{service}/RecordActivity")
        assert error_info(json.loads(answer)).metadata["caller"] == "person/viewer/insecure-loopback"
        warned = [line for line in running.log() if "INSECURE" in line["event"]]
        assert warned[0]["level"] == "warning"
    async with process(tmp_path / "other") as running:
        base = f"http://localhost:{running.settings.port('monitor') + PLAINTEXT_OFFSET}"
        status, _ = await buf(*plain, "--list-services", base)
        assert status != 0


def error_info(error: dict[str, Any]) -> Any:
    """buf knows the types of the services alone, and so shows details in base64."""
    details = error["details"][0]
    assert details["type"] == "google.rpc.ErrorInfo"
    value = details["value"]
    return error_details_pb2.ErrorInfo.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))


def _documents(text: str) -> list[Any]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        document, end = decoder.raw_decode(text, at)
        found.append(document)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found

"""The exporter beside a real server: what a collector gets, and what a bad collector costs (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift_kit.otlp import Span, TelemetrySettings
from nightshift_kit.rpc import collector as collecting
from nightshift_kit.rpc import export as exporting
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.rpc.export import STOP_S, Exporter
from nightshift_kit.rpc.tls import ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.telemetry import begin_trace
from tests.kit.fake_services.probing import Monitor
from tests.support.collector import Collector, babbler, collector_process
from tests.support.servers import Serving, serving

SERVICE = "nightshift.monitor.v1.MonitorService"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# What a stop may take: its time for the collector, and much for a machine at work.
STOPPED_S = STOP_S + 5


@contextlib.contextmanager
def exporter(endpoint: str, registry: CollectorRegistry | None = None, **options: Any) -> Iterator[Exporter]:
    """A running exporter in a hurry; its end is timed."""
    quick: dict[str, Any] = {"spans_interval_s": 0.05, "metrics_interval_s": 0.1, "export_timeout_s": 5}
    settings = TelemetrySettings(otlp_endpoint=endpoint, **(quick | options))
    made = Exporter("monitor", settings, registry or CollectorRegistry())
    made.start()
    try:
        yield made
    finally:
        began_s = time.monotonic()
        made.stop()
        assert time.monotonic() - began_s < STOPPED_S
        assert "telemetry" not in {thread.name for thread in threading.enumerate()}


@contextlib.asynccontextmanager
async def monitor(home: Path, spans: Exporter) -> AsyncIterator[Serving]:
    servicer = Monitor()  # type: ignore[abstract]
    services = [(pb_grpc.add_MonitorServiceServicer_to_server, servicer, SERVICE)]
    async with serving("monitor", services, home=home, spans=spans) as running:
        yield running


async def get_status(running: Serving, count: int = 1) -> None:
    stub = running.stub(pb_grpc.MonitorServiceStub, "viewer")
    for _ in range(count):
        await stub.GetStatus(pb.GetStatusRequest(), timeout=5, metadata=(("traceparent", CALLER),))


def span(name: str = "work") -> Span:
    return Span(name, begin_trace(), time.time_ns(), 1)


def outcomes(registry: CollectorRegistry) -> dict[str, float]:
    return {
        outcome: registry.get_sample_value("nightshift_telemetry_spans_total", {"outcome": outcome}) or 0.0
        for outcome in ("sent", "refused", "dropped")
    }


def until(condition: Any) -> None:
    ends_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


async def test_the_span_of_a_call_tells_who_what_and_how_but_no_words_and_no_names(tmp_path: Path) -> None:
    with Collector() as collector, exporter(collector.endpoint, otlp_headers={"key": "k"}) as made:
        async with monitor(tmp_path / "home", made) as running:
            stub = running.stub(pb_grpc.MonitorServiceStub, "viewer")
            metadata = (("traceparent", CALLER), ("x-request-id", "the-ipad-of-wilma"))
            await stub.GetStatus(pb.GetStatusRequest(), timeout=5, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListProbes(
                    pb.ListProbesRequest(page_token="words of a user"), timeout=5, metadata=metadata
                )
            async for _ in stub.WatchStatus(pb.WatchStatusRequest(), timeout=5, metadata=metadata):
                pass
            await stub.GetStatus(
                pb.GetStatusRequest(), timeout=5, metadata=(("traceparent", CALLER[:-1] + "0"),)
            )
        await asyncio.to_thread(collector.until, lambda: len(collector.spans()) == 3)
    status, probes, watch = collector.spans()
    for one in (status, probes, watch):
        assert one.service == "nightshift-monitor"
        assert one.trace_id == CALLER[3:35]
        assert one.parent_span_id == CALLER[36:52]
        assert one.attributes["nightshift.caller"] == "person/viewer"
        assert 0 < one.message.end_time_unix_nano - one.message.start_time_unix_nano < 60e9
    assert status.name == status.attributes["rpc.method"] == f"{SERVICE}/GetStatus"
    assert (status.attributes["rpc.response.status_code"], status.message.status.code) == ("OK", 0)
    assert (probes.attributes["rpc.response.status_code"], probes.message.status.code) == ("INTERNAL", 2)
    assert probes.attributes["error.type"] == "INTERNAL"
    assert watch.name == f"{SERVICE}/WatchStatus"
    assert {headers["key"] for headers in collector.headers} == {"k"}
    everything = b"".join(request.SerializeToString() for request in collector.requests)
    for secret in (b"wilma", b"words of a user", b"a secret of the inside", b"person/viewer/"):
        assert secret not in everything
    assert socket.gethostname().encode() not in everything


async def test_polling_does_not_drown_what_a_caller_traces(tmp_path: Path) -> None:
    with Collector() as collector, exporter(collector.endpoint, root_spans_per_minute=0.001) as made:
        async with monitor(tmp_path / "home", made) as running:
            stub = running.stub(pb_grpc.MonitorServiceStub)
            for _ in range(100):
                await stub.GetStatus(pb.GetStatusRequest(), timeout=5)
            for _ in range(100):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetProbe(pb.GetProbeRequest(name="words"), timeout=5)
                assert decode_error(caught.value).reason == "INTERNAL"
            await get_status(running)
        await asyncio.to_thread(collector.until, lambda: any(one.parent_span_id for one in collector.spans()))
    roots = [one for one in collector.spans() if not one.parent_span_id]
    status = [one for one in roots if one.name.endswith("/GetStatus")]
    assert len(status) == 10
    # Ten of the method, and of those that ended this way ten.
    assert len(roots) - len(status) == 10


def test_metrics_of_the_registry_arrive(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    level = Gauge("level", "Level.", registry=registry)
    level.set(3)
    with Collector() as collector, exporter(collector.endpoint, registry, traces=False) as made:
        made.finished(span("not wanted"))
        collector.until(lambda: collector.metrics("nightshift-monitor").get(("level", ())) == 3)
        level.set_function(lambda: 1 / 0)
        with capture_logs() as logs:
            until(lambda: logs)
            assert logs[0]["problem"] == "not collected: ZeroDivisionError"
            level.set_function(lambda: 4)
            collector.until(lambda: collector.metrics("nightshift-monitor").get(("level", ())) == 4)
    assert collector.spans() == []
    assert outcomes(registry)["sent"] == 0


def test_what_waits_is_sent_at_the_stop() -> None:
    registry = CollectorRegistry()
    slow = {"spans_interval_s": 60, "metrics_interval_s": 60}
    with Collector() as collector:
        with exporter(collector.endpoint, registry, **slow) as made:
            for _ in range(700):
                made.finished(span())
            collector.until(lambda: len(collector.spans()) == 512)
        assert len(collector.spans()) == 700
        assert collector.metrics("nightshift-monitor")
    assert outcomes(registry) == {"sent": 700, "refused": 0, "dropped": 0}


async def test_over_tls_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    home = PlaneSettings(home=tmp_path / "home")
    ensure_home(home)
    credential = load_credential(home, "service/monitor")
    credentials = grpc.ssl_server_credentials(
        [(credential.key_pem, credential.certificate_pem)],
        root_certificates=credential.ca_pem,
        require_client_auth=True,
    )
    base = home.home / "credentials" / "service"
    with Collector(credentials=credentials) as collector:
        options: dict[str, Any] = {
            "ca_file": home.home / "ca" / "ca.pem",
            "certificate_file": base / "lab.pem",
            "key_file": base / "lab.key",
        }
        with exporter(f"https://localhost:{collector.port}", **options) as made:
            made.finished(span())
            await asyncio.to_thread(collector.until, lambda: len(collector.spans()) == 1)


@contextlib.contextmanager
def dead() -> Iterator[str]:
    with socket.socket() as taken:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def frozen() -> Iterator[str]:
    with collector_process() as (process, endpoint):
        process.send_signal(signal.SIGSTOP)
        yield endpoint


@contextlib.contextmanager
def stranger(handlers: list[Any]) -> Iterator[str]:
    """A gRPC server that is no collector."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=handlers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


class Nonsense(grpc.GenericRpcHandler):
    """Answers to everything with bytes that are no message."""

    def service(self, _details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"\xff\xff nonsense")


@pytest.mark.parametrize(
    "bad",
    [
        dead,
        frozen,
        lambda: babbler(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda: babbler(b""),
        lambda: stranger([Nonsense()]),
        lambda: stranger([]),
    ],
    ids=["dead", "frozen", "http/1", "mute", "nonsense", "unimplemented"],
)
async def test_a_bad_collector_costs_no_call_and_one_line_of_the_log(
    tmp_path: Path, bad: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collecting, "_PAUSE_LAST_S", 0.05)
    monkeypatch.setattr(collecting, "_PAUSE_FIRST_S", 0.05)
    registry = CollectorRegistry()
    with capture_logs() as logs, bad() as endpoint:
        options = {"export_timeout_s": 0.3, "max_queue_spans": 32}
        with exporter(endpoint, registry, **options) as made:
            async with monitor(tmp_path / "home", made) as running:
                await get_status(running, 50)
                said = {"traces", "metrics"}
                while {one["signal"] for one in logs if one["event"] == "telemetry export fails"} != said:
                    await asyncio.sleep(0.02)
                began_s = time.monotonic()
                await get_status(running, 50)
                took_s = time.monotonic() - began_s
                # Time for several more tries.
                await asyncio.sleep(0.5)
    # Had each call waited for one export, it would have been 15 s.
    assert took_s < 12
    events = [one["event"] for one in logs if one["event"] != "rpc"]
    assert events.count("telemetry export fails") == 2
    assert set(events) == {"telemetry is exported", "telemetry export fails"}
    # Neither does gRPC itself fill the standard error.
    assert capfd.readouterr().err.count("\n") < 10
    found = outcomes(registry)
    assert found["sent"] == 0
    assert found["dropped"] + found["refused"] == 100


def test_one_that_dies_and_returns_gets_what_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_PAUSE_LAST_S", 0.05)
    monkeypatch.setattr(exporting, "_MOST_TRIES", 10**6)
    registry = CollectorRegistry()
    with (
        capture_logs() as logs,
        Collector() as collector,
        exporter(collector.endpoint, registry, metrics=False) as made,
    ):
        made.finished(span("before"))
        collector.until(lambda: len(collector.spans()) == 1)
        collector.__exit__()
        made.finished(span("meanwhile"))
        until(lambda: any(one["event"] == "telemetry export fails" for one in logs))
        time.sleep(0.3)
        with Collector(collector.port) as second:
            second.until(lambda: len(second.spans()) == 1)
            made.finished(span("after"))
            second.until(lambda: len(second.spans()) == 2)
            assert [one.name for one in second.spans()] == ["meanwhile", "after"]
    assert [one["event"] for one in logs] == [
        "telemetry is exported",
        "telemetry export fails",
        "telemetry export works again",
    ]
    assert outcomes(registry) == {"sent": 3, "refused": 0, "dropped": 0}


def test_one_that_comes_and_goes_is_told_once_a_minute() -> None:
    turn = iter(range(10**9))

    def partial(context: Any) -> trace_pb.ExportTraceServiceResponse | None:
        if next(turn) % 2:
            return None
        return trace_pb.ExportTraceServiceResponse(
            partial_success=trace_pb.ExportTracePartialSuccess(
                rejected_spans=1, error_message="too\nold" * 1000
            )
        )

    registry = CollectorRegistry()
    with (
        capture_logs() as logs,
        Collector(traces=partial) as collector,
        exporter(collector.endpoint, registry, metrics=False) as made,
    ):
        for number in range(1, 21):
            made.finished(span())
            collector.until(lambda number=number: len(collector.spans()) == number)  # type: ignore[misc]
    told = [one for one in logs if one["event"] != "telemetry is exported"]
    assert [one["event"] for one in told] == ["telemetry export fails", "telemetry export works again"]
    assert len(told[0]["problem"]) <= 200
    assert outcomes(registry) == {"sent": 10, "refused": 10, "dropped": 0}


def test_a_request_that_a_collector_never_takes_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = iter([True] * exporting._MOST_TRIES)

    def chokes(context: Any) -> None:
        if next(poison, False):
            context.abort(grpc.StatusCode.DATA_LOSS, "chokes on it")

    monkeypatch.setattr(collecting, "_PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(collecting, "_PAUSE_LAST_S", 0.01)
    registry = CollectorRegistry()
    with Collector(traces=chokes) as collector, exporter(collector.endpoint, registry, metrics=False) as made:
        made.finished(span("poison"))
        until(lambda: outcomes(registry)["dropped"] == 1)
        made.finished(span("next"))
        collector.until(lambda: len(collector.spans()) == 1)
    assert [one.name for one in collector.spans()] == ["next"]


def test_a_collector_may_ask_for_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """RESOURCE_EXHAUSTED is tried again where a time is told, and given up where none is."""
    from google.protobuf.duration_pb2 import Duration
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=8)
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1)))
    details = iter([(("grpc-status-details-bin", status.SerializeToString()),), ()])

    def busy(context: Any) -> None:
        for trailers in details:
            context.set_trailing_metadata(trailers)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    monkeypatch.setattr(collecting, "_PAUSE_FIRST_S", 0.01)
    registry = CollectorRegistry()
    with Collector(traces=busy) as collector, exporter(collector.endpoint, registry, metrics=False) as made:
        made.finished(span("given up at the second try"))
        until(lambda: outcomes(registry)["refused"] == 1)
        made.finished(span("taken"))
        collector.until(lambda: len(collector.spans()) == 1)
    assert [one.name for one in collector.spans()] == ["taken"]


def test_a_forked_child_has_no_exporter() -> None:
    with Collector() as collector, exporter(collector.endpoint, metrics=False) as made:
        made.finished(span("parent"))
        collector.until(lambda: len(collector.spans()) == 1)
        assert "telemetry" in {thread.name for thread in threading.enumerate()}
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # That there are threads is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            # Nothing of pytest may run here. Libraries that other tests have loaded may begin threads anew.
            try:
                made.finished(span("child"))
                time.sleep(0.5)
                os.write(writer, ",".join(thread.name for thread in threading.enumerate()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            threads = told.read().split(",")
        assert "MainThread" in threads
        assert "telemetry" not in threads
        os.waitpid(child, 0)
        made.finished(span("parent again"))
        collector.until(lambda: len(collector.spans()) == 2)
    assert [one.name for one in collector.spans()] == ["parent", "parent again"]

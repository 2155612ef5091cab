"""Settings of the export, spans and metrics as messages: what wins, what is refused, what is the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from nightshift_kit.errors import SettingsInvalid
from nightshift_kit.otlp import Roots, Span, TelemetrySettings, telemetry_settings, working
from nightshift_kit.otlp.encoding import metrics_request, resource, spans_request
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.telemetry import begin_trace, current_trace, set_trace
from tests.support.collector import labels, page_of

SECRET = "a-secret-of-the-collector"


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlaneSettings:
    for name in list(os.environ):
        if name.startswith(("NIGHTSHIFT_TELEMETRY_", "OTEL_")):
            monkeypatch.delenv(name)
    return PlaneSettings(home=tmp_path)


def test_nothing_is_exported_by_default(plane: PlaneSettings) -> None:
    settings, problems = telemetry_settings(plane, {})
    assert not settings.enabled
    assert problems == ()


def test_ours_over_the_standards_over_the_file(plane: PlaneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.settings_file.write_text(
        '[telemetry]\notlp_endpoint = "https://file:1"\nmetrics_interval_s = 7\nspans_interval_s = 3\n'
        f'otlp_headers = {{ authorization = "{SECRET}" }}\n'
    )
    settings, _ = telemetry_settings(plane, {})
    assert (settings.target, settings.secure, settings.metrics_interval_s) == ("file:1", True, 7)
    assert settings.otlp_headers == {"authorization": SECRET}
    standard = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://standard:2/",
        "OTEL_METRIC_EXPORT_INTERVAL": "9000",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Api-Key={SECRET}%21, x=y",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=workshop",
        "OTEL_TRACES_EXPORTER": "none",
    }
    settings, problems = telemetry_settings(plane, standard)
    assert problems == ()
    assert (settings.target, settings.secure, settings.metrics_interval_s) == ("standard:2", False, 9)
    assert settings.spans_interval_s == 3
    assert settings.otlp_headers["api-key"] == f"{SECRET}!"
    assert settings.resource_attributes == {"deployment.environment": "workshop"}
    assert (settings.enabled, settings.traces, settings.metrics) == (True, False, True)
    assert SECRET not in str(settings)
    monkeypatch.setenv("NIGHTSHIFT_TELEMETRY_OTLP_ENDPOINT", "http://[::1]")
    monkeypatch.setenv("NIGHTSHIFT_TELEMETRY_TRACES", "true")
    settings, _ = telemetry_settings(plane, standard)
    assert (settings.target, settings.traces) == ("[::1]:4317", True)
    settings, _ = telemetry_settings(plane, standard | {"OTEL_SDK_DISABLED": "true"})
    assert not settings.enabled


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, ("collector:4317", True)),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            ("collector:4317", False),
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
            ("a:4317", False),
        ),
    ],
)
def test_the_standards_endpoints(
    plane: PlaneSettings, environ: dict[str, str], target: tuple[str, bool]
) -> None:
    settings, problems = telemetry_settings(plane, environ)
    assert (settings.target, settings.secure) == target
    assert problems == ()


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "unix:/run/otel"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:pass@a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:99999"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "no pair"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "key-bin=1"},
        {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"},
        {"OTEL_METRIC_EXPORT_INTERVAL": "soon"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
    ],
)
def test_a_standard_variable_that_makes_no_sense_is_passed_over(
    plane: PlaneSettings, environ: dict[str, str]
) -> None:
    settings, problems = telemetry_settings(plane, environ)
    assert settings == TelemetrySettings()
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('otlp_endpoint = "localhost:4317"', "http://HOST:PORT"),
        ('otlp_endpoint = "http://u:p@a"', "otlp_headers"),
        ('otlp_headers = { "Bad Name" = "x" }', "lower-case"),
        ('key_file = "/a"', "belong together"),
        ("max_queue_spans = 0", "greater than or equal to 1"),
        ("endpoint = 1", "unknown key"),
    ],
)
def test_a_key_of_ours_that_makes_no_sense_is_refused(plane: PlaneSettings, line: str, said: str) -> None:
    plane.settings_file.write_text(f"[telemetry]\n{line}\n")
    with pytest.raises(SettingsInvalid, match=said):
        telemetry_settings(plane, {})


_NUMBERS = st.floats(min_value=0, max_value=1e6)


@given(counts=st.lists(_NUMBERS, max_size=5), seen=st.lists(_NUMBERS, max_size=30), level=_NUMBERS)
def test_metrics_say_what_the_metrics_page_says(counts: list[float], seen: list[float], level: float) -> None:
    registry = CollectorRegistry()
    counter = Counter("things", "Things.", ("kind",), registry=registry)
    Gauge("level_bytes", "Level.", registry=registry).set(level)
    histogram = Histogram("span_seconds", "Span.", ("how",), buckets=(0.5, 1, 1000), registry=registry)
    summary = Summary("sizes", "Sizes.", registry=registry)
    for index, count in enumerate(counts):
        counter.labels(f"kind {index}").inc(count)
    for value in seen:
        histogram.labels("fast").observe(value)
        summary.observe(value)
    request = ExportMetricsServiceRequest.FromString(
        metrics_request(resource({"service.name": "x"}), registry, time.time_ns(), 1)
    )
    expected = {
        (sample.name, labels(sample.labels)): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert page_of(request.resource_metrics[0]) == expected
    metrics = {one.name: one for one in request.resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["span_seconds"].unit == "s"
    assert metrics["level_bytes"].unit == "By"
    for point in metrics["span_seconds"].histogram.data_points:
        assert 1 < point.start_time_unix_nano <= point.time_unix_nano
    assert all(metrics[name].sum.is_monotonic for name in ("sizes_sum", "sizes_count"))


def test_a_span_as_a_message() -> None:
    trace = begin_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "r")
    span = Span("a/B", trace, 2_000, 500, (("k", "v"),), served=True, failed=True)
    request = ExportTraceServiceRequest.FromString(spans_request(resource({"service.name": "x"}), [span]))
    (message,) = request.resource_spans[0].scope_spans[0].spans
    assert message.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert message.parent_span_id.hex() == "b7ad6b7169203331"
    assert message.span_id.hex() == trace.span_id
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == (1_500, 2_000)
    assert message.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert message.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    assert message.flags == 0x301


def test_traces_begin_ten_at_once_and_then_as_many_as_a_minute_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    roots = Roots(6)
    assert sum(roots.take("a") for _ in range(50)) == 10
    assert roots.take("b")
    taken = 0
    for _ in range(600):
        now_s += 1
        taken += roots.take("a")
    assert taken == 60
    now_s += 3600
    assert sum(roots.take("a") for _ in range(50)) == 10
    assert not Roots(0).take("a")


def test_work_within_a_call_is_part_of_its_trace_and_other_work_begins_one() -> None:
    class Sink:
        roots_per_minute = 1.0

        def __init__(self) -> None:
            self.spans: list[Any] = []

        def finished(self, span: Span) -> None:
            self.spans.append(span)

    sink = Sink()
    try:
        with working(sink, "alone", ()):
            inner = current_trace()
        assert current_trace() is None
        call = begin_trace()
        set_trace(call)
        with pytest.raises(KeyError), working(sink, "within", (("k", "v"),)):
            raise KeyError
        assert current_trace() is call
        set_trace(call.unsampled())
        with working(sink, "not told", ()), working(None, "not told either", ()):
            assert current_trace() is not None
    finally:
        set_trace(None)
    alone, within = sink.spans
    assert alone.trace is inner
    assert inner is not None
    assert inner.parent_span_id == ""
    assert within.trace.trace_id == call.trace_id
    assert within.trace.parent_span_id == call.span_id
    assert within.attributes == (("k", "v"),)

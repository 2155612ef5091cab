"""Spans and metrics as messages of the OpenTelemetry protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from nightshift_kit.otlp.spans import Span

_SCOPE: Final = "nightshift"
_CUMULATIVE: Final = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
_UNITS: Final = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}


def resource(attributes: Mapping[str, str]) -> Resource:
    """Who sends: "service.name" and the like."""
    return Resource(attributes=[_pair(name, value) for name, value in attributes.items()])


def spans_request(sender: Resource, spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add(resource=sender)
    scope = group.scope_spans.add()
    scope.scope.name = _SCOPE
    scope.spans.extend(map(_span, spans))
    return request.SerializeToString()


def metrics_request(sender: Resource, registry: CollectorRegistry, now_ns: int, began_ns: int) -> bytes:
    """An ExportMetricsServiceRequest of all that the registry holds, under the names of the metrics page.

    Args:
        sender: Who sends.
        registry: Is collected here, as for a scrape.
        now_ns: Unix time that the points are given.
        began_ns: Unix time since which is counted, for what does not tell it itself.

    Raises:
        Exception: Whatever a collector of the registry raises.
    """
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add(resource=sender)
    scope = group.scope_metrics.add()
    scope.scope.name = _SCOPE
    for family in registry.collect():
        scope.metrics.extend(_metrics(family, now_ns, began_ns))
    return request.SerializeToString()


def _span(span: Span) -> trace_pb2.Span:
    trace = span.trace
    message = trace_pb2.Span(
        trace_id=bytes.fromhex(trace.trace_id),
        span_id=bytes.fromhex(trace.span_id),
        parent_span_id=bytes.fromhex(trace.parent_span_id),
        name=span.name,
        kind=trace_pb2.Span.SPAN_KIND_SERVER if span.served else trace_pb2.Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span.end_ns - span.duration_ns,
        end_time_unix_nano=span.end_ns,
        attributes=[_pair(name, value) for name, value in span.attributes],
        flags=int(trace.sampled) | _HAS_IS_REMOTE | (_IS_REMOTE if span.served else 0),
    )
    if span.failed:
        message.status.code = trace_pb2.Status.STATUS_CODE_ERROR
    return message


def _pair(name: str, value: str) -> KeyValue:
    pair = KeyValue(key=name)
    pair.value.string_value = value
    return pair


def _metrics(family: Metric, now_ns: int, began_ns: int) -> Iterable[metrics_pb2.Metric]:
    described: dict[str, Any] = {
        "description": family.documentation,
        "unit": next((unit for ending, unit in _UNITS.items() if family.name.endswith(ending)), ""),
    }
    if family.type == "histogram":
        metric = metrics_pb2.Metric(name=family.name, **described)
        metric.histogram.aggregation_temporality = _CUMULATIVE
        metric.histogram.data_points.extend(_histogram(family, now_ns, began_ns))
        yield metric
        return
    counted = family.type in ("counter", "summary")
    samples = [one for one in family.samples if not (counted and one.name == f"{family.name}_created")]
    started_ns = {_labels(one): round(one.value * 1e9) for one in family.samples if one not in samples}
    # Samples of one family can have several names (a summary's sum and count): each is a metric here.
    for name in dict.fromkeys(one.name for one in samples):
        metric = metrics_pb2.Metric(name=name, **described)
        # A summary's quantiles are no counts.
        counts = counted and name != family.name
        points = metric.sum.data_points if counts else metric.gauge.data_points
        if counts:
            metric.sum.aggregation_temporality = _CUMULATIVE
            metric.sum.is_monotonic = True
        for sample in samples:
            if sample.name == name:
                point = points.add(time_unix_nano=now_ns, as_double=sample.value)
                point.attributes.extend(_pair(*label) for label in _labels(sample))
                if counts:
                    point.start_time_unix_nano = started_ns.get(_labels(sample), began_ns)
        yield metric


def _histogram(family: Metric, now_ns: int, began_ns: int) -> Iterable[metrics_pb2.HistogramDataPoint]:
    series: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in family.samples:
        one = series.setdefault(_labels(sample), {"buckets": []})
        ending = sample.name.removeprefix(family.name)
        if ending == "_bucket":
            one["buckets"].append((float(sample.labels["le"]), sample.value))
        else:
            one[ending] = sample.value
    for labels, one in series.items():
        buckets = sorted(one["buckets"])
        point = metrics_pb2.HistogramDataPoint(
            attributes=[_pair(*label) for label in labels],
            time_unix_nano=now_ns,
            start_time_unix_nano=round(one["_created"] * 1e9) if "_created" in one else began_ns,
            # The last bucket has everything. Threads observe while we read: a count of another moment
            # would not fit the buckets.
            count=int(buckets[-1][1]),
            explicit_bounds=[bound for bound, _ in buckets[:-1]],
        )
        # Prometheus counts what is at or below a bound, OpenTelemetry what lies between two.
        below = 0.0
        for _, upto in buckets:
            point.bucket_counts.append(int(upto - below))
            below = upto
        if "_sum" in one:
            point.sum = one["_sum"]
        yield point


def _labels(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in sample.labels.items() if name != "le")

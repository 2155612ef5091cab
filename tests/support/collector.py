"""An OpenTelemetry collector: a real gRPC server of the OTLP services, here or as a process of its own.

with Collector() as collector:
    … NIGHTSHIFT_TELEMETRY_OTLP_ENDPOINT=collector.endpoint …
    collector.until(lambda: len(collector.spans()) == 3)

`python -m tests.support.collector` serves on a free port, prints it, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

ROOT = Path(__file__).parents[2]
UNTIL_S = 60.0


@dataclass(frozen=True)
class SeenSpan:
    """A span as it arrived; ids are hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    attributes: Mapping[str, str]
    message: trace_pb2.Span


class Collector:
    """Keeps all that it gets.

    Attributes:
        port: Where it listens.
        requests: Every export, as it came.
        headers: Metadata of the exports.
        traces: What to answer to spans: a response, or what raises.
    """

    def __init__(
        self, port: int = 0, credentials: grpc.ServerCredentials | None = None, *, traces: Any = None
    ) -> None:
        self.requests: list[Any] = []
        self.headers: list[dict[str, Any]] = []
        self.traces: Callable[[grpc.ServicerContext], trace_pb.ExportTraceServiceResponse] | None = traces
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        # The generated functions carry no types.
        add_traces: Any = trace_grpc.add_TraceServiceServicer_to_server
        add_metrics: Any = metrics_grpc.add_MetricsServiceServicer_to_server
        add_traces(_Traces(self), self._server)
        add_metrics(_Metrics(self), self._server)
        where = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(where)
        else:
            self.port = self._server.add_secure_port(where, credentials)

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, request: Any, context: grpc.ServicerContext) -> None:
        with self._changed:
            self.requests.append(request)
            self.headers.append(dict(context.invocation_metadata()))
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool], timeout_s: float = UNTIL_S) -> None:
        """Waits for exports until the condition holds."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), f"never came; {len(self.requests)} exports"

    def spans(self) -> list[SeenSpan]:
        return [
            SeenSpan(
                _attributes(group.resource)["service.name"],
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                _attributes(span),
                span,
            )
            for request in list(self.requests)
            if isinstance(request, trace_pb.ExportTraceServiceRequest)
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def metrics(self, service: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """The latest values of a service's metrics, by the names and labels of a metrics page."""
        latest = [
            group
            for request in list(self.requests)
            if isinstance(request, metrics_pb.ExportMetricsServiceRequest)
            for group in request.resource_metrics
            if _attributes(group.resource)["service.name"] == service
        ]
        return page_of(latest[-1]) if latest else {}


def page_of(group: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a metrics page would say, from the metrics of one resource."""
    page: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for scope in group.scope_metrics:
        for metric in scope.metrics:
            for point in (*metric.sum.data_points, *metric.gauge.data_points):
                page[metric.name, labels(_attributes(point))] = point.as_double
            for point in metric.histogram.data_points:
                found, upto = _attributes(point), 0
                for bound, count in zip(
                    (*point.explicit_bounds, float("inf")), point.bucket_counts, strict=True
                ):
                    upto += count
                    page[f"{metric.name}_bucket", labels(found | {"le": str(bound)})] = upto
                page[f"{metric.name}_sum", labels(found)] = point.sum
                page[f"{metric.name}_count", labels(found)] = point.count
    return page


def labels(attributes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Labels in an order of their own; bounds of buckets as numbers."""
    return tuple(
        sorted((name, str(float(value)) if name == "le" else value) for name, value in attributes.items())
    )


@contextlib.contextmanager
def collector_process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A collector to be stopped and killed; gives its process and its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.collector"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextlib.contextmanager
def babbler(words: bytes) -> Iterator[str]:
    """Something that answers whoever connects with some bytes and waits; gives its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def babble() -> None:
            heard = []
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    heard.append(connection)
                    connection.sendall(words)
            for connection in heard:
                connection.close()

        thread = threading.Thread(target=babble)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            # The last connection, which lets it look up.
            with socket.create_connection(listener.getsockname()[:2]):
                thread.join()


def _attributes(holder: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in holder.attributes}


class _Traces(trace_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:
        answer = self._collector.traces(context) if self._collector.traces is not None else None
        self._collector.take(request, context)
        return answer or trace_pb.ExportTraceServiceResponse()


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:
        self._collector.take(request, context)
        return metrics_pb.ExportMetricsServiceResponse()


if __name__ == "__main__":
    with Collector() as made:
        print(made.port, flush=True)
        sys.stdin.buffer.read()

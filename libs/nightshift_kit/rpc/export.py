"""Sends spans and metrics to an OpenTelemetry collector, from a thread of its own.

A collector that is dead, slow or talks nonsense costs the service nothing but that thread's time: calls only
put a span into a bounded queue, whose oldest give way; sending has a deadline, failures pause it for longer
and longer; the log gets one line when it begins to fail and one when it works again; a stop waits a second
for what is left, and not at all while the collector fails. The requests go over a plain channel: they are no
calls of the plane and leave no spans. Processes that a service starts have none of this.
"""

from __future__ import annotations

import collections
import importlib.metadata
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter

from nightshift_kit.ids import new_id
from nightshift_kit.otlp.encoding import metrics_request, resource, spans_request
from nightshift_kit.otlp.settings import TelemetrySettings
from nightshift_kit.otlp.spans import Span
from nightshift_kit.rpc.collector import Refused, TryLater, dial, metrics, traces

STOP_S: Final = 1.0
"""How long a stop waits for what is left to be sent."""

_BATCH_SPANS: Final = 512
# About six minutes, with the pauses between: what a collector still does not take then may be what ails it.
_MOST_TRIES: Final = 12


@dataclass(slots=True)
class _Batch:
    """A request of spans, until it was taken or given up."""

    request: bytes
    count: int
    tries: int = 0


class Exporter:
    """The sender of one process: takes spans once it has been made, sends from `start` to `stop`.

    Args:
        service: Name of the service ("lab").
        settings: Enabled ones.
        registry: Of the metrics that are sent; gets the exporter's own.

    Raises:
        OSError: a file of certificates cannot be read.
    """

    def __init__(self, service: str, settings: TelemetrySettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._headers = tuple(settings.otlp_headers.items())
        self._began_ns = time.time_ns()
        self._sender = resource(
            {
                "service.version": importlib.metadata.version("nightshift-plane"),
                **settings.resource_attributes,
                "service.namespace": "nightshift",
                "service.name": f"nightshift-{service}",
                "service.instance.id": new_id(),
            }
        )
        self._queue: collections.deque[Span] = collections.deque(maxlen=settings.max_queue_spans)
        self._batch_spans = min(_BATCH_SPANS, settings.max_queue_spans)
        self._batch: _Batch | None = None
        outcomes = Counter(
            "nightshift_telemetry_spans",
            "Spans by what became of them: sent, refused (by the collector), dropped (no room, no answer).",
            ("outcome",),
            registry=registry,
        )
        self._sent, self._refused, self._dropped = map(outcomes.labels, ("sent", "refused", "dropped"))
        self._channel = dial(settings)
        self._traces = traces(self._channel, settings.otlp_endpoint)
        self._metrics = metrics(self._channel, settings.otlp_endpoint)
        self._wake = threading.Event()
        self._ends_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._logger: Any = structlog.get_logger()

    @property
    def roots_per_minute(self) -> float:
        """See SpanSink."""
        return self._settings.root_spans_per_minute

    def finished(self, span: Span) -> None:
        """See SpanSink."""
        if not self._settings.traces:
            return
        if len(self._queue) == self._queue.maxlen:
            self._dropped.inc()
            self._queue.append(span)
            return
        self._queue.append(span)
        if len(self._queue) == self._batch_spans:
            self._wake.set()

    def start(self) -> None:
        """Begins to send."""
        self._logger.info("telemetry is exported", settings=str(self._settings))
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Sends what is left, for so long at most, and closes the connection; harmless without a start."""
        self._ends_s = time.monotonic() + timeout_s
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        # Ends a request that still waits for its answer.
        self._channel.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._send_until_stopped()
            self._send_the_rest()
        except Exception as error:
            self._logger.exception("telemetry export broke", exc_info=error)

    def _send_until_stopped(self) -> None:
        settings = self._settings
        spans_due_s = time.monotonic() + settings.spans_interval_s
        # The first ones soon, so that a collector sees a service at its start.
        metrics_due_s = spans_due_s if settings.metrics else float("inf")
        while self._ends_s is None:
            now_s = time.monotonic()
            if now_s >= max(metrics_due_s, self._metrics.free_s):
                self._send_metrics()
                metrics_due_s = now_s + settings.metrics_interval_s
            if now_s >= max(self._traces.free_s, now_s if self._behind() else spans_due_s):
                self._send_spans()
                spans_due_s = now_s + settings.spans_interval_s
            self._wake.clear()
            next_s = min(
                max(metrics_due_s, self._metrics.free_s),
                max(self._traces.free_s, now_s if self._behind() else spans_due_s),
            )
            if self._ends_s is None:
                self._wake.wait(max(0.0, next_s - time.monotonic()))

    def _send_the_rest(self) -> None:
        while (self._queue or self._batch is not None) and self._traces.answers and self._time_left_s():
            self._send_spans()
        if self._settings.metrics and self._metrics.answers and self._time_left_s():
            self._send_metrics()
        self._dropped.inc(len(self._queue) + (self._batch.count if self._batch is not None else 0))

    def _behind(self) -> bool:
        return self._batch is not None or len(self._queue) >= self._batch_spans

    def _time_left_s(self) -> float:
        """How long one more request may take; 0.0 where a stop waits no longer."""
        if self._ends_s is None:
            return self._settings.export_timeout_s
        return max(0.0, min(self._settings.export_timeout_s, self._ends_s - time.monotonic()))

    def _send_spans(self) -> None:
        if self._batch is None:
            spans = [self._queue.popleft() for _ in range(min(_BATCH_SPANS, len(self._queue)))]
            if not spans:
                return
            self._batch = _Batch(spans_request(self._sender, spans), len(spans))
        batch = self._batch
        batch.tries += 1
        try:
            refused = self._traces.send(batch.request, self._headers, self._time_left_s())
        except TryLater:
            if batch.tries >= _MOST_TRIES:
                self._dropped.inc(batch.count)
                self._batch = None
            return
        except Refused:
            refused = batch.count
        self._batch = None
        self._sent.inc(batch.count - refused)
        self._refused.inc(refused)

    def _send_metrics(self) -> None:
        try:
            request = metrics_request(self._sender, self._registry, time.time_ns(), self._began_ns)
        except Exception as error:  # noqa: BLE001 - gauges of services read what may just be closed
            self._metrics.fails(f"not collected: {type(error).__name__}")
            return
        try:
            self._metrics.send(request, self._headers, self._time_left_s())
        except (Refused, TryLater):
            # The next ones say all that these say.
            return

"""Prometheus metrics of a process's servers, over HTTP on loopback."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class RpcMetrics:
    """Counts and latencies by method and code, refusals by reason, calls in flight.

    Attributes:
        registry: Where services add what they measure themselves.
    """

    def __init__(self, service: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.service = service
        self._duration = Histogram(
            "nightshift_rpc_duration_seconds",
            "Time from the arrival of a call to its status.",
            ("method", "code"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._refused = Counter(
            "nightshift_rpc_errors",
            "Calls that ended in an error, by reason.",
            ("method", "reason"),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "nightshift_rpc_in_flight", "Calls running now.", ("server",), registry=self.registry
        )
        # Looking a child up by its labels costs more than the observation itself.
        self._observers: dict[tuple[str, str], Callable[[float], None]] = {}

    def watch(self, server: str, in_flight: Callable[[], float]) -> None:
        """Reads the calls in flight of one of the process's servers whenever metrics are collected."""
        self._in_flight.labels(server).set_function(in_flight)

    def observe(self, method: str, code: str, reason: str, duration_s: float) -> None:
        """Notes a finished call."""
        observer = self._observers.get((method, code))
        if observer is None:
            observer = self._observers[(method, code)] = self._duration.labels(method, code).observe
        observer(duration_s)
        if reason:
            self._refused.labels(method, reason).inc()

    def serve(self, port: int) -> MetricsServer:
        """Starts answering GET /metrics on 127.0.0.1. Raises OSError where the port is taken."""
        server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        return MetricsServer(server)


class MetricsServer:
    """The running HTTP server."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server

    @property
    def port(self) -> int:
        """Port that it listens on."""
        address: Any = self._server.server_address
        return int(address[1])

    def close(self) -> None:
        """Stops answering. Its thread, a daemon, ends within the half second at which the server looks up."""
        Thread(target=self._shut, daemon=True).start()

    def _shut(self) -> None:
        self._server.shutdown()
        self._server.server_close()

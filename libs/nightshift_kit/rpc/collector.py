"""A collector's two methods, and how each of them goes: sending, pausing after failures, telling once."""

from __future__ import annotations

import random
import time
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from nightshift_kit.otlp.settings import TelemetrySettings
from nightshift_kit.rpc.statuses import decode_error

_PAUSE_FIRST_S: Final = 1.0
_PAUSE_LAST_S: Final = 60.0
# Between two complaints about one signal, should it come and go.
_QUIET_S: Final = 60.0
_PROBLEM_CHARACTERS: Final = 200
# What the protocol's specification says may be tried again; RESOURCE_EXHAUSTED only where a time is told.
_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_OPTIONS: Final = (
    # Answers are a few bytes.
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 30_000),
)
# Spread, so that the services of a plane do not return all at once.
_SPREAD: Final = random.Random()  # noqa: S311


class TryLater(Exception):
    """The collector did not take it; it may later."""


class Refused(Exception):
    """The collector will not take it, or nobody can tell whether it did."""


def dial(settings: TelemetrySettings) -> grpc.Channel:
    """A channel to the collector; connects when it is used. Raises OSError where a file cannot be read."""
    if not settings.secure:
        return grpc.insecure_channel(settings.target, options=_OPTIONS)
    authorities, key, certificate = (
        path.read_bytes() if path is not None else None
        for path in (settings.ca_file, settings.key_file, settings.certificate_file)
    )
    credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
    return grpc.secure_channel(settings.target, credentials, options=_OPTIONS)


class Signal:
    """Traces or metrics; used by one thread.

    Attributes:
        free_s: `time.monotonic()` before which nothing is to be sent.
    """

    def __init__(self, name: str, channel: grpc.Channel, path: str, answer: Any, endpoint: str) -> None:
        self._name = name
        # Bytes in, bytes out: a collector's nonsense is judged here rather than logged by gRPC.
        self._call: Any = channel.unary_unary(path)
        self._answer = answer
        self._endpoint = endpoint
        self._pause_s = 0.0
        self._failing = False
        self._told = False
        self._told_s = -_QUIET_S
        self._logger: Any = structlog.get_logger()
        self.free_s = 0.0

    @property
    def answers(self) -> bool:
        """Whether the last request got an answer that makes sense; True before the first."""
        return self._pause_s == 0

    def send(self, request: bytes, headers: tuple[tuple[str, str], ...], timeout_s: float) -> int:
        """Sends a request, and takes note of how it went.

        Returns:
            How many of its items the collector refused.

        Raises:
            TryLater: it may be taken later, after `free_s`.
            Refused: trying again is no use.
        """
        try:
            partial = self._answer.FromString(
                self._call(request, timeout=timeout_s, metadata=headers)
            ).partial_success
        except grpc.RpcError as error:
            rich = decode_error(error)
            self.fails(f"{rich.code.name}: {rich.message}", rich.retry_after_s or 0.0)
            if rich.code in _AGAIN or (
                rich.code is grpc.StatusCode.RESOURCE_EXHAUSTED and rich.retry_after_s is not None
            ):
                raise TryLater from error
            raise Refused from error
        except DecodeError as error:
            self.fails("what answers is no collector")
            raise Refused from error
        except ValueError as error:
            # The channel is closed: the service stops.
            raise TryLater from error
        refused: int = partial.rejected_spans if self._name == "traces" else partial.rejected_data_points
        if refused:
            self.fails(f"{refused} refused: {partial.error_message}", pause=False)
        else:
            self._works()
        self._pause_s = 0.0
        return refused

    def fails(self, problem: str, retry_after_s: float = 0.0, *, pause: bool = True) -> None:
        """Takes note of a failure; the log has the first of a row."""
        now_s = time.monotonic()
        if pause:
            self._pause_s = min(max(_PAUSE_FIRST_S, 2 * self._pause_s), _PAUSE_LAST_S)
            wait_s = max(self._pause_s, min(retry_after_s, _PAUSE_LAST_S))
            self.free_s = now_s + wait_s * _SPREAD.uniform(0.8, 1.2)
        if not self._failing and now_s - self._told_s >= _QUIET_S:
            self._told, self._told_s = True, now_s
            self._logger.warning(
                "telemetry export fails",
                signal=self._name,
                endpoint=self._endpoint,
                problem=problem[:_PROBLEM_CHARACTERS],
            )
        self._failing = True

    def _works(self) -> None:
        if self._told:
            self._logger.info("telemetry export works again", signal=self._name)
        self._told = self._failing = False


def traces(channel: grpc.Channel, endpoint: str) -> Signal:
    """The collector's method for spans."""
    path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    return Signal("traces", channel, path, ExportTraceServiceResponse, endpoint)


def metrics(channel: grpc.Channel, endpoint: str) -> Signal:
    """The collector's method for metrics."""
    path = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
    return Signal("metrics", channel, path, ExportMetricsServiceResponse, endpoint)

"""The server builder: every gRPC server of the plane is made here.

What a server brings with it: health (`grpc.health.v1`, for "" and each service), reflection, channelz where
asked; mutual TLS; the guard of `rpc.guard` around every method (identity, grants, deadlines, decoding, typed
errors, metrics, log); at most 4 MiB a message and 16 KiB of metadata; OVERLOADED with RetryInfo beyond its
limits; `grpc.so_reuseport=0`, so that a second process on the same port fails instead of sharing it; DRAINING
for new calls while it stops. A method without a usable policy keeps it from being built.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from nightshift_kit.clock import Clock
from nightshift_kit.otlp import SpanSink
from nightshift_kit.rpc.guard import Authority, Guard
from nightshift_kit.rpc.metrics import RpcMetrics
from nightshift_kit.rpc.policies import rules_of
from nightshift_kit.rpc.standby import STANDBY
from nightshift_kit.rpc.tls import Credential, load_credential
from nightshift_kit.rpc.token_door import TokenDoor
from nightshift_kit.rpc.traffic import Limits, Traffic
from nightshift_kit.settings import PlaneSettings

AddToServer = Callable[[Any, Any], None]

_HEALTH: Final = "grpc.health.v1.Health"
_CHANNELZ: Final = "grpc.channelz.v1.Channelz"


class BindRefused(RuntimeError):
    """Listening there would not be safe."""


class PortTaken(RuntimeError):
    """Something else listens on the port."""


class ServerBuilder:
    """Collects what one server serves.

    Args:
        name: Of the service, which is the credential it shows ("lab").
        settings: Home and insecure_loopback.
        clock: For grants' times.
        authority: What acting methods are checked with; needed by a server that has such methods.
        door: What local tokens are checked with; one of the home without an audit where None.
        for_tokens: Take callers without a certificate, who are nobody unless they show a local token.
        metrics: Shared by the servers of a process; an own one where None.
        port: Port to listen on; 0 takes a free one.
        plaintext_port: Of an additional listener without TLS, only under `insecure_loopback`; None for none.
        host: Address to listen on.
        credential: Explicit certificate; needed for any host but loopback.
        limits: Calls, streams, sizes.
        channelz: Whether to serve channelz.
        label: Of this server in metrics and log ("main", "control", "tokens").
        spans: Hears of the calls served; None where nothing is exported.
    """

    def __init__(
        self,
        name: str,
        settings: PlaneSettings,
        *,
        clock: Clock,
        authority: Authority | None = None,
        door: TokenDoor | None = None,
        for_tokens: bool = False,
        metrics: RpcMetrics | None = None,
        port: int = 0,
        plaintext_port: int | None = None,
        host: str = "127.0.0.1",
        credential: Credential | None = None,
        limits: Limits | None = None,
        channelz: bool = False,
        label: str = "main",
        spans: SpanSink | None = None,
    ) -> None:
        if not _is_loopback(host) and credential is None:
            raise BindRefused(
                f"{host} is no loopback address, and the development CA is for loopback only: "
                "give the certificate explicitly"
            )
        if plaintext_port is not None and not (settings.insecure_loopback and _is_loopback(host)):
            raise BindRefused("a port without TLS exists on loopback only, and only with insecure_loopback")
        self._name = name
        self._host = host
        self._port = port
        self._plaintext_port = plaintext_port
        self._for_tokens = for_tokens
        self._credential = credential or load_credential(settings, f"service/{name}")
        self._limits = limits or Limits()
        self._channelz = channelz
        self._label = label
        self._metrics = metrics or RpcMetrics(name)
        self._traffic = Traffic(self._limits)
        self._metrics.watch(label, lambda: float(self._traffic.in_flight))
        self._guard = Guard(
            clock=clock,
            insecure_allowed=settings.insecure_loopback and not for_tokens,
            door=door or TokenDoor.of(settings, clock),
            authority=authority,
            traffic=self._traffic,
            metrics=self._metrics,
            spans=spans,
        )
        self._handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add(self, add_to_server: AddToServer, servicer: Any, full_name: str) -> ServerBuilder:
        """Adds a service.

        Args:
            add_to_server: The generated `add_…Servicer_to_server`.
            servicer: Its methods are coroutine functions; async generators where they answer with a stream.
            full_name: As in the proto ("nightshift.lab.v1.LabService").

        Raises:
            PolicyMissing: a method has no usable policy.
            TypeError: a method of the servicer has the wrong shape.
        """
        rules = rules_of(full_name)
        collector = _Collector()
        add_to_server(servicer, collector)
        handlers = collector.handlers[full_name]
        self._handlers[full_name] = {
            name: self._guard.handler(rules[name], _behaviour(handler)) for name, handler in handlers.items()
        }
        return self

    def build(self) -> Server:
        """The server; it listens after `start`. To be called on the event loop that will serve."""
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._limits.message_bytes),
                ("grpc.max_send_message_length", self._limits.message_bytes),
                ("grpc.max_metadata_size", self._limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", self._limits.metadata_bytes),
                # Pings of clients that watch a quiet stream are welcome, floods are not.
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 30000),
                ("grpc.keepalive_timeout_ms", 10000),
            ],
            # Backstop: what comes beyond our own limits is refused before it costs a task.
            maximum_concurrent_rpcs=2 * (self._limits.calls + self._limits.streams) + 64,
        )
        for full_name, handlers in self._handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(full_name, handlers),))
        health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        standard = [_HEALTH, reflection.SERVICE_NAME]
        if self._channelz:
            channelz.add_channelz_servicer(server)
            standard.append(_CHANNELZ)
        reflection.enable_server_reflection([*self._handlers, *standard], server)
        return Server(
            server,
            health,
            list(self._handlers),
            self._traffic,
            name=self._name,
            label=self._label,
            bind=self._bind,
        )

    def _bind(self, server: grpc.aio.Server) -> tuple[int, int | None]:
        pair = (self._credential.key_pem, self._credential.certificate_pem)
        if self._for_tokens:
            credentials = grpc.ssl_server_credentials([pair])
        else:
            # Clients without a certificate of our CA do not get through the handshake.
            credentials = grpc.ssl_server_credentials(
                [pair], root_certificates=self._credential.ca_pem, require_client_auth=True
            )
        port = _listen(self._host, self._port, lambda at: server.add_secure_port(at, credentials))
        plaintext_port = None
        if self._plaintext_port is not None:
            plaintext_port = _listen(self._host, self._plaintext_port, server.add_insecure_port)
        return port, plaintext_port


class Server:
    """One running server."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health: Any,
        services: list[str],
        traffic: Traffic,
        *,
        name: str,
        label: str,
        bind: Callable[[grpc.aio.Server], tuple[int, int | None]],
    ) -> None:
        self._server = server
        self._health = health
        self._services = services
        self._traffic = traffic
        self._name = name
        self._label = label
        self._bind = bind
        self._logger: Any = structlog.get_logger()
        self.port = 0
        self.plaintext_port: int | None = None

    async def start(self, *, standing_by: bool = False) -> int:
        """Begins to listen.

        Args:
            standing_by: Whether health says that this replica stands by (see rpc.standby).

        Returns:
            The port.

        Raises:
            PortTaken: something else listens there.
        """
        self.port, self.plaintext_port = self._bind(self._server)
        if standing_by:
            await self.set_healthy(False, "stands by")
            await self._health.set(STANDBY, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        if not standing_by:
            await self.set_healthy(True)
        if self.plaintext_port is not None:
            self._logger.warning(
                "INSECURE: also listening without TLS, anybody on this machine is a viewer",
                server=self._label,
                port=self.plaintext_port,
            )
        return self.port

    async def set_healthy(self, healthy: bool, reason: str = "") -> None:
        """Says SERVING or NOT_SERVING for the server and each of its services. On its event loop."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        if not healthy:
            self._logger.warning("not serving", server=self._label, reason=reason)
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> int:
        """Stops: NOT_SERVING, DRAINING for new calls, time for the running ones, then the end.

        Returns:
            How many calls had to be cut short.
        """
        await self._health.enter_graceful_shutdown()
        cut = await self._traffic.drain(grace_s)
        # What still runs now are the standard services' streams (health watchers, reflection).
        await self._server.stop(0.1 if cut == 0 else 0.5)
        return cut

    async def wait(self) -> None:
        """Returns when the server has ended."""
        await self._server.wait_for_termination()


class _Collector:
    """Takes the place of a server when the generated code adds its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[str, Any]] = {}

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """The registered form below says the same and can be read."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers[service] = handlers


def _behaviour(handler: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def _listen(host: str, port: int, add: Callable[[str], int]) -> int:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = add(where)
    except RuntimeError as error:
        raise PortTaken(f"cannot listen on {where}: {error}") from error
    if bound == 0:
        raise PortTaken(f"cannot listen on {where}")
    return bound


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Channels to the services, over mutual TLS; they carry trace and request ids on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import orjson
from grpc.aio import ClientCallDetails, Metadata

from nightshift_kit.errors import Code, NightshiftError
from nightshift_kit.grants import METADATA_KEY
from nightshift_kit.rpc.passage import REQUEST_ID_KEY, TRACEPARENT_KEY
from nightshift_kit.rpc.statuses import RichError, decode_error
from nightshift_kit.rpc.tls import Credential, dns_name, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.telemetry import current_trace

__all__ = [
    "EndpointsMissing",
    "RichError",
    "address_of",
    "channel",
    "channel_to",
    "credential_for",
    "decode_error",
    "grant_metadata",
    "sync_channel",
]

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that is restarted is back within a second or two; waiting longer to look would only be slow.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, and beside it: how long a try may take. A handshake on a busy machine takes its time.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
)


class EndpointsMissing(NightshiftError):
    """No endpoints.json, or the service is not in it: the plane is not up."""

    code = Code.UNAVAILABLE
    reason = "PLANE_DOWN"


def address_of(settings: PlaneSettings, service: str, *, control: bool = False) -> str:
    """Address of a service as endpoints.json says, "host:port". Raises EndpointsMissing."""
    path = settings.home / "endpoints.json"
    try:
        entry = orjson.loads(path.read_bytes())["services"][service]
        return str(entry["control_address" if control else "address"])
    except FileNotFoundError:
        raise EndpointsMissing(f"The plane is not up: there is no {path}.") from None
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise EndpointsMissing(f"{path} does not tell where {service} is.") from error


@functools.cache
def _credential(home: Path, identity: str) -> Credential:
    return load_credential(PlaneSettings(home=home), identity)


def credential_for(settings: PlaneSettings, identity: str) -> Credential:
    """The credential that this process shows as `identity`.

    It is read once, so that grants minted for its thumbprint fit the certificate that the channels show.
    """
    return _credential(settings.home, identity)


def channel(
    target_service: str,
    settings: PlaneSettings,
    identity: str = "service/skills",
    *,
    control: bool = False,
) -> grpc.aio.Channel:
    """A channel to a service of the running plane, found by endpoints.json. Raises EndpointsMissing."""
    return channel_to(
        address_of(settings, target_service, control=control),
        target_service,
        credential_for(settings, identity),
    )


def channel_to(address: str, target_service: str, credential: Credential) -> grpc.aio.Channel:
    """A channel to an address that must prove to be the service."""
    return grpc.aio.secure_channel(
        address,
        _channel_credentials(credential),
        options=(*_OPTIONS, ("grpc.ssl_target_name_override", dns_name(target_service))),
        interceptors=[_TraceUnary(), _TraceStream()],
    )


def sync_channel(
    target_service: str,
    settings: PlaneSettings,
    identity: str = "service/skills",
    *,
    control: bool = False,
    address: str = "",
) -> grpc.Channel:
    """As channel, for threads. Raises EndpointsMissing."""
    return grpc.secure_channel(
        address or address_of(settings, target_service, control=control),
        _channel_credentials(credential_for(settings, identity)),
        options=(*_OPTIONS, ("grpc.ssl_target_name_override", dns_name(target_service))),
    )


def grant_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata that carries a grant; give it to the stub's method."""
    return ((METADATA_KEY, token),)


def _channel_credentials(credential: Credential) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credential.ca_pem, credential.key_pem, credential.certificate_pem)


def _traced(details: ClientCallDetails) -> ClientCallDetails:
    trace = current_trace()
    if trace is None:
        return details
    metadata = Metadata(*(details.metadata or ()))
    for key, value in ((TRACEPARENT_KEY, trace.traceparent), (REQUEST_ID_KEY, trace.request_id)):
        if metadata.get(key) is None:
            metadata.add(key, value)
    return ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


class _TraceUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_traced(client_call_details), request)


class _TraceStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_traced(client_call_details), request)

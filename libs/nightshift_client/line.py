"""A line to one service: finds it, keeps a channel, and makes calls that never block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nightshift_client.breaker import Breaker
from nightshift_client.errors import PlaneNotFound
from nightshift_client.home import Home

if TYPE_CHECKING:
    import grpc

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1
TOKEN_KEY = "nightshift-token"  # noqa: S105 - the key of the metadata, no token


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: the gRPC status name, and the reason of its ErrorInfo ("" without one)."""

    code: str
    reason: str = ""
    message: str = ""
    # What was answered, where somebody reads it.
    body: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the plane took it."""
        return self.code == "OK"

    @property
    def refused(self) -> bool:
        """Whether the plane will never take it, however often it is sent."""
        return self.code in _REFUSALS and bool(self.reason)

    @property
    def alive(self) -> bool:
        """Whether it proves that the plane works: an answer with our own error details does, too."""
        return self.ok or self.refused


# Without details the same codes come from proxies, from nonsense and from the transport itself: those are
# retried.
_REFUSALS = frozenset({"INVALID_ARGUMENT", "ALREADY_EXISTS", "NOT_FOUND", "OUT_OF_RANGE"})

OnAnswer = Callable[[Answer], None]


class Line:
    """To be used by one thread; the answers arrive on a thread of grpc."""

    def __init__(self, home: Home, service: str, *, control: bool, identity: str, breaker: Breaker) -> None:
        """``identity`` is a credential below HOME/credentials ("platform/default")."""
        self.breaker = breaker
        self._home = home
        self._service = service
        self._control = control
        kind, _, name = identity.partition("/")
        self._credential = home.credential(kind, name)
        self._channel: grpc.Channel | None = None
        self._stamp: tuple[int, ...] = ()

    def refresh(self) -> None:
        """Forgets the channel if address or credential changed, and lets a breaker try again."""
        if self._stamp != self._present_stamp():
            self.disconnect()
            if self._home.stamp():
                self.breaker.hasten()

    def call(self, method: str, request: bytes, timeout_s: float, on_answer: OnAnswer) -> None:
        """Sends a serialised request; ``on_answer`` is called exactly once, perhaps before this returns."""
        try:
            channel = self._connected()
        except PlaneNotFound as error:
            on_answer(Answer("UNAVAILABLE", "", str(error)))
            return
        send: Any = channel.unary_unary(method)
        future = send.future(request, timeout=timeout_s)
        future.add_done_callback(lambda done: on_answer(_answer(done, method)))

    def check(self, timeout_s: float, on_answer: OnAnswer) -> None:
        """Asks for the health; anything but SERVING is UNAVAILABLE."""
        self.call(_HEALTH, b"", timeout_s, on_answer)

    def disconnect(self) -> None:
        """Closes the channel."""
        channel, self._channel = self._channel, None
        self._stamp = ()
        if channel is not None:
            channel.close()

    def after_fork(self) -> None:
        """Lets go of the parent's channel without touching it."""
        self._channel = None
        self._stamp = ()
        self.breaker.after_fork()

    def _present_stamp(self) -> tuple[int, ...]:
        return (*self._home.stamp(), *self._credential.stamp())

    def _connected(self) -> grpc.Channel:
        if self._channel is None:
            stamp = self._present_stamp()
            endpoints = self._home.endpoints()
            endpoint = endpoints.services.get(self._service)
            if endpoint is None:
                raise PlaneNotFound(f"the plane has no service {self._service}")
            address = (endpoint.control_address if self._control else "") or endpoint.address
            self._channel = open_channel(address, self._service, *self._credential.read())
            self._stamp = stamp
        return self._channel


def open_channel(
    address: str, service: str, certificate: bytes, key: bytes, authority: bytes
) -> grpc.Channel:
    """A channel over mTLS whose peer must be ``service`` (PEM bytes)."""
    import grpc

    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(address, credentials, _options(service))


def open_token_channel(address: str, service: str, token: str, authority: bytes) -> grpc.Channel:
    """A channel over TLS whose peer must be ``service``; each call on it shows the local token."""
    import grpc

    class Show(grpc.AuthMetadataPlugin):
        def __call__(self, _context: Any, callback: Any) -> None:
            callback(((TOKEN_KEY, token),), None)

    # Credentials of a call: grpc itself never sends them over a connection without encryption.
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(authority), grpc.metadata_call_credentials(Show(), name="local token")
    )
    return grpc.secure_channel(address, credentials, _options(service))


def _options(service: str) -> list[tuple[str, Any]]:
    return [
        ("grpc.ssl_target_name_override", f"{service}.nightshift.local"),
        # A proxy in the environment is for the world outside; the plane is near.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # How long a try to connect may take, despite its name.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def _answer(done: Any, method: str) -> Answer:
    try:
        body: bytes = done.result()
    except Exception as error:  # noqa: BLE001 - RpcError, cancellation, and whatever a broken peer brings about
        return _failure(error)
    if method == _HEALTH:
        # One field, number 1, varint: reading two bytes spares the dependency on the health package.
        return (
            Answer("OK") if body[:2] == bytes([0x08, _SERVING]) else Answer("UNAVAILABLE", "", "not serving")
        )
    if method.endswith("/GetTunedSettings"):
        # Whoever asked reads it, and finds out whether it makes sense.
        return Answer("OK", body=body)
    return Answer("OK") if _parses(method, body) else Answer("INTERNAL", "", "the answer makes no sense")


def _parses(method: str, body: bytes) -> bool:
    from google.protobuf.message import DecodeError

    from nightshift.experience.v1 import experience_service_pb2, resources_pb2
    from nightshift.skills.v1 import skills_service_pb2

    answers: dict[str, Any] = {
        "RecordRun": resources_pb2.Run,
        "RecordFeedback": experience_service_pb2.RecordFeedbackResponse,
        "ReportActivity": skills_service_pb2.ReportActivityResponse,
    }
    try:
        message = answers[method.rpartition("/")[2]].FromString(body)
    except DecodeError:
        return False
    # Random bytes often parse as unknown fields; a stored run always has its name.
    return bool(message.name) if isinstance(message, resources_pb2.Run) else True


def _failure(error: BaseException) -> Answer:
    import grpc

    if isinstance(error, grpc.FutureCancelledError):
        return Answer("CANCELLED", "", "cancelled")
    if not isinstance(error, grpc.RpcError):
        return Answer("INTERNAL", "", type(error).__name__)
    # What a failed future raises is RpcError and Call in one; the stubs do not say so.
    call: Any = error
    code = call.code()
    return Answer(code.name if code is not None else "UNKNOWN", _reason(call), call.details() or "")


def _reason(error: Any) -> str:
    """The ErrorInfo's reason of our own domain, "" without one."""
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == "nightshift":
                    return str(info.reason)
        except DecodeError:
            return ""
    return ""

"""Errors on the wire: NightshiftError to google.rpc.Status, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from nightshift_kit.errors import Code, FieldViolation, NightshiftError

DOMAIN: Final = "nightshift"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Clients refuse trailers beyond 8 KiB by default; the details travel in base64, beside the message.
_MESSAGE_CHARACTERS: Final = 1000
_VALUE_CHARACTERS: Final = 400
_DETAILS_BYTES: Final = 4096

_STATUS_CODES: Final = {code: grpc.StatusCode[code.value] for code in Code}


def status_code(error: NightshiftError) -> grpc.StatusCode:
    """GRPC's code of an error."""
    return _STATUS_CODES[error.code]


def render(error: NightshiftError) -> tuple[grpc.StatusCode, str, bytes]:
    """Code, message and serialised google.rpc.Status of an error, bounded to what a trailer can carry."""
    code = status_code(error)
    message = _clip(error.message, _MESSAGE_CHARACTERS)
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _clip(str(value), _VALUE_CHARACTERS)
    _attach(status, info)
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations or error.code is Code.INVALID_ARGUMENT:
        _attach(status, _bad_request(error.violations, _DETAILS_BYTES - status.ByteSize()))
    return code, message, status.SerializeToString()


@dataclass(frozen=True, slots=True)
class RichError:
    """What a failed call said.

    Attributes:
        reason: Of ErrorInfo; "" where the transport itself refused.
        retry_after_s: Of RetryInfo, None where trying again is not suggested.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


def decode_error(error: grpc.RpcError) -> RichError:
    """Reads the details of a failed call, of the aio or of the sync stack."""
    code = error.code()
    message = error.details() or ""
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            except DecodeError:
                break
            return _decoded(code, status)
    return RichError(code, "", message)


def _decoded(code: grpc.StatusCode, status: status_pb2.Status) -> RichError:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(bad_request.DESCRIPTOR):
            detail.Unpack(bad_request)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return RichError(
        code,
        info.reason,
        status.message,
        dict(info.metadata),
        tuple(FieldViolation(one.field, one.description) for one in bad_request.field_violations),
        retry_after_s,
    )


def _bad_request(violations: tuple[FieldViolation, ...], room_bytes: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        bad_request.field_violations.add(
            field=_clip(violation.field, _VALUE_CHARACTERS),
            description=_clip(violation.description, _VALUE_CHARACTERS),
        )
        if bad_request.ByteSize() > room_bytes - 100:
            del bad_request.field_violations[-1]
            bad_request.field_violations.add(description=f"and {len(violations) - index} more")
            break
    return bad_request


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed: AnyMessage = status.details.add()
    packed.Pack(detail)  # type: ignore[arg-type]


def _clip(text: str, characters: int) -> str:
    # A lone surrogate cannot travel in a protobuf string.
    safe = text.encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= characters else safe[: characters - 1] + "…"

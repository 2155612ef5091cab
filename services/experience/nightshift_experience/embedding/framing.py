"""Frames between the service and its embedding process.

A frame is a header of 13 bytes, little-endian — u32 length of the payload, u8 kind, u64 request id — and the
payload: texts as a JSON array in UTF-8, vectors as u32 rows, u32 columns and float32 in row order, a failure
as a JSON object. No pickle: what the child says can be wrong, but cannot run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

HEADER = struct.Struct("<IBQ")
_SHAPE = struct.Struct("<II")
MAX_PAYLOAD_BYTES = 64 << 20


class Kind(IntEnum):
    """What a frame carries."""

    QUERY = 1
    BULK = 2
    VECTORS = 3
    FAILED = 4
    READY = 5


class FrameError(ValueError):
    """Bytes that are no frame of this protocol."""


def encode(kind: Kind, request_id: int, payload: bytes = b"") -> bytes:
    """One frame. Raises FrameError if the payload is longer than MAX_PAYLOAD_BYTES."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise FrameError(f"payload of {len(payload)} bytes")
    return HEADER.pack(len(payload), kind, request_id) + payload


def decode_header(data: bytes) -> tuple[int, Kind, int]:
    """(payload length in bytes, kind, request id) of the 13 header bytes. Raises FrameError."""
    if len(data) != HEADER.size:
        raise FrameError(f"header of {len(data)} bytes")
    length, kind, request_id = HEADER.unpack(data)
    if length > MAX_PAYLOAD_BYTES:
        raise FrameError(f"payload of {length} bytes announced")
    try:
        return length, Kind(kind), request_id
    except ValueError as error:
        raise FrameError(f"unknown kind {kind}") from error


def encode_texts(texts: Sequence[str]) -> bytes:
    """Texts as payload; lone surrogates, which UTF-8 cannot carry, become "?"."""
    return json.dumps(list(texts), ensure_ascii=False).encode("utf-8", "replace")


def decode_texts(payload: bytes) -> list[str]:
    """Texts of a payload. Raises FrameError."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise FrameError("texts are not JSON") from error
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FrameError("texts are not a list of strings")
    return value


def encode_vectors(vectors: NDArray[np.float32]) -> bytes:
    """Vectors of shape (rows, columns) as payload."""
    rows, columns = vectors.shape
    return _SHAPE.pack(rows, columns) + np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def decode_vectors(payload: bytes) -> NDArray[np.float32]:
    """Vectors of a payload, shape (rows, columns). Raises FrameError."""
    if len(payload) < _SHAPE.size:
        raise FrameError("vectors without a shape")
    rows, columns = _SHAPE.unpack_from(payload)
    if len(payload) - _SHAPE.size != rows * columns * 4:
        raise FrameError(f"{len(payload)} bytes for {rows} x {columns} vectors")
    return np.frombuffer(payload, dtype="<f4", offset=_SHAPE.size).reshape(rows, columns).astype(np.float32)


def encode_failure(reason: str, message: str) -> bytes:
    """A failure as payload."""
    return json.dumps({"reason": reason, "message": message}).encode()


def decode_failure(payload: bytes) -> tuple[str, str]:
    """(reason, message) of a failure. Raises FrameError."""
    try:
        value = json.loads(payload)
        return str(value["reason"]), str(value["message"])
    except (ValueError, KeyError, TypeError) as error:
        raise FrameError("failure is not an object with reason and message") from error

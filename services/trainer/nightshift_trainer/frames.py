"""Framed JSON over a stream socket: what supervisor and worker say to each other.

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON holding one object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

_HEADER = struct.Struct(">I")

MAXIMUM_BYTES = 16 * 1024 * 1024


class FrameBroken(ValueError):
    """The bytes are not frames: too long, not JSON, or not an object."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame. Raises FrameBroken where the message is larger than MAXIMUM_BYTES or holds NaN."""
    try:
        body = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise FrameBroken(str(error)) from error
    if len(body) > MAXIMUM_BYTES:
        raise FrameBroken(f"a frame of {len(body)} bytes is larger than {MAXIMUM_BYTES}")
    return _HEADER.pack(len(body)) + body


class FrameDecoder:
    """Turns whatever pieces a stream delivers back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Messages completed by `data`, in order. Raises FrameBroken; the stream is useless afterwards."""
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAXIMUM_BYTES:
                raise FrameBroken(f"a frame of {length} bytes is larger than {MAXIMUM_BYTES}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            try:
                message = json.loads(body)
            except ValueError as error:
                raise FrameBroken("a frame is not JSON") from error
            if not isinstance(message, dict):
                raise FrameBroken("a frame holds no object")
            messages.append(message)
        return messages

"""Messages between the service and its reading process: four bytes of length, then JSON."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, BinaryIO

import orjson

_LENGTH = struct.Struct("<I")


def pack(message: Any) -> bytes:
    """One message with its length."""
    body = orjson.dumps(message)
    return _LENGTH.pack(len(body)) + body


def read_message(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    return orjson.loads(stream.read(size))


async def read_frame(stream: asyncio.StreamReader) -> bytes | None:
    """The next message, not yet parsed; None at the end."""
    try:
        head = await stream.readexactly(_LENGTH.size)
        (size,) = _LENGTH.unpack(head)
        return await stream.readexactly(size)
    except asyncio.IncompleteReadError:
        return None

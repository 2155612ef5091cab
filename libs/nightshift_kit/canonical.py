"""One encoding for one value, so that digests of equal things are equal."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any, cast

from google.protobuf import json_format, symbol_database
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from nightshift_kit.errors import FieldUnknown

# Integers up to here survive a journey through a double, and so through google.protobuf.Struct.
_EXACT_IN_DOUBLE = 2**53


def canonical_json(value: object) -> bytes:
    """Canonical JSON: keys sorted by code point, no spaces, UTF-8, nothing escaped that need not be.

    A float that is a whole number below 2^53 is written as an integer, -0.0 as 0, so that a value is the same
    before and after it travelled as ``google.protobuf.Struct``, whose numbers are all doubles. Other floats
    have Python's shortest form that reads back to the same double.

    Args:
        value: Dicts with string keys, lists, tuples, strings, integers, floats, booleans, None.

    Raises:
        ValueError: NaN, an infinity, a lone surrogate, a cycle.
        TypeError: Another type, or a key that is not a string.
    """
    text = _encode(_normal(value))
    return text.encode("utf-8")


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hex, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: object) -> str:
    """SHA-256 of the canonical JSON, in hex.

    Raises:
        ValueError: As ``canonical_json``.
        TypeError: As ``canonical_json``.
    """
    return sha256_hex(canonical_json(value))


def message_to_dict(message: Message, *, with_defaults: bool = False) -> dict[str, Any]:
    """Protobuf JSON of a message with the proto's field names: 64-bit integers as strings, enums as names.

    Args:
        message: Any message.
        with_defaults: Also fields without presence that hold their default.
    """
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=with_defaults
    )


def digest_message(message: Message) -> str:
    """SHA-256 of the message's canonical protobuf JSON, in hex: what grants and approvals bind to.

    Fields at their default are left out, so that a new field in the proto changes no old digest.

    Raises:
        FieldUnknown: The message, or one inside it, holds fields that this version does not know: they would
            act unseen by the digest.
        ValueError: A Struct holds NaN or an infinity.
    """
    refuse_unknown_fields(message)
    return digest_json(message_to_dict(message))


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Check that the message and all messages within it hold known fields only.

    Args:
        message: Any message.
        path: Where it stands, for the error.

    Raises:
        FieldUnknown: Naming the path and the number of the first unknown field.
    """
    # The stubs leave out that the set can be walked.
    for unknown in cast("Iterable[Any]", UnknownFieldSet(message)):
        where = f"{path}.{unknown.field_number}" if path else str(unknown.field_number)
        raise FieldUnknown.at(where, "this version does not know the field")
    if isinstance(message, AnyMessage) and message.type_url:
        refuse_unknown_fields(_unpacked(message, path), path)
        return
    for field, value in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP):
            continue
        inner = f"{path}.{field.name}" if path else field.name
        kind = field.message_type
        assert kind is not None
        if kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
                for key in value:
                    refuse_unknown_fields(value[key], f"{inner}[{key!r}]")
        elif field.is_repeated:
            for index, element in enumerate(value):
                refuse_unknown_fields(element, f"{inner}[{index}]")
        else:
            refuse_unknown_fields(value, inner)


def _unpacked(message: AnyMessage, path: str) -> Message:
    name = message.type_url.rpartition("/")[2]
    try:
        inner = symbol_database.Default().GetSymbol(name)()
    except KeyError as error:
        raise FieldUnknown.at(path or "type_url", f"the message type {name!r} is not known") from error
    try:
        message.Unpack(inner)
    except DecodeError as error:
        raise FieldUnknown.at(path or "value", f"the bytes are not a {name}") from error
    return inner


def _normal(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinities have no canonical form")
        whole = value.is_integer() and abs(value) < _EXACT_IN_DOUBLE
        return int(value) if whole else float(value)
    if isinstance(value, dict):
        normal: dict[str, object] = {}
        for key, element in value.items():
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, not {type(key).__name__}")
            normal[str(key)] = _normal(element)
        return normal
    if isinstance(value, list | tuple):
        return [_normal(element) for element in value]
    raise TypeError(f"{type(value).__name__} has no canonical form")


# check_circular is off because _normal has copied the value: a cycle has ended there already.
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode

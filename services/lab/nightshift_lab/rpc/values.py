"""google.protobuf.Struct to JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

from nightshift_kit.errors import NestingTooDeep

from ..content import whole_numbers
from ..wording import Json

_MAX_DEPTH = 32


def from_struct(struct: struct_pb2.Struct, field: str = "content") -> dict[str, Json]:
    """The Struct's value with whole doubles as integers.

    Raises:
        NestingTooDeep: deeper than 32 levels.
    """
    return {key: _value(item, field, 1) for key, item in struct.fields.items()}


def _value(value: struct_pb2.Value, field: str, depth: int) -> Json:
    if depth > _MAX_DEPTH:
        raise NestingTooDeep.at(field, f"nested deeper than {_MAX_DEPTH} levels")
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: _value(item, field, depth + 1) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_value(item, field, depth + 1) for item in value.list_value.values]
    if kind == "number_value":
        return whole_numbers(value.number_value)
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    return None


def to_struct(value: Mapping[str, Json]) -> struct_pb2.Struct:
    """A Struct of JSON values."""
    struct = struct_pb2.Struct()
    plain: dict[str, Any] = dict(value)
    json_format.ParseDict(plain, struct)
    return struct

"""Guarded deserialisers: bytes to message, or a typed refusal.

grpc.aio answers malformed bytes with UNKNOWN and the parser's words, before any handler runs. So the servers
take raw bytes and decode them here, after the caller is known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from nightshift_kit.errors import EnumUnknown, FieldViolation, MalformedRequest, NestingTooDeep

M = TypeVar("M", bound=Message)


def decode(message_class: type[M], data: bytes) -> M:
    """Parses a request and checks its enum values.

    Raises:
        MalformedRequest: garbage, a truncated message, text that is not UTF-8.
        NestingTooDeep: more than 100 levels.
        EnumUnknown: a number that the enum does not have, anywhere in the request.
    """
    try:
        message = message_class.FromString(data)
    except DecodeError as error:
        # The runtime tells its reasons apart only in the text.
        words = str(error)
        if "MaxDepth" in words or "too deep" in words or "recursion" in words.lower():
            raise NestingTooDeep("The request nests messages deeper than 100 levels.") from error
        detail = "text that is not UTF-8" if "UTF-8" in words else "bytes that cannot be parsed"
        raise MalformedRequest(
            f"The request holds {detail}; expected {message_class.DESCRIPTOR.full_name}."
        ) from error
    check = _enum_check(message_class.DESCRIPTOR)
    if check is not None:
        violations: list[FieldViolation] = []
        check(message, "", violations)
        if violations:
            raise EnumUnknown("The request holds enum values that are not known.", violations=violations)
    return message


_Check = Callable[[Message, str, list[FieldViolation]], None]


@functools.cache
def _enum_check(descriptor: Descriptor) -> _Check | None:
    """Walk over the set fields of a message, None where no enum can occur in it."""
    if not _holds_enums(descriptor):
        return None

    # Thousands of messages a second pass here: a number that is known costs one look-up, and names are put
    # together for those alone that are not.
    single = [
        (field, field.name, frozenset(field.enum_type.values_by_number))
        for field in descriptor.fields
        if field.enum_type is not None and not field.is_repeated
    ]
    others = [
        field
        for field in descriptor.fields
        if (field.enum_type is not None and field.is_repeated)
        or (field.message_type is not None and _holds_enums(field.message_type))
    ]

    def check(message: Message, path: str, violations: list[FieldViolation]) -> None:
        for field, name, numbers in single:
            # 0 where it is not set, which every enum of ours has.
            number = getattr(message, name)
            if number not in numbers:
                _check_number(field, number, _joined(path, name), violations)
        for field in others:
            here = _joined(path, field.name)
            value = getattr(message, field.name)
            if _is_map(field):
                _check_map(field, value, here, violations)
            elif field.enum_type is not None:
                for index, number in enumerate(value):
                    _check_number(field, number, f"{here}[{index}]", violations)
            elif (inner := _enum_check(cast("Descriptor", field.message_type))) is not None:
                if field.is_repeated:
                    for index, item in enumerate(value):
                        inner(item, f"{here}[{index}]", violations)
                elif message.HasField(field.name):
                    inner(value, here, violations)

    return check


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _check_map(field: FieldDescriptor, entries: Any, path: str, violations: list[FieldViolation]) -> None:
    value_field = cast("Descriptor", field.message_type).fields_by_name["value"]
    if value_field.type == FieldDescriptor.TYPE_ENUM:
        for key in entries:
            _check_number(value_field, entries[key], f"{path}[{key}]", violations)
    elif (
        value_field.message_type is not None and (inner := _enum_check(value_field.message_type)) is not None
    ):
        for key in entries:
            inner(entries[key], f"{path}[{key}]", violations)


def _check_number(field: FieldDescriptor, number: int, path: str, violations: list[FieldViolation]) -> None:
    enum = field.enum_type
    assert enum is not None
    if number not in enum.values_by_number:
        violations.append(FieldViolation(path, f"{number} is no value of {enum.full_name}"))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _holds_enums(descriptor: Descriptor) -> bool:
    """Whether an enum of ours can occur in the message. The well-known types' own enums are left to them."""
    seen: set[str] = set()
    waiting = [descriptor]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen or current.full_name.startswith("google."):
            continue
        seen.add(current.full_name)
        for field in current.fields:
            if field.type == FieldDescriptor.TYPE_ENUM:
                return True
            if field.message_type is not None:
                waiting.append(field.message_type)
    return False

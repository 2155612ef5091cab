"""Parsing metadata.json, which recorders of many years and crashed machines wrote.

What can be repaired is, and says so in a flag; what cannot raises Unreadable. RPCs are strict instead:
nothing here is used for them.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from nightshift_experience.sources.devserver.reading import Unreadable

# Known records are below 100 KB; beyond this a record is a mistake or an attack.
METADATA_LIMIT_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_SPACED_KEY = re.compile(rb'"\s+:')
_LONGEST_NUMBER = 400
_NESTING_LIMIT = 200


def parse_metadata(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The record's object, and flags that name the repairs.

    Flags: bom_removed, encoding_repaired (bad bytes are U+FFFD), nan_repaired (non-finite numbers are
    null), number_repaired (absurdly long numbers are null), unicode_repaired (lone surrogates are U+FFFD),
    duplicate_keys (the last one counts). Raises Unreadable with RECORD_EMPTY, RECORD_TRUNCATED,
    RECORD_MALFORMED, RECORD_NOT_OBJECT, NESTING_TOO_DEEP or RECORD_TOO_LARGE.
    """
    flags: list[str] = []
    if len(data) > METADATA_LIMIT_BYTES:
        raise Unreadable("RECORD_TOO_LARGE", f"metadata.json is larger than {METADATA_LIMIT_BYTES} bytes")
    if data.startswith(_BOM):
        data = data[len(_BOM) :]
        flags.append("bom_removed")
    if not data.strip(b" \t\r\n\0"):
        raise Unreadable("RECORD_EMPTY", "metadata.json is empty")
    try:
        document: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        document = _parse_leniently(data, flags)
    else:
        if not isinstance(document, dict):
            raise Unreadable("RECORD_NOT_OBJECT", "metadata.json is not a JSON object")
        # orjson silently keeps the last of equal keys. Every key is followed by a colon, so more '":' than
        # keys is the cheap hint (it also occurs within strings) that decides on the slow look.
        if data.count(b'":') != _count_keys(document, 0) or _SPACED_KEY.search(data):
            document = _parse_leniently(data, flags)
    if not isinstance(document, dict):
        raise Unreadable("RECORD_NOT_OBJECT", "metadata.json is not a JSON object")
    return document, flags


def _count_keys(value: Any, depth: int) -> int:
    if depth > _NESTING_LIMIT:
        raise Unreadable("NESTING_TOO_DEEP", f"metadata.json nests deeper than {_NESTING_LIMIT}")
    if isinstance(value, dict):
        total = len(value)
        for item in value.values():
            if isinstance(item, (dict, list)):
                total += _count_keys(item, depth + 1)
        return total
    total = 0
    for item in value:
        if isinstance(item, (dict, list)):
            total += _count_keys(item, depth + 1)
    return total


def _parse_leniently(data: bytes, flags: list[str]) -> Any:
    repairs: set[str] = set()

    def constant(_: str) -> None:
        repairs.add("nan_repaired")

    def floating(text: str) -> float | None:
        value = float(text) if len(text) <= _LONGEST_NUMBER else math.inf
        if not math.isfinite(value):
            repairs.add("nan_repaired")
            return None
        return value

    def integer(text: str) -> int | None:
        if len(text) > _LONGEST_NUMBER:
            repairs.add("number_repaired")
            return None
        return int(text)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            repairs.add("duplicate_keys")
        return found

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        repairs.add("encoding_repaired")
    try:
        document = json.loads(
            text, parse_constant=constant, parse_float=floating, parse_int=integer, object_pairs_hook=pairs
        )
    except RecursionError as error:
        raise Unreadable("NESTING_TOO_DEEP", "metadata.json nests too deep") from error
    except json.JSONDecodeError as error:
        whole = text.rstrip(" \t\r\n\0")
        if error.pos >= len(whole) or error.msg.startswith("Unterminated") or whole[-1] not in "}]":
            raise Unreadable("RECORD_TRUNCATED", "metadata.json ends in the middle") from None
        raise Unreadable(
            "RECORD_MALFORMED", f"metadata.json is not JSON (line {error.lineno}, column {error.colno})"
        ) from None
    if isinstance(document, (dict, list)):
        _count_keys(document, 0)
    if "\\u" in text:
        document = _without_surrogates(document, repairs)
    flags.extend(sorted(repairs))
    return document


def _without_surrogates(value: Any, repairs: set[str]) -> Any:
    if isinstance(value, str):
        if value.isascii():
            return value
        clean = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if clean != value:
            repairs.add("unicode_repaired")
        return clean
    if isinstance(value, dict):
        return {
            _without_surrogates(key, repairs): _without_surrogates(item, repairs)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_surrogates(item, repairs) for item in value]
    return value

"""A config as bytes: one content, one file, one digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from .wording import Json

# Production's files are written in this order; what stands elsewhere follows alphabetically. A protobuf
# Struct keeps no order of keys, so the order has to be ours for the bytes to be the same each time.
_ORDER = {
    "": (
        "pipeline instruction_type name description category properties context parameters "
        "media_preferences meta display tags audience"
    ),
    "parameters": "temperature top_p max_tokens repetition_penalty enable_thinking",
    "media_preferences": "default_output supported_types output_config",
    "meta": "stage wikipedia",
    "display": "icon color category difficulty order hidden",
    "audience": "workshop_suitable min_age complexity requires",
}
_LANGUAGES = "en de fr"


def whole_numbers(value: Json) -> Json:
    """The value with whole floats as integers: a Struct knows doubles only, and 1536.0 is no token count."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [whole_numbers(item) for item in value]
    return value


def _arranged(value: Json, path: str) -> Json:
    if isinstance(value, Mapping):
        order = _ORDER.get(path, _LANGUAGES).split()
        keys = sorted(value, key=lambda key: (order.index(key) if key in order else len(order), key))
        return {key: _arranged(value[key], key if not path else f"{path}.{key}") for key in keys}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_arranged(item, f"{path}[]") for item in value]
    return value


def file_bytes(content: Mapping[str, Json]) -> bytes:
    """The file that a promotion writes: UTF-8, two spaces, keys in production's order, a newline at the end.

    Raises:
        ValueError: for NaN, infinity or lone surrogates, which no JSON file can hold.
    """
    arranged = _arranged(whole_numbers(content), "")
    return (json.dumps(arranged, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()

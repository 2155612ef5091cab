"""Adding texts to a config's file without touching anything else of it.

The file is never written anew: the new members are put behind the last one of their object, with the white
space, the colon and the line ends that stand there already. Whatever was done, the result is read again and
compared: it must be the old value with exactly the additions, in the old order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # there, though typeshed leaves it out
from typing import Any

from ..errors import ConfigNotTranslatable
from ..wording import Json
from .gaps import FIELDS, Translation

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


@dataclass(frozen=True)
class _Member:
    """One member of an object in the text: where its key begins, and where its value begins and ends."""

    key: str
    key_start: int
    colon: str
    value_start: int
    value_end: int


def inserted(data: bytes, translations: Iterable[Translation]) -> bytes:
    """The file with the translations added.

    Args:
        data: A config as `catalog.parse` accepts it.
        translations: For fields that are objects and do not have the language.

    Raises:
        ConfigNotTranslatable: a key stands twice, a field is no object, or has the language already.
    """
    by_field: dict[str, list[Translation]] = {}
    for translation in translations:
        by_field.setdefault(translation.field, []).append(translation)
    old = data.decode()
    text = old
    for field, added in by_field.items():
        if field not in FIELDS:
            raise ConfigNotTranslatable(f"{field!r} is not translated, only {', '.join(FIELDS)}.")
        text = _with(text, field, added)
    _check(old, text, by_field)
    return text.encode()


def _with(text: str, field: str, added: Sequence[Translation]) -> str:
    top = _members(text, _skip(text, 1 if text.startswith("\ufeff") else 0))
    member = next((one for one in top if one.key == field), None)
    if member is None or text[member.value_start] != "{":
        raise ConfigNotTranslatable(f"{field!r} of this config is no object by language.")
    inner = _members(text, member.value_start)
    if not inner:
        raise ConfigNotTranslatable(f"{field!r} of this config has no text to start from.")
    last = inner[-1]
    before = inner[-2].value_end if len(inner) > 1 else member.value_start
    # What stands between the comma (or the brace) and the last key: line end and indentation, or a space.
    lead = text[before : last.key_start].lstrip(",{").rpartition(",")[2]
    if not lead and len(inner) == 1:
        lead = " "
    # A file without a single sign beyond ASCII escapes them; then so do we.
    escape = text.isascii() and "\\u" in text
    members = "".join(
        f",{lead}{json.dumps(one.language)}{last.colon}{json.dumps(one.text, ensure_ascii=escape)}"
        for one in added
    )
    return text[: last.value_end] + members + text[last.value_end :]


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _members(text: str, start: int) -> list[_Member]:
    """Members of the object that begins at `start`; the text is known to be JSON."""
    members: list[_Member] = []
    at = _skip(text, start + 1)
    while text[at] != "}":
        if text[at] == ",":
            at = _skip(text, at + 1)
        key, after = scanstring(text, at + 1, True)
        value_start = _skip(text, _skip(text, after) + 1)
        _, value_end = _DECODER.raw_decode(text, value_start)
        members.append(_Member(key, at, text[after:value_start], value_start, value_end))
        at = _skip(text, value_end)
    keys = {member.key for member in members}
    if len(keys) != len(members):
        raise ConfigNotTranslatable("A key stands twice in this config; which one counts is not ours to say.")
    return members


def _check(old: str, new: str, by_field: Mapping[str, Sequence[Translation]]) -> None:
    """Raises unless `new` is `old` with exactly the additions: values, types, order."""
    expected: dict[str, Any] = copy.deepcopy(_read(old))
    for field, added in by_field.items():
        for translation in added:
            if translation.language in expected[field]:
                raise ConfigNotTranslatable(f"{field}.{translation.language} is there already.")
            expected[field][translation.language] = translation.text
    # Through text once more: True equals 1 in Python, and a dict knows no order when compared.
    if json.dumps(_read(new)) != json.dumps(expected):
        raise ConfigNotTranslatable("Adding to this file would change more than the added texts.")


def _read(text: str) -> Any:
    # Numbers as they are written: 1.0, 1e0 and 1 are equal as values and differ as bytes.
    written = "\0{}".format
    return json.loads(text.removeprefix("\ufeff"), parse_float=written, parse_int=written)


def duplicate_keys(data: bytes) -> list[str]:
    """Keys that stand twice in one object, sorted; of a file that `catalog.parse` accepts."""
    twice: set[str] = set()

    def pairs(found: list[tuple[str, Json]]) -> dict[str, Json]:
        keys = [key for key, _ in found]
        twice.update(key for key in keys if keys.count(key) > 1)
        return dict(found)

    json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
    return sorted(twice)

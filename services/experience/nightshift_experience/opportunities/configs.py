"""Reads what the platform's interception configs say about themselves, in every shape that production has."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path("schemas/configs/interception")
_SIZE_LIMIT_BYTES = 1 << 20
_ANY = ""


@dataclass(frozen=True)
class ConfigTexts:
    """What one config says, by language ("" where it does not tell which).

    Attributes:
        config: Id: the file's stem.
        names, descriptions: Each by language.
        tags: By language, as written.
    """

    config: str
    names: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def words_of(self, language: str) -> tuple[str, ...]:
        """Name and tags in a language, in English, and of no told language: what a theme may be called."""
        found: list[str] = []
        for key in dict.fromkeys((language, "en", _ANY)):
            found += self.tags.get(key, ())
            if key in self.names:
                found.append(self.names[key])
        return tuple(found)

    def summary(self) -> str:
        """English name, tags and description in one line, another language's where there is no English."""
        name = _pick(self.names)
        tags = ", ".join(_pick(self.tags) or ())
        return " ".join(
            part
            for part in (f"{name}:" if name else "", tags + "." if tags else "", _pick(self.descriptions))
            if part
        )


def read_configs(platform_root: Path | None) -> list[ConfigTexts]:
    """All interception configs below the platform's root, by id; unreadable files are left out.

    An absent root or folder gives none: the detection then goes without.
    """
    if platform_root is None:
        return []
    try:
        paths = sorted((platform_root / _FOLDER).glob("*.json"))
    except OSError:
        return []
    return [texts for path in paths if (texts := _read(path)) is not None]


def _read(path: Path) -> ConfigTexts | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _SIZE_LIMIT_BYTES:
            return None
        value = json.loads(path.read_bytes().decode("utf-8-sig", "replace"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return ConfigTexts(
        config=unicodedata.normalize("NFC", path.stem),
        names=_by_language(value.get("name")),
        descriptions=_by_language(value.get("description")),
        tags=_tags(value.get("tags")),
    )


def _by_language(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {_ANY: value}
    if isinstance(value, dict):
        return {str(key): text for key, text in value.items() if isinstance(text, str)}
    return {}


def _tags(value: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(value, dict):
        found = {str(key): tuple(_strings(tags)) for key, tags in value.items()}
        return {key: tags for key, tags in found.items() if tags}
    tags = tuple(_strings(value))
    return {_ANY: tags} if tags else {}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (part.strip() for part in value.split(",") if part.strip())
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, str))


def _pick(values: dict[str, Any]) -> Any:
    for key in ("en", _ANY):
        if key in values:
            return values[key]
    return next(iter(values.values()), "")

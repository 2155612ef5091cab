"""Which languages a config lacks. Only name, description and category are ever translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..validation.structure import LANGUAGES
from ..wording import Json

FIELDS = ("name", "description", "category")
# English is the platform's fallback; German is what most configs are written in beside it.
_SOURCES = ("en", "de", *(language for language in LANGUAGES if language not in ("en", "de")))


@dataclass(frozen=True)
class Gap:
    """One field that lacks languages; `missing` in the platform's order, `source` the text to start from."""

    field: str
    missing: tuple[str, ...]
    source_language: str
    source: str


@dataclass(frozen=True, order=True)
class Translation:
    """One text in one more language."""

    field: str
    language: str
    text: str


def gaps(content: Mapping[str, Json], languages: Sequence[str] = LANGUAGES) -> tuple[Gap, ...]:
    """What can be filled: fields that are objects by language and have a text to start from.

    A language whose text is blank is not missing: a person put it there, and only they may change it.
    """
    found = []
    for field in FIELDS:
        value = content.get(field)
        if not isinstance(value, Mapping):
            continue
        source = next(
            (
                (language, text)
                for language in _SOURCES
                if isinstance(text := value.get(language), str) and text.strip()
            ),
            None,
        )
        there = {key.casefold() for key in value}
        missing = tuple(language for language in languages if language not in there)
        if source is not None and missing:
            found.append(Gap(field, missing, *source))
    return tuple(found)

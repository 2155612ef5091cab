"""Theme and keywords as inert data.

They come from what people typed. They go into a context that a model will read, so they are cut down to
words, and what looks like an instruction, a name of a maker or a cliché does not go in at all.
"""

# ruff: noqa: RUF001 - typographic signs are what it is about

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .. import phrases
from ..wording import normal_form, words

MAX_THEME_CHARACTERS, MAX_THEME_WORDS = 60, 8
MAX_KEYWORD_CHARACTERS, MAX_KEYWORD_WORDS = 30, 3
MAX_KEYWORDS = 3

_DROPPED = re.compile(r"[^\w\s'’,\-]|_")
_TRANSLITERATION = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "ł": "l"}
)


@dataclass(frozen=True)
class Theme:
    """A theme that may be woven into a text: a label and up to three keywords, all harmless."""

    label: str
    keywords: tuple[str, ...]


def _harmless(text: str) -> bool:
    checks = (
        phrases.injections,
        phrases.artists,
        phrases.cliches,
        phrases.optimisations,
        phrases.unsafe,
        phrases.imitations,
    )
    return not any(True for check in (*checks, phrases.confusables) for _ in check(text))


def inert(text: str, max_characters: int, max_words: int) -> str:
    """`text` reduced to words, digits, commas, hyphens and apostrophes; "" where nothing harmless is left.

    Cut at word borders. Text that is refused before or after the reduction is dropped whole: what remains
    of an instruction after removing its punctuation is still one.
    """
    normal = normal_form(text)
    if not _harmless(normal) or re.search(r"\{\{|\}\}|<[^>]*>", normal):
        return ""
    letters = _DROPPED.sub(" ", unicodedata.normalize("NFC", normal))
    parts: list[str] = []
    for part in letters.split():
        stripped = part.strip("'’-").lstrip(",")
        if not stripped or len(" ".join([*parts, stripped])) > max_characters or len(parts) == max_words:
            if stripped:
                break
            continue
        parts.append(stripped)
    reduced = " ".join(parts).rstrip(",")
    # A credit needs a capital letter to be seen, a list of names does not: check both spellings.
    return reduced if words(reduced) and _harmless(reduced) and _harmless(reduced.title()) else ""


def read_theme(label: str, keywords: Sequence[str]) -> Theme | None:
    """The harmless part of a theme; None where neither label nor keywords leave anything.

    Keywords that repeat the label or each other are left out. Without a usable label, the keywords become it.
    """
    kept: list[str] = []
    title = inert(label, MAX_THEME_CHARACTERS, MAX_THEME_WORDS)
    seen = {title.casefold()}
    for keyword in keywords:
        word = inert(keyword, MAX_KEYWORD_CHARACTERS, MAX_KEYWORD_WORDS)
        if word and word.casefold() not in seen and len(kept) < MAX_KEYWORDS:
            kept.append(word)
            seen.add(word.casefold())
    if not title and kept:
        title, kept = kept[0], kept[1:]
    return Theme(title, tuple(kept)) if title else None


def slug(text: str, max_characters: int = 40) -> str:
    """`text` in [a-z0-9_], cut at a word border; "" where the script has no Latin form."""
    folded = unicodedata.normalize("NFKD", text.casefold().translate(_TRANSLITERATION))
    ascii_only = "".join(c for c in folded if c.isascii())
    parts = re.findall(r"[a-z0-9]+", ascii_only)
    # Half a word is no name: keep the Latin form only where most of the letters had one.
    if sum(map(len, parts)) < sum(c.isalnum() for c in text) / 2:
        return ""
    result = ""
    for part in parts:
        longer = f"{result}_{part}" if result else part[:max_characters]
        if len(longer) > max_characters:
            break
        result = longer
    return result

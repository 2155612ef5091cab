"""Words of prompts, in any script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001 - the apostrophe of French and Ukrainian
# Inflection mostly changes the end: "Sprache", "Sprachen". Long enough to keep different words apart.
_STEM_LENGTH = 7
_PROMPT_CHARACTERS = 2_000


def words(text: str) -> list[str]:
    """Words of a text in its own spelling; only the beginning of a gigantic text counts."""
    return _WORD.findall(unicodedata.normalize("NFKC", text[:_PROMPT_CHARACTERS]))


def stem(word: str) -> str:
    """What inflected forms of a word share, roughly: its beginning, case folded."""
    return word.casefold()[:_STEM_LENGTH]


def stems(text: str) -> frozenset[str]:
    """Distinct stems of a text."""
    return frozenset(stem(word) for word in words(text))


def spellings(texts: Iterable[str]) -> dict[str, str]:
    """Most frequent spelling of each stem, for showing it."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for word in words(text):
            seen[stem(word)][word] += 1
    return {key: min(counts, key=lambda word: (-counts[word], word)) for key, counts in seen.items()}

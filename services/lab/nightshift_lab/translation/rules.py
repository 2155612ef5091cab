"""What a drafted text must be before anybody sees it, and again before it is written.

A model's text is data: one line in its language, no markup, nothing of what the platform's style forbids.
What the source says itself, though, a translation may say as well: proper names stay, so a config that a
person named after somebody keeps that name in every language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import phrases
from ..validation.structure import LANGUAGES
from .gaps import FIELDS, Gap

#: Names and categories stand on tiles and in lists, descriptions under them.
MAX_CHARACTERS: Mapping[str, int] = {"name": 80, "description": 600, "category": 80}
#: Scripts differ in length, not by this much.
MAX_GROWTH = 4
_GROWTH_FLOOR = 40

_SCRIPTS: Mapping[str, str] = {
    "ar": "ARABIC",
    "he": "HEBREW",
    "ko": "HANGUL",
    "bg": "CYRILLIC",
    "uk": "CYRILLIC",
}
_MARKUP = re.compile(
    r"[<>`|\\{}\[\]]|\$\{|\*\*|__|^\s*[#*>-]\s|https?:|www\.|&[a-zA-Z#]\w*;"
    r"|\b(?:TASK_INSTRUCTION|INPUT_TEXT|OUTPUT_CHUNK)\b"
)
# Below this many letters the identifier guesses.
_LONG_ENOUGH = 40
_SURE = 0.9

_Rule = Callable[[str], Iterator[phrases.Hit]]
_STYLE: tuple[tuple[_Rule, str], ...] = (
    (phrases.imitations, "STYLE_IMITATION"),
    (phrases.artists, "ARTIST_NAME"),
    (phrases.cliches, "ORIENTALIST_CLICHE"),
    (phrases.optimisations, "OPTIMISE_WORD"),
    (phrases.injections, "INJECTION_SUSPECTED"),
    (phrases.unsafe, "SAFETY_CONFLICT"),
    (phrases.confusables, "CONFUSABLE_TEXT"),
)


def problem(gap: Gap, language: str, text: str, safety_words: Mapping[str, frozenset[str]]) -> str:
    """Why a text may not be added; "" if it may. UPPER_SNAKE_CASE.

    Args:
        gap: What it is a translation for.
        language: Its language.
        text: The text.
        safety_words: The platform's own lists, audience → case-folded words.
    """
    if gap.field not in FIELDS or language not in LANGUAGES or language not in gap.missing:
        return "NOT_MISSING"
    return (
        _form(gap, text)
        or _language(gap, language, text)
        or _style(gap, text)
        or _safety(gap, text, safety_words)
    )


def _form(gap: Gap, text: str) -> str:
    if not text.strip():
        return "BLANK"
    if any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") for c in text):
        return "CONTROL_CHARACTER"
    if text != text.strip() or unicodedata.normalize("NFC", text) != text:
        return "NOT_NORMAL"
    longest = min(MAX_CHARACTERS[gap.field], max(_GROWTH_FLOOR, MAX_GROWTH * len(gap.source)))
    if len(text) > longest:
        return "TOO_LONG"
    if _MARKUP.search(text):
        return "MARKUP"
    return ""


def _language(gap: Gap, language: str, text: str) -> str:
    if text.casefold() == gap.source.casefold():
        # Names may well stay as they are; a sentence that is the same in two languages was not translated.
        return "" if gap.field == "name" else "SAME_AS_SOURCE"
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return "" if not any(c.isalpha() for c in gap.source) else "NO_LETTERS"
    wanted = _SCRIPTS.get(language, "LATIN")
    written = sum(unicodedata.name(c, "").startswith(wanted) for c in letters) / len(letters)
    if written < 0.5:
        # A name of other letters is a name: "Bauhaus" in Hebrew may stay Latin.
        latin = all(unicodedata.name(c, "").startswith("LATIN") for c in letters)
        return "" if gap.field == "name" and latin and _kept(gap.source, text) else "WRONG_SCRIPT"
    if len(letters) >= _LONG_ENOUGH:
        found, sure = _identifier()(text)
        if found != language and sure >= _SURE:
            return "WRONG_LANGUAGE"
    return ""


def _kept(source: str, text: str) -> bool:
    """Whether a name's words are those of the source."""
    return set(text.casefold().split()) <= set(source.casefold().split())


def _style(gap: Gap, text: str) -> str:
    for rule, reason in _STYLE:
        said = {hit.phrase.casefold() for hit in rule(gap.source)}
        if any(hit.phrase.casefold() not in said for hit in rule(text)):
            return reason
    return ""


def _safety(gap: Gap, text: str, safety_words: Mapping[str, frozenset[str]]) -> str:
    for vocabulary in safety_words.values():
        said = {hit.phrase.casefold() for hit in phrases.forbidden_words(gap.source, vocabulary)}
        if any(hit.phrase.casefold() not in said for hit in phrases.forbidden_words(text, vocabulary)):
            return "SAFETY_WORD"
    return ""


@functools.cache
def _identifier() -> Callable[[str], tuple[str, float]]:
    # Imported here: it takes half a second, and few texts are long enough.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)

    def identify(text: str) -> tuple[str, float]:
        found, probability = identifier.classify(text)
        return str(found), float(probability)

    return identify

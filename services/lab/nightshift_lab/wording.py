"""What text is made of: normal form, words, sentences, languages. Pure functions over strings."""

# ruff: noqa: RUF001, SIM905 - typographic signs are what it is about; word lists read better as text

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

#: A decoded JSON value. Numbers are int or float; objects have string keys.
Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'“”‘’«»)]*\s+|\n+")
_ITEM = re.compile(r"^\s*(\d{1,2})[.)]\s+", re.MULTILINE)
_QUOTED = re.compile(r"[\"“”„«»‟]([^\"“”„«»‟]{1,200})[\"“”„«»‟]")
_QUOTE_MARKS = str.maketrans(dict.fromkeys("“”„«»‟", '"') | dict.fromkeys("‘’‚`´", "'"))

# Function words only: they say which language a text is in, whatever it is about.
STOP_WORDS: Mapping[str, frozenset[str]] = {
    "en": frozenset(
        (
            "a an the and or but not no nor of to in on at by for from with without into onto over "
            "under about as if than then that this these those which who whom whose what when where "
            "how why is are was were be been being do does did has have had can could may might must "
            "shall should will would it its they them their there you your he she his her we our us "
            "i me my one two each every some any all both only just so too very more most up down "
            "out off again once let"
        ).split()
    ),
    "de": frozenset(
        (
            "der die das den dem des ein eine einen einem einer eines und oder aber nicht kein keine "
            "keinen keinem keiner von zu zum zur im in am an auf bei für aus mit ohne über unter um "
            "als wenn dann dass daß dies diese diesen dieser dieses welche welcher welches wer wen "
            "wem was wann wo wie warum ist sind war waren sein gewesen hat haben hatte kann können "
            "darf mag muss müssen soll sollen wird werden würde es sie er ihr ihre ihren ihrem sein "
            "seine du dich dir dein deine deinen deinem wir uns unser ich mich mir mein man sich "
            "jede jeder jedes jeden jedem nur noch schon so sehr mehr auch erst nie niemals bis "
            "durch gegen nach vor"
        ).split()
    ),
}


def normal_form(text: str) -> str:
    """NFKC without format characters, straight quotes, single spaces; line breaks survive.

    Fullwidth letters, zero-width characters and no-break spaces would otherwise hide a phrase from every
    check.
    """
    folded = unicodedata.normalize("NFKC", text)
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return re.sub(r"[^\S\n]+", " ", visible.translate(_QUOTE_MARKS))


def plain(text: str) -> str:
    """Normal form, case-folded, without diacritics: for comparing names."""
    decomposed = unicodedata.normalize("NFKD", normal_form(text).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def words(text: str) -> list[str]:
    """Words in order, case-folded; digits count as words, punctuation does not."""
    return [match.group().casefold() for match in _WORD.finditer(normal_form(text))]


def sentences(text: str) -> list[str]:
    """Sentences of the normal form without item numbers.

    Blank lines and new items end a sentence, mere line breaks do not: a phrase over two lines is still one.
    """
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:\d{1,2}[.)]|[-*•])\s)", normal_form(text))
    without_numbers = "\n".join(_ITEM.sub("", block).replace("\n", " ") for block in blocks)
    return [part.strip() for part in _SENTENCE_END.split(without_numbers) if part.strip()]


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def item_numbers(text: str) -> list[int]:
    """Numbers of the numbered lines, in order."""
    return [int(match.group(1)) for match in _ITEM.finditer(text)]


def quoted(text: str) -> list[str]:
    """What stands in double quotation marks, case-folded, in order."""
    return [match.group(1).strip().casefold() for match in _QUOTED.finditer(normal_form(text))]


def language_ratio(text: str, language: str) -> float:
    """Share of the words that are function words of `language` ("en" or "de"), 0 to 1; 0 for no words."""
    found = words(text)
    if not found:
        return 0.0
    return sum(word in STOP_WORDS[language] for word in found) / len(found)


def texts(value: Json, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string below `value`, keys of objects included, as (dotted path, text)."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            yield inner, key
            yield from texts(item, inner)
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from texts(item, f"{path}[{index}]")

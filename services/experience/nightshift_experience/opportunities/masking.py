"""Masks what may be personal in a text that is to be shown.

Names cannot be recognised by a pattern: prompts that a privacy check stopped are not stored at all.
"""

from __future__ import annotations

import re
import unicodedata

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\w.+%-]+\s?(?:@|\(at\)|\[at\])\s?[\w-]+(?:\.[\w-]+)+", re.IGNORECASE), "[e-mail]"),
    (re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE), "[link]"),
    (re.compile(r"(?<!\w)@[\w.]{2,}"), "[account]"),
    (re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){3,7}(?:\s?[A-Z0-9]{1,4})?\b"), "[account]"),
    # Street and number, either way round; the number is what makes it an address.
    (
        re.compile(
            r"\b[\w'-]*(?:str\.|straße|strasse|gasse|allee|platz|weg|ufer|damm|ring|sokak|caddesi|вулиця|улица)"
            r"\s+\d{1,4}\s?[a-z]?\b",
            re.IGNORECASE,
        ),
        "[address]",
    ),
    (
        re.compile(
            r"\b\d{1,5}[a-z]?,?\s+(?:[\w'-]+\s+){0,3}(?:street|st\.|road|rd\.|avenue|ave\.|lane|drive|rue|calle)\b",
            re.IGNORECASE,
        ),
        "[address]",
    ),
    (
        re.compile(
            r"\b(?:rue|avenue|calle|via|ulica|ул\.|вул\.)\s+(?:[\w'-]+\s+){1,4}\d{1,4}\b", re.IGNORECASE
        ),
        "[address]",
    ),
    # Seven digits or more, however they are grouped.
    (re.compile(r"(?<![\w])\+?\(?\d(?:[\s()./-]{0,2}\d){6,}(?!\w)"), "[number]"),
    # A postal code and a place.
    (re.compile(r"\b\d{4,5}\s+[A-ZÄÖÜ][a-zäöüß]{2,}\b"), "[address]"),
)


def mask(text: str, *, limit: int = 300) -> str:
    """The text on one line, masked, cut to ``limit`` characters."""
    # Controls and invisible marks could hide a pattern from us and not from a reader.
    visible = "".join(
        " " if character.isspace() else character
        for character in unicodedata.normalize("NFKC", text[: 4 * limit])
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
    )
    for pattern, replacement in _PATTERNS:
        visible = pattern.sub(replacement, visible)
    line = " ".join(visible.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

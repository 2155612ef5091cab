"""What the model is asked, and the form of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from nightshift_kit.llm import Prompt, Untrusted

from .gaps import Gap

#: One more with each change of the words below or of the rules, so that kept drafts are made anew.
VERSION = 1

_NAMES = {
    "ar": "Arabic",
    "bg": "Bulgarian",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "he": "Hebrew",
    "ko": "Korean",
    "tr": "Turkish",
    "uk": "Ukrainian",
}
_INSTRUCTIONS = """You translate short texts that an arts workshop for children and adults shows on screen.

The material is a JSON list. For each entry translate "text" from "from" into the language "to".
Rules:
- Say what the source says, nothing more; plain, friendly words that a child of ten understands.
- Proper names stay as they are. Name no artist whom the source does not name.
- Never say "in the style of" and never say "optimise". Avoid clichés about peoples and regions.
- One line each, no markup, no quotation marks around it, no placeholders, no links.
- A "name" has at most 80 characters, a "category" 80, a "description" 600.

Answer with JSON only: {"translations": [{"field": ..., "language": ..., "text": ...}, ...]} with exactly
one entry for each entry of the material, "language" being the two-letter code of "to"."""


class DraftedText(BaseModel):
    """One text of the answer."""

    model_config = ConfigDict(extra="forbid")

    field: str = Field(max_length=20)
    language: str = Field(max_length=5)
    text: str = Field(max_length=4000)


class Drafted(BaseModel):
    """The whole answer."""

    model_config = ConfigDict(extra="forbid")

    translations: list[DraftedText] = Field(max_length=60)


def question(wanted: Sequence[tuple[Gap, str]]) -> Prompt:
    """The prompt for some (gap, language) pairs."""
    entries = [
        {
            "field": gap.field,
            "from": _NAMES[gap.source_language],
            "to": f"{_NAMES[language]} ({language})",
            "text": gap.source,
        }
        for gap, language in wanted
    ]
    return Prompt(_INSTRUCTIONS, (("texts", Untrusted(json.dumps(entries, ensure_ascii=False, indent=1))),))


def complaint(answer: Drafted, wanted: Sequence[tuple[Gap, str]]) -> str:
    """What is wrong with an answer as a whole; "" if it has each wanted text at most once and no other."""
    asked = {(gap.field, language) for gap, language in wanted}
    given = [(text.field, text.language) for text in answer.translations]
    if not set(given) <= asked:
        return "it has texts that were not asked for"
    if len(set(given)) != len(given):
        return "it has a text twice"
    return ""

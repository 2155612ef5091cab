"""The parts from which a context is built, in English and German at once.

Slots: {theme} the theme in quotation marks, {words} two or three keywords in quotation marks, {first} the
strongest keyword. Both languages of a block use the same slots, so that they name the same things.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

SLOTS = frozenset({"theme", "words", "first"})


@dataclass(frozen=True)
class Both:
    """One block in English and German that say the same."""

    en: str
    de: str

    def slots(self) -> list[str]:
        """Slots in order of the English text; the German text has the same ones (tested)."""
        return [name for _, name, _, _ in string.Formatter().parse(self.en) if name]

    def needs_words(self) -> bool:
        """Whether the block needs keywords."""
        return any(name in ("words", "first") for name in self.slots())


@dataclass(frozen=True)
class Perspective:
    """Who looks, and the steps only this one would take.

    Attributes:
        slug: Part of the id.
        medium: "image", "audio" or "code".
        name, category: What the selector shows.
        description: One sentence with the slot {theme}.
        properties: As production's `properties`.
        group: As production's `display.category`.
        icon, color: As production's `display`.
        warmth: Added to the templates' temperature.
        who: First sentences of the context.
        steps: Steps of its own; a draft takes three of them, in order.
        tags: Further tags.
    """

    slug: str
    medium: str
    name: Both
    category: Both
    description: Both
    properties: tuple[str, ...]
    group: str
    icon: str
    color: str
    warmth: float
    who: Both
    steps: tuple[Both, Both, Both, Both]
    tags: tuple[Both, ...]

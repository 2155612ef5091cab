"""Prompts that speak to a machine rather than to the platform.

Every text of a user is data and never an instruction; a tainted one is marked as well, so that nobody
puts it into a teacher's prompt or a training corpus without looking.
"""

from __future__ import annotations

import re

TAINTED = "tainted"

_INJECTION = re.compile(
    r"(?:ignore|disregard|forget)\s+(?:all\s+|any\s+)?(?:of\s+)?(?:the\s+|your\s+)?"
    r"(?:previous|prior|above|earlier)\s+(?:instructions?|rules?|prompts?)"
    r"|(?:ignoriere|vergiss)\s+(?:alle\s+)?(?:die\s+|deine\s+)?(?:vorherigen|bisherigen|obigen)\s+"
    r"(?:anweisungen|regeln)"
    r"|<\|?(?:im_start|im_end|system|assistant)\|?>"
    r"|\[/?INST\]",
    re.IGNORECASE,
)
_LOOKED_AT_CHARACTERS = 100_000


def is_tainted(text: str | None) -> bool:
    """Whether a text carries what looks like instructions to a model."""
    if not text:
        return False
    lowered = text[:_LOOKED_AT_CHARACTERS].lower()
    return _may_match(lowered) and _INJECTION.search(lowered) is not None


def _may_match(text: str) -> bool:
    # One of these is in every match: most prompts are cleared by looking for them alone. Written out, since a
    # loop would cost several times as much as the looking.
    return (
        "ignor" in text
        or "disregard" in text
        or "forget" in text
        or "vergiss" in text
        or "<" in text
        or "inst]" in text
    )

"""Which runs were stopped because their text holds personal data.

Such text (the error's details, the prompt, whatever was made of it) is a child's name or address. It is
looked at here and goes no further. In doubt a run is private: an unknown check costs the prompt of a
blocked run, a leaked name cannot be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from nightshift_experience.sources.devserver.entities import SAFETY_BLOCKED, mapping, text

# Checks of the platform that stop a text for what it says and not for whom it names.
CONTENT_CHECKS = frozenset({"age_filter", "guard_model", "vlm"})

_PRIVACY = re.compile(
    r"dsgvo|gdpr|rgpd|kvkk|privacy|pii\b|personal|data[\W_]*protection|datenschutz|personenbezogen",
    re.IGNORECASE,
)


def is_private(
    entity_metadata: dict[str, Any],
    error: dict[str, Any] | None,
    content_checks: Collection[str] = CONTENT_CHECKS,
) -> bool:
    """Whether an error (its entry in the record, and its file's document if readable) is a privacy block."""
    document = error or {}
    details = mapping(document.get("details"))
    kind = text(document.get("error_type")) or text(entity_metadata.get("error_type"))
    check = text(details.get("check")) or text(entity_metadata.get("check"))
    if any(_PRIVACY.search(value) for value in (kind, check, text(document.get("message")))):
        return True
    return kind == SAFETY_BLOCKED and check not in content_checks

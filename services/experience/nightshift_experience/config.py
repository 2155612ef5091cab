"""Settings, read once: section [experience], environment NIGHTSHIFT_EXPERIENCE_*."""

from __future__ import annotations

from pydantic import Field

from nightshift_experience.languages import PLATFORM_LANGUAGES
from nightshift_experience.sources.devserver.privacy import CONTENT_CHECKS
from nightshift_kit.settings import ServiceSettings


class ExperienceSettings(ServiceSettings):
    """What an operator may set.

    Attributes:
        languages: Languages among which an untold one is detected (ISO 639-1).
        content_checks: Safety checks of the platform that look at what a text says. A run blocked by any
            other check is taken for a privacy block, and its text is not kept.
        production_deny: Shell patterns of session keys that are never production.
        workshop_dates: Where not empty, the only UTC dates ("YYYY-MM-DD") of production.
        embedding_model: "minilm", or the folder of another sentence-transformers model.
        session_gap_s: A longer pause between the starts of two runs of a device begins a new session.
    """

    languages: tuple[str, ...] = PLATFORM_LANGUAGES
    content_checks: tuple[str, ...] = tuple(sorted(CONTENT_CHECKS))
    production_deny: tuple[str, ...] = ()
    workshop_dates: tuple[str, ...] = ()
    embedding_model: str = "minilm"
    session_gap_s: float = Field(default=1800.0, gt=0, le=86_400, allow_inf_nan=False)

"""Language of a prompt, among those that the platform speaks.

Restricting the identifier to the platform's languages is what makes it reliable on prompts of a few
words; over all its languages it confuses neighbours.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

# Ten languages that the platform offers.
PLATFORM_LANGUAGES = ("ar", "bg", "de", "en", "es", "fr", "he", "ko", "tr", "uk")

# More text does not change the answer, only the time it takes.
_SAMPLE_CHARACTERS = 1000


class LanguageDetector:
    """Detects one of `languages`; the model (about half a second to load) is loaded on first use."""

    def __init__(self, languages: Sequence[str] = PLATFORM_LANGUAGES) -> None:
        self._languages = tuple(languages)
        self._lock = threading.Lock()
        self._classify: Callable[[str], str] | None = None

    def load(self) -> None:
        """Load the model now."""
        self._classifier()

    def detect(self, *texts: str | None) -> str:
        """Language of the first text that holds enough letters to tell; "" where none does."""
        for text in texts:
            if not text:
                continue
            sample = text[:_SAMPLE_CHARACTERS].strip()
            # Bytes that were no UTF-8 say more about a broken encoding than about a language.
            if "\ufffd" in sample or not any(character.isalpha() for character in sample):
                continue
            return self._classifier()(sample)
        return ""

    def _classifier(self) -> Callable[[str], str]:
        if self._classify is None:
            with self._lock:
                if self._classify is None:
                    self._classify = _load(self._languages)
        return self._classify


def _load(languages: tuple[str, ...]) -> Callable[[str], str]:
    # Imported here: the model's libraries are not needed by an import in which nothing changed.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(languages)

    @functools.lru_cache(maxsize=4096)
    def classify(sample: str) -> str:
        return str(identifier.classify(sample)[0])

    return classify

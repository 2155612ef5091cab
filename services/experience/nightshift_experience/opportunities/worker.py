"""The detection in a process of its own: JSON on standard input, findings as JSON on standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..search.index import SearchIndex
from .configs import ConfigTexts
from .detect import detect
from .facts import facts_of


def main() -> int:
    """Detects and returns the exit status."""
    work = orjson.loads(sys.stdin.buffer.read())
    findings = detect(
        facts_of(work["facts"]),
        [
            ConfigTexts(
                item["config"],
                item["names"],
                item["descriptions"],
                {language: tuple(tags) for language, tags in item["tags"].items()},
            )
            for item in work["configs"]
        ],
        prompt_vectors=_prompt_vectors(work["index"]),
        config_vectors={
            config: np.asarray(vector, dtype=np.float32) for config, vector in work["config_vectors"].items()
        },
        known_keywords=work["known_keywords"],
    )
    sys.stdout.buffer.write(orjson.dumps([finding.payload() for finding in findings]))
    return 0


def _prompt_vectors(place: dict[str, Any]) -> dict[str, Any]:
    index = SearchIndex(
        Path(place["folder"]), model_fingerprint=place["fingerprint"], dimension=place["dimension"]
    )
    if not index.exists:
        return {}
    index.open()
    return index.project_vectors(place["project"])


if __name__ == "__main__":
    sys.exit(main())

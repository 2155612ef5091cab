"""What the detection knows of a production run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A pause longer than this begins a new session, as everywhere in the plane.
SESSION_GAP_US = 30 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class RunFact:
    """One production run that has a prompt.

    Attributes:
        session: Runs of one device without a pause of more than 30 minutes share it.
        config: Interception config id; "" if none.
        digest: Equal prompts have equal digests.
    """

    run_id: str
    session: str
    start_us: int
    language: str
    config: str
    favorite: bool
    prompt: str
    digest: str


def facts_of(rows: Iterable[Mapping[str, Any]]) -> list[RunFact]:
    """Facts in time order, with sessions cut at pauses. Rows as ``store.search_tables.production_facts``."""
    facts: list[RunFact] = []
    last_us: dict[str, int] = {}
    part: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: (row["start_us"], row["run_id"])):
        key, start_us = row["session"], row["start_us"]
        if start_us - last_us.get(key, start_us) > SESSION_GAP_US:
            part[key] = part.get(key, 0) + 1
        last_us[key] = start_us
        facts.append(
            RunFact(
                run_id=row["run_id"],
                # Runs of unknown devices tell nothing about what belongs together.
                session=f"{key}#{part.get(key, 0)}" if key else f"?{row['run_id']}",
                start_us=start_us,
                language=row["language"],
                config=row["config"],
                favorite=row["favorite"],
                prompt=row["prompt"],
                digest=row["digest"],
            )
        )
    return facts

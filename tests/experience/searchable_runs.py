"""Rows of the experience store, written directly, for tests of what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nightshift_experience.runs import prompt_digest
from nightshift_experience.store.tables import projects, runs

PROJECT = "workshop"


@dataclass
class RunRows:
    """Gives out change_seq as the store does."""

    seq: int = 0
    ids: set[str] = field(default_factory=set)

    def put(self, connection: sa.Connection, *items: dict[str, Any]) -> None:
        """Inserts or replaces runs; keys as the columns, "run_id" and "prompt" at least."""
        for item in items:
            self.seq += 1
            prompt = item["prompt"]
            values = {
                "project": PROJECT,
                "change_seq": self.seq,
                "order_ms": self.seq,
                "start_us": 1_770_000_000_000_000 + self.seq * 1_000_000,
                "device": "browser",
                "session_key": "browser",
                "production": True,
                "favorite": False,
                "outcome": 1,
                "language": "en",
                "interception_config": "",
                "output_config": "",
                "config_name": "",
                "prompt_digest": None if prompt is None else bytes.fromhex(prompt_digest(prompt)),
                "media_types": "[]",
                "models": "{}",
                "flags": "[]",
                "safety_level": "",
                "source": "live",
                "revision": "",
                "source_path": "",
                "create_us": 0,
            } | item
            connection.execute(
                sa.delete(runs).where(runs.c.project == values["project"], runs.c.run_id == values["run_id"])
            )
            connection.execute(sa.insert(runs).values(**values))
        connection.execute(sa.delete(projects).where(projects.c.project == PROJECT))
        connection.execute(
            sa.insert(projects).values(project=PROJECT, change_seq=self.seq, aggregated_seq=0, detected_seq=0)
        )

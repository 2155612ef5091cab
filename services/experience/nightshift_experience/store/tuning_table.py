"""What projects let be tuned: one row each, and one for the global switch."""

from __future__ import annotations

import sqlalchemy as sa

from nightshift_experience.profiles.advice import Confidence
from nightshift_experience.profiles.tuning import GLOBAL, TuningSettings
from nightshift_experience.store import tables
from nightshift_experience.store.bulk import upsert

# Key of the global switch: no project has it.
EVERYWHERE = ""


def get_tuning(connection: sa.Connection, project: str) -> TuningSettings:
    """As stored, or as it begins."""
    row = connection.execute(sa.select(tables.tuning).where(tables.tuning.c.project == project)).one_or_none()
    if row is None:
        return GLOBAL if project == EVERYWHERE else TuningSettings()
    return TuningSettings(
        bool(row.enabled),
        bool(row.apply_safely),
        row.min_runs,
        Confidence(row.confidence),
        row.version,
        row.update_us,
    )


def get_both(connection: sa.Connection, project: str) -> tuple[TuningSettings, TuningSettings]:
    """(the project's, the global switch)."""
    return get_tuning(connection, project), get_tuning(connection, EVERYWHERE)


def put_tuning(connection: sa.Connection, project: str, settings: TuningSettings) -> None:
    """Store it."""
    upsert(
        connection,
        tables.tuning,
        [
            (
                project,
                settings.enabled,
                settings.apply_safely,
                settings.min_runs,
                int(settings.threshold),
                settings.version,
                settings.update_us,
            )
        ],
    )

"""Feedback and favourites: stored as they come, whether or not their run is known yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import sqlalchemy as sa

from nightshift_experience.runs import DIGEST_BYTES
from nightshift_experience.store import tables
from nightshift_experience.store.bulk import insert_new, select_in, upsert
from nightshift_experience.store.favorite_state import FAVORITE, UNFAVORITE
from nightshift_experience.store.run_writes import refresh_favorites


def add_feedback(
    connection: sa.Connection,
    project: str,
    run_id: str,
    kind: int,
    value: float | None,
    feedback_us: int | None,
    now_us: int,
) -> bool:
    """Store one signal, the same one once; whether its run is known. Without a time it is of now."""
    content = repr((kind, value, feedback_us)).encode()
    digest = hashlib.sha256(content).digest()[:DIGEST_BYTES]
    when_us = now_us if feedback_us is None else feedback_us
    insert_new(connection, tables.feedback, [(project, run_id, digest, kind, value, when_us, now_us)])
    if kind in (FAVORITE, UNFAVORITE):
        refresh_favorites(connection, project, [run_id])
    return bool(select_in(connection, tables.runs, ("run_id",), project, "run_id", [run_id]))


def apply_favorite_list(
    connection: sa.Connection, project: str, source: str, added_us: Mapping[str, int], now_us: int
) -> tuple[int, int]:
    """Bring what is known of a source's list in line with the list (run id → when it was added).

    Returns how many entries name a stored run, and how many name none.
    """
    column = tables.favorites.c
    known = {
        row.run_id: (bool(row.present), row.changed_us)
        for row in connection.execute(
            sa.select(column.run_id, column.present, column.changed_us).where(
                column.project == project, column.source == source
            )
        )
    }
    changes: dict[str, tuple[bool, int]] = {}
    for run, instant_us in added_us.items():
        present, before_us = known.get(run, (False, -1))
        # An entry without a time keeps the time at which it was first seen.
        when_us = instant_us or (before_us if present else now_us)
        if (present, before_us) != (True, when_us):
            changes[run] = (True, when_us)
    for run, (present, _) in known.items():
        if present and run not in added_us:
            changes[run] = (False, now_us)
    upsert(
        connection,
        tables.favorites,
        [(project, run, source, present, changed_us) for run, (present, changed_us) in changes.items()],
    )
    refresh_favorites(connection, project, list(changes))
    stored = select_in(connection, tables.runs, ("run_id",), project, "run_id", list(added_us))
    return len(stored), len(added_us) - len(stored)

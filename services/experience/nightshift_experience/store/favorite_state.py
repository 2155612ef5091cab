"""Whether a run is a favourite: the latest of its signals says so.

Signals are live feedback, and the lists that importers read: presence counts from when it was added,
absence of a run that was on the list before from when it was found missing. A list that never named the
run says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from nightshift_experience.store import tables
from nightshift_experience.store.bulk import select_in

FAVORITE = 1
UNFAVORITE = 2


def favorites_among(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> set[str]:
    """Those of the runs that are favourites; runs may be unknown."""
    latest: dict[str, tuple[int, bool]] = {}
    for run, present, changed_us in select_in(
        connection, tables.favorites, ("run_id", "present", "changed_us"), project, "run_id", run_ids
    ):
        latest[run] = max(latest.get(run, (-1, False)), (changed_us, bool(present)))
    for run, kind, feedback_us in select_in(
        connection, tables.feedback, ("run_id", "kind", "feedback_us"), project, "run_id", run_ids
    ):
        if kind in (FAVORITE, UNFAVORITE):
            latest[run] = max(latest.get(run, (-1, False)), (feedback_us, kind == FAVORITE))
    return {run for run, (_, favorite) in latest.items() if favorite}

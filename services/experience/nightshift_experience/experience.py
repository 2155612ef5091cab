"""What happened: reading it, and how it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from nightshift_experience.aggregation.performance import ConfigPerformance, performances
from nightshift_experience.errors import RunUnknown
from nightshift_experience.filters import Term
from nightshift_experience.store.run_reads import (
    ProjectState,
    Row,
    get_run,
    list_runs,
    project_state,
    runs_by_id,
)
from nightshift_experience.store.statistics import config_counters, load_counters
from nightshift_kit.storage import Database

_EXPORT_ROWS = 500


class Experience:
    """Reads of the store."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get_run(self, project: str, run_id: str) -> Row:
        """One run. Raises RunUnknown."""
        row = await self._db.read(get_run, project, run_id)
        if row is None:
            raise RunUnknown("There is no such run.", metadata={"run": run_id})
        return row

    async def page(
        self, project: str, terms: Sequence[Term], before: tuple[int, str] | None, limit: int
    ) -> list[Row]:
        """Runs, newest first, after the position (start_us, run_id)."""
        return await self._db.read(list_runs, project, terms, before, limit)

    async def export(self, project: str, terms: Sequence[Term]) -> AsyncIterator[list[Row]]:
        """All runs in the order of their ids, in batches; each batch is a snapshot of its own."""
        after = ""
        while True:
            rows = await self._db.read(runs_by_id, project, terms, after, _EXPORT_ROWS)
            if rows:
                yield rows
            if len(rows) < _EXPORT_ROWS:
                return
            after = rows[-1].run_id

    async def performance(
        self, project: str, start_us: int | None, end_us: int | None
    ) -> list[ConfigPerformance]:
        """Statistics by interception config, most used first, of runs that began in [start_us, end_us)."""
        return performances(await self._db.read(config_counters, project, start_us, end_us))

    async def state(self, project: str) -> tuple[ProjectState, int, int]:
        """Watermarks and what waits beyond them; stored runs; production runs."""
        state = await self._db.read(project_state, project)
        counted = await self._db.read(load_counters, project, ("project",))
        return state, counted["project", "", "total"], counted["project", "", "production"]

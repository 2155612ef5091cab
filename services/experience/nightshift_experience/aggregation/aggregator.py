"""The Aggregate method: marks regenerations from the watermark on, then proves the counters by a recount.

Counters and marks are kept with every write, so a pass normally finds nothing to correct; it is what says so.
Every step is a transaction of its own that checks the fence, so a pre-emption between two steps leaves a
consistent store and a watermark to go on from.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from threading import Event

import sqlalchemy as sa

from nightshift_experience.aggregation.recount import Recount, recount
from nightshift_experience.audit import Audit, FencedEffect
from nightshift_experience.store import tables
from nightshift_experience.store.run_reads import project_state
from nightshift_experience.store.run_writes import apply_counters, refresh_chains
from nightshift_kit.clock import Clock
from nightshift_kit.storage import Database

_STEP_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What one pass did: runs looked at, configs with statistics, regenerations, corrections."""

    run_count: int
    config_count: int
    regeneration_count: int
    corrected_count: int


class Aggregator:
    """Runs passes over a store, one at a time: two would count the same runs and keep a stop from the CPU."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._audit = Audit(clock)
        self._aggregating = asyncio.Lock()

    async def aggregate(self, effect: FencedEffect, project: str, full: bool) -> Aggregated:
        """One pass. Raises Preempted; what was done until then stays."""
        async with self._aggregating:
            return await self._pass(effect, project, full)

    async def _pass(self, effect: FencedEffect, project: str, full: bool) -> Aggregated:
        state = await self._db.read(project_state, project)
        looked_at = corrected = 0
        seq = 0 if full else state.aggregated_seq
        while True:
            step = await self._db.write(_step, effect, project, seq)
            if step is None:
                break
            seq, runs, changed = step
            looked_at += runs
            corrected += changed
        found = await self._recount(project)
        if found.differences or found.wrong_chains:
            corrected += await self._db.write(_correct, effect, project, found)
        now_us = int(self._clock.now().timestamp() * 1_000_000)
        counts = {"runs": looked_at, "corrected": corrected}
        await self._db.write(_finish, effect, self._audit, project, now_us, counts)
        configs = {key for scope, key, metric in found.counted if scope == "config" and metric == "total"}
        return Aggregated(
            run_count=looked_at,
            config_count=len(configs),
            regeneration_count=found.counted["project", "", "regenerations"],
            corrected_count=corrected,
        )

    async def _recount(self, project: str) -> Recount:
        stop = Event()
        try:
            return await self._db.read(recount, project, stop)
        finally:
            # Where the call was cancelled, the reader's thread goes on until it notices.
            stop.set()


def _step(
    connection: sa.Connection, effect: FencedEffect, project: str, after_seq: int
) -> tuple[int, int, int] | None:
    """Look at the next changed runs: (watermark, runs, corrected marks); None at the end."""
    effect.begin(connection)
    run = tables.runs.c
    rows = connection.execute(
        sa.select(run.change_seq, run.chain_key)
        .where(run.project == project, run.change_seq > after_seq)
        .order_by(run.change_seq)
        .limit(_STEP_RUNS)
    ).fetchall()
    if not rows:
        return None
    last = int(rows[-1].change_seq)
    keys = {bytes(row.chain_key) for row in rows if row.chain_key is not None}
    corrected = refresh_chains(connection, project, keys)
    project_row = tables.projects.c
    connection.execute(
        tables.projects.update()
        .where(project_row.project == project, project_row.aggregated_seq < last)
        .values(aggregated_seq=last)
    )
    return last, len(rows), corrected


def _correct(connection: sa.Connection, effect: FencedEffect, project: str, found: Recount) -> int:
    effect.begin(connection)
    apply_counters(connection, project, found.differences)
    return len(found.differences) + refresh_chains(connection, project, found.wrong_chains)


def _finish(
    connection: sa.Connection,
    effect: FencedEffect,
    audit: Audit,
    project: str,
    now_us: int,
    counts: dict[str, int],
) -> None:
    effect.begin(connection)
    connection.execute(
        tables.projects.update().where(tables.projects.c.project == project).values(aggregate_us=now_us)
    )
    audit.effect(connection, effect, "statistics.aggregated", project, **counts)

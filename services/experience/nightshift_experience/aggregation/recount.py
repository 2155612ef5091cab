"""Counting everything again from the stored runs, to hold it against the counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Event

import sqlalchemy as sa

from nightshift_experience.aggregation.chains import Member, add_chain, marks
from nightshift_experience.aggregation.contributions import CounterName, add_contribution
from nightshift_experience.store import tables
from nightshift_experience.store.run_writes import FACTS_COLUMNS, facts_of
from nightshift_experience.store.statistics import load_counters

_STEP_ROWS = 5000


class RecountStopped(Exception):
    """The recount was told to stop."""


@dataclass(slots=True)
class Recount:
    """What one snapshot of the store holds.

    `differences` are to be added to the counters: since they are differences, runs that were stored
    after the snapshot do not matter.
    """

    run_count: int = 0
    counted: Counter[CounterName] = field(default_factory=Counter)
    differences: Counter[CounterName] = field(default_factory=Counter)
    # Chains whose marks are not what their members say.
    wrong_chains: list[bytes] = field(default_factory=list)


def recount(connection: sa.Connection, project: str, stop: Event) -> Recount:
    """Count all runs of a project within one snapshot. Raises RecountStopped soon after `stop` is set."""
    found = Recount()
    _count_runs(connection, project, stop, found)
    _count_chains(connection, project, stop, found)
    kept = load_counters(connection, project)
    found.differences = Counter(
        {
            name: found.counted[name] - kept[name]
            for name in found.counted.keys() | kept.keys()
            if found.counted[name] != kept[name]
        }
    )
    return found


def _count_runs(connection: sa.Connection, project: str, stop: Event, found: Recount) -> None:
    run = tables.runs.c
    after = ""
    while True:
        if stop.is_set():
            raise RecountStopped
        rows = connection.execute(
            sa.select(*(run[name] for name in FACTS_COLUMNS))
            .where(run.project == project, run.run_id > after)
            .order_by(run.run_id)
            .limit(_STEP_ROWS)
        ).fetchall()
        for row in rows:
            add_contribution(found.counted, facts_of(row), 1)
        found.run_count += len(rows)
        if len(rows) < _STEP_ROWS:
            return
        after = rows[-1].run_id


def _count_chains(connection: sa.Connection, project: str, stop: Event, found: Recount) -> None:
    run = tables.runs.c
    columns = (
        run.chain_key,
        run.run_id,
        run.order_ms,
        run.seed,
        run.production,
        run.interception_config,
        run.regeneration_of,
    )
    chain: list[Member] = []
    last: tuple[bytes, str] = (b"", "")
    while True:
        if stop.is_set():
            raise RecountStopped
        rows = connection.execute(
            sa.select(*columns)
            .where(run.project == project, run.chain_key.is_not(None))
            .where(sa.tuple_(run.chain_key, run.run_id) > last)
            .order_by(run.chain_key, run.run_id)
            .limit(_STEP_ROWS)
        ).fetchall()
        for row in rows:
            key = bytes(row[0])
            if key != last[0]:
                _close_chain(found, last[0], chain)
                chain = []
            chain.append(Member(row[1], row[2], row[3], bool(row[4]), row[5], row[6]))
            last = (key, row[1])
        if len(rows) < _STEP_ROWS:
            _close_chain(found, last[0], chain)
            return


def _close_chain(found: Recount, key: bytes, members: list[Member]) -> None:
    if not members:
        return
    add_chain(found.counted, members, 1)
    right = marks(members)
    if any(member.regeneration_of != right[member.run_id] for member in members):
        found.wrong_chains.append(key)

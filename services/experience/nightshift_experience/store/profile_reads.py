"""What profiles read: counters, the ends of the costs, the newest runs. None of it grows with history."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa

from nightshift_experience.profiles.counting import SCOPES, MeasureState
from nightshift_experience.profiles.statistics import (
    GroupStatistics,
    Profile,
    WeightedRun,
    profile_of_counters,
    with_extremes,
)
from nightshift_experience.store import tables
from nightshift_experience.store.statistics import load_counters

# Groups whose ends are looked up; each costs two steps into an index.
_LOOKED_UP = 20
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Version:
    """State of a project's counters: equal versions, equal profiles."""

    change_seq: int = 0
    # When they were last proved, and put right where they were not.
    aggregate_us: int | None = None


@dataclass(frozen=True, slots=True)
class DatedRun:
    """A counted run and when it began."""

    run: WeightedRun
    start_us: int
    max_cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A profile as it stands, with its newest runs (newest first) and some of those that it leaves out."""

    version: Version
    profile: Profile
    newest: tuple[DatedRun, ...]
    left_out_runs: tuple[tuple[str, MeasureState], ...]


def profile_version(connection: sa.Connection, project: str) -> Version:
    """The version now."""
    column = tables.projects.c
    row = connection.execute(
        sa.select(column.change_seq, column.aggregate_us).where(column.project == project)
    ).one_or_none()
    return Version() if row is None else Version(row.change_seq, row.aggregate_us)


def read_profile(
    connection: sa.Connection, project: str, known: Version | None, newest: int
) -> Snapshot | None:
    """The profile with its `newest` runs; None where it is the `known` version."""
    version = profile_version(connection, project)
    if version == known:
        return None
    profile = profile_of_counters(load_counters(connection, project, SCOPES))
    return Snapshot(
        version,
        _with_ends(connection, project, profile),
        newest_runs(connection, project, newest),
        _left_out(connection, project),
    )


def newest_runs(connection: sa.Connection, project: str, limit: int) -> tuple[DatedRun, ...]:
    """Counted runs, newest first."""
    run = tables.runs.c
    rows = connection.execute(
        sa.select(
            run.mode,
            run.strategy,
            run.max_rounds,
            run.rounds,
            run.qa_status,
            run.cost_usd,
            run.duration_us,
            run.start_us,
            run.max_cost_usd,
        )
        .where(run.project == project, sa.text(tables.COUNTED))
        .order_by(run.start_us.desc(), run.run_id.desc())
        .limit(limit)
    )
    return tuple(DatedRun(WeightedRun(*row[:7]), row.start_us, row.max_cost_usd) for row in rows)


def _with_ends(connection: sa.Connection, project: str, profile: Profile) -> Profile:
    run = tables.runs.c
    modes = [
        with_extremes(group, _ends(connection, project, run.mode, group.key))
        for group in profile.modes[:_LOOKED_UP]
    ]
    strategies = [
        with_extremes(group, _ends(connection, project, run.strategy, group.key))
        for group in profile.strategies[:_LOOKED_UP]
    ]
    total = profile.total
    if len(profile.modes) <= _LOOKED_UP:
        ends = [_group_ends(group) for group in modes if group.costs.buckets]
        without_mode = _ends(connection, project, run.mode, "")
        if without_mode is not None:
            ends.append(without_mode)
        if ends:
            total = with_extremes(total, (min(low for low, _ in ends), max(high for _, high in ends)))
    return replace(
        profile,
        total=total,
        modes=(*modes, *profile.modes[_LOOKED_UP:]),
        strategies=(*strategies, *profile.strategies[_LOOKED_UP:]),
    )


def _group_ends(group: GroupStatistics) -> tuple[float, float]:
    return group.costs.least_usd, group.costs.most_usd


def _ends(
    connection: sa.Connection, project: str, column: sa.ColumnElement[str], key: str
) -> tuple[float, float] | None:
    """Cheapest and dearest of a group, each one step into an index."""
    run = tables.runs.c
    query = (
        sa.select(run.cost_usd).where(run.project == project, column == key, sa.text(tables.COSTED)).limit(1)
    )
    low = connection.execute(query.order_by(run.cost_usd)).scalar_one_or_none()
    if low is None:
        return None
    return low, connection.execute(query.order_by(run.cost_usd.desc())).scalar_one()


def _left_out(connection: sa.Connection, project: str) -> tuple[tuple[str, MeasureState], ...]:
    run = tables.runs.c
    rows = connection.execute(
        sa.select(run.run_id, run.profiled)
        .where(run.project == project, sa.text(tables.LEFT_OUT))
        .where(run.profiled < int(MeasureState.NOT_PRODUCTION))
        .order_by(run.profiled, run.run_id)
        .limit(_LISTED)
    )
    return tuple((run_id, MeasureState(state)) for run_id, state in rows)

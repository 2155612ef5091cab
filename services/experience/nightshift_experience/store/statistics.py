"""Reading the counters, and the same numbers over a window of time."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa

from nightshift_experience.aggregation.contributions import OUTCOME_METRICS, CounterName
from nightshift_experience.store import tables

_CONFIG_SCOPES = ("config", "config_output", "config_language")


def load_counters(
    connection: sa.Connection, project: str, scopes: tuple[str, ...] = ()
) -> Counter[CounterName]:
    """Counters of a project that are not 0; those of some scopes, or all."""
    column = tables.counters.c
    query = sa.select(column.scope, column.key, column.metric, column.count).where(
        column.project == project, column.count != 0
    )
    if scopes:
        query = query.where(column.scope.in_(scopes))
    return Counter({(scope, key, metric): count for scope, key, metric, count in connection.execute(query)})


def config_counters(
    connection: sa.Connection, project: str, start_us: int | None, end_us: int | None
) -> Counter[CounterName]:
    """Counters by config: kept ones for all time, counted ones for runs that began in a window.

    Within a window a regeneration is a run marked so (its first run may lie before the window), and a
    group is a distinct chain among the runs of the window.
    """
    if start_us is None and end_us is None:
        return load_counters(connection, project, _CONFIG_SCOPES)
    run = tables.runs.c
    where = [run.project == project, run.interception_config != ""]
    if start_us is not None:
        where.append(run.start_us >= start_us)
    if end_us is not None:
        where.append(run.start_us < end_us)
    found: Counter[CounterName] = Counter()
    config, one = run.interception_config, sa.func.count()
    for key, production, outcome, count in connection.execute(
        sa.select(config, run.production, run.outcome, one)
        .where(*where)
        .group_by(config, run.production, run.outcome)
    ):
        found["config", key, "total"] += count
        if production:
            found["config", key, "production"] += count
            found["config", key, OUTCOME_METRICS[outcome]] += count
    where.append(run.production.is_(True))
    for metric, condition, what in (
        ("favorites", run.favorite.is_(True), one),
        ("regenerations", run.regeneration_of.is_not(None), one),
        ("groups", run.chain_key.is_not(None), sa.func.count(run.chain_key.distinct())),
    ):
        for key, count in connection.execute(
            sa.select(config, what).where(*where, condition).group_by(config)
        ):
            found["config", key, metric] += count
    for scope, column in (("config_output", run.output_config), ("config_language", run.language)):
        grouped = sa.select(config, column, one).where(*where, column != "").group_by(config, column)
        for key, value, count in connection.execute(grouped):
            found[scope, key, value] += count
    return found

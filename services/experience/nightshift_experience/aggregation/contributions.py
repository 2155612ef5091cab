"""What one run adds to the counters.

Counters are sums over runs, so a run that changes takes its old contribution back and adds its new one, and
a recount of everything must give the same numbers. Groups and regenerations are sums over chains
(`chains`). A counter is named by (scope, key, metric); the table in `store.tables` lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nightshift_experience.profiles.counting import Measures, add_measures

CounterName = tuple[str, str, str]

OUTCOME_METRICS = {1: "succeeded", 2: "blocked", 3: "failed", 4: "incomplete"}


@dataclass(slots=True)
class Facts:
    """The columns of a stored run that counters and chains depend on."""

    run_id: str
    order_ms: int
    production: bool
    favorite: bool
    outcome: int
    language: str
    interception_config: str
    output_config: str
    seed: int | None
    chain_key: bytes | None
    regeneration_of: str | None
    # What profiles count of it; None where it tells nothing of the kind.
    measures: Measures | None = None


def add_contributions(totals: Counter[CounterName], runs: Iterable[Facts], sign: int) -> None:
    """As `add_contribution` for many runs: those that count the same are added at once."""
    alike: dict[tuple[object, ...], list[Facts]] = {}
    for run in runs:
        if run.measures is not None:
            # Costs make nearly every one a kind of its own.
            add_contribution(totals, run, sign)
            continue
        counted = (
            run.interception_config,
            run.output_config,
            run.language,
            run.outcome,
            run.production,
            run.favorite,
        )
        alike.setdefault(counted, []).append(run)
    for group in alike.values():
        add_contribution(totals, group[0], sign * len(group))


def add_contribution(totals: Counter[CounterName], run: Facts, sign: int) -> None:
    """Add (`sign` 1) or take back (-1) what `run` counts, chains left out; ±n for n alike."""
    totals["project", "", "total"] += sign
    if run.measures is not None:
        add_measures(totals, run.measures, sign)
    config, output = run.interception_config, run.output_config
    if config:
        totals["config", config, "total"] += sign
    if output:
        totals["output", output, "total"] += sign
    if not run.production:
        return
    totals["project", "", "production"] += sign
    if output:
        totals["output", output, "production"] += sign
    if run.language:
        totals["language", run.language, "production"] += sign
    if not config:
        return
    totals["config", config, "production"] += sign
    totals["config", config, OUTCOME_METRICS[run.outcome]] += sign
    if run.favorite:
        totals["config", config, "favorites"] += sign
    if output:
        totals["config_output", config, output] += sign
    if run.language:
        totals["config_language", config, run.language] += sign

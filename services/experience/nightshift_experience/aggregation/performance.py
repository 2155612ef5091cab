"""Statistics of one interception config, out of counters."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from nightshift_experience.aggregation.contributions import CounterName


@dataclass(slots=True)
class ConfigPerformance:
    """Everything but `total_runs` counts production runs only."""

    config: str
    total_runs: int = 0
    production_runs: int = 0
    succeeded_runs: int = 0
    blocked_runs: int = 0
    failed_runs: int = 0
    incomplete_runs: int = 0
    favorites: int = 0
    regenerations: int = 0
    groups: int = 0
    # (value, count), most used first.
    output_configs: list[tuple[str, int]] = field(default_factory=list)
    languages: list[tuple[str, int]] = field(default_factory=list)

    @property
    def avg_regenerations(self) -> float:
        """Regenerations by group, 0 where there are no groups."""
        return self.regenerations / self.groups if self.groups else 0.0


_FIELDS = {
    "total": "total_runs",
    "production": "production_runs",
    "succeeded": "succeeded_runs",
    "blocked": "blocked_runs",
    "failed": "failed_runs",
    "incomplete": "incomplete_runs",
    "favorites": "favorites",
    "regenerations": "regenerations",
    "groups": "groups",
}


def performances(counters: Counter[CounterName]) -> list[ConfigPerformance]:
    """Statistics by config, most production runs first, then by id; configs without any run are left out."""
    found: dict[str, ConfigPerformance] = {}
    values: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for (scope, key, metric), count in counters.items():
        if scope == "config" and count:
            item = found.setdefault(key, ConfigPerformance(key))
            setattr(item, _FIELDS[metric], count)
        elif scope in ("config_output", "config_language") and count:
            values[scope, key].append((metric, count))
    for item in found.values():
        item.output_configs = _most_used(values["config_output", item.config])
        item.languages = _most_used(values["config_language", item.config])
    kept = [item for item in found.values() if item.total_runs]
    return sorted(kept, key=lambda item: (-item.production_runs, item.config))


def _most_used(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

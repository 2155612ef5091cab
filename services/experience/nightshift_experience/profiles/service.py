"""Profiles, recommendations and predictions of projects, kept in memory while nothing changes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TypeVar

from nightshift_experience.errors import CostUnknown
from nightshift_experience.profiles.advice import CurrentSettings, Recommendation, Rules
from nightshift_experience.profiles.evidence import Evidence, compare
from nightshift_experience.profiles.prediction import CostPrediction, predict_cost
from nightshift_experience.profiles.recommending import recommend
from nightshift_experience.profiles.statistics import (
    GroupStatistics,
    Profile,
    WeightedRun,
    Weights,
    preferred,
    profile_of_runs,
)
from nightshift_experience.store.profile_reads import (
    DatedRun,
    Snapshot,
    Version,
    newest_runs,
    read_profile,
)
from nightshift_kit.storage import Database

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

WEIGHTS = Weights()
# Runs on either side of a trend, and fewer than which say nothing.
_TREND_RUNS = 50
_LEAST_TREND_RUNS = 5
# With a half-life, only so many runs are looked at: it costs the same for any history.
MOST_WEIGHTED_RUNS = 5000
_KEPT_PROJECTS = 256
_KEPT_ANSWERS = 256


@dataclass(frozen=True, slots=True)
class Trend:
    """The newest runs against as many before them."""

    runs: int
    quality_change: float | None
    cost_change: float | None
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class ProjectProfile:
    """A profile with what follows from it."""

    profile: Profile
    preferred_mode: str
    preferred_strategy: str
    trend: Trend | None
    latest: CurrentSettings
    last_start_us: int | None
    left_out_runs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """Recommendations, the settings that they are about, and how many runs they rest on."""

    recommendations: tuple[Recommendation, ...]
    settings: CurrentSettings
    runs: float


class ProfileService:
    """Reads of profiles. Belongs to one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._profiles: OrderedDict[str, tuple[Version, ProjectProfile]] = OrderedDict()
        self._advice: OrderedDict[tuple[object, ...], Advice] = OrderedDict()

    async def profile(self, project: str) -> ProjectProfile:
        """The profile as it stands."""
        return (await self._current(project))[1]

    async def recommendations(
        self,
        project: str,
        settings: CurrentSettings,
        *,
        use_latest_run: bool = False,
        rules: Rules = Rules(),  # noqa: B008 - frozen
        half_life_us: int | None = None,
    ) -> Advice:
        """Advised changes.

        Args:
            project: Project.
            settings: What is set now.
            use_latest_run: Whether the newest runs fill what `settings` leaves out.
            rules: Thresholds and weights.
            half_life_us: Age, counted from the newest run, at which a run counts for half; None: never.
        """
        version, known = await self._current(project)
        if use_latest_run:
            settings = _filled(settings, known.latest)
        key = (project, version, settings, rules, half_life_us)
        advice = self._advice.get(key)
        if advice is None:
            profile = known.profile
            if half_life_us is not None:
                profile = await self._weighted(project, half_life_us)
            advice = Advice(tuple(recommend(profile, settings, rules)), settings, profile.total.runs)
            _keep(self._advice, key, advice, _KEPT_ANSWERS)
        return advice

    async def predict(self, project: str, mode: str, strategy: str, level: float) -> CostPrediction:
        """Cost of the next run. Raises CostUnknown."""
        _, known = await self._current(project)
        found = predict_cost(known.profile, mode, strategy, level)
        if found is None:
            raise CostUnknown("No run of this project tells what it cost.", metadata={"project": project})
        return found

    async def _current(self, project: str) -> tuple[Version, ProjectProfile]:
        kept = self._profiles.get(project)
        snapshot = await self._db.read(
            read_profile, project, kept[0] if kept is not None else None, 2 * _TREND_RUNS
        )
        if snapshot is not None:
            kept = (snapshot.version, _drawn(snapshot))
            _keep(self._profiles, project, kept, _KEPT_PROJECTS)
        assert kept is not None, "a reader that knows nothing gets a snapshot"
        return kept

    async def _weighted(self, project: str, half_life_us: int) -> Profile:
        runs = await self._db.read(newest_runs, project, MOST_WEIGHTED_RUNS)
        if not runs:
            return Profile()
        newest = runs[0].start_us
        return profile_of_runs(
            replace(dated.run, weight=0.5 ** ((newest - dated.start_us) / half_life_us)) for dated in runs
        )


def _drawn(snapshot: Snapshot) -> ProjectProfile:
    profile = snapshot.profile
    return ProjectProfile(
        profile,
        preferred(profile.modes, WEIGHTS),
        preferred(profile.strategies, WEIGHTS),
        _trend([dated.run for dated in snapshot.newest]),
        _latest(snapshot.newest),
        snapshot.newest[0].start_us if snapshot.newest else None,
        tuple((run, state.name) for run, state in snapshot.left_out_runs),
    )


def _trend(runs: list[WeightedRun]) -> Trend | None:
    """Of runs, newest first."""
    side = min(_TREND_RUNS, len(runs) // 2)
    if side < _LEAST_TREND_RUNS:
        return None
    now, before = profile_of_runs(runs[:side]).total, profile_of_runs(runs[side : 2 * side]).total
    return Trend(side, _quality_change(before, now), _cost_change(before, now), compare(before, now, WEIGHTS))


def _quality_change(before: GroupStatistics, now: GroupStatistics) -> float | None:
    if before.pass_rate is None or now.pass_rate is None:
        return None
    return now.pass_rate - before.pass_rate


def _cost_change(before: GroupStatistics, now: GroupStatistics) -> float | None:
    if not before.costs.buckets or not now.costs.buckets:
        return None
    return now.costs.median / before.costs.median - 1


def _latest(newest: tuple[DatedRun, ...]) -> CurrentSettings:
    """Each setting as the newest run has it that tells it."""
    return CurrentSettings(
        mode=next((dated.run.mode for dated in newest if dated.run.mode), ""),
        strategy=next((dated.run.strategy for dated in newest if dated.run.strategy), ""),
        max_rounds=next((d.run.max_rounds for d in newest if d.run.max_rounds is not None), None),
        max_cost_usd=next((d.max_cost_usd for d in newest if d.max_cost_usd is not None), None),
    )


def _filled(settings: CurrentSettings, latest: CurrentSettings) -> CurrentSettings:
    return CurrentSettings(
        mode=settings.mode or latest.mode,
        strategy=settings.strategy or latest.strategy,
        max_rounds=latest.max_rounds if settings.max_rounds is None else settings.max_rounds,
        max_cost_usd=latest.max_cost_usd if settings.max_cost_usd is None else settings.max_cost_usd,
    )


def _keep(kept: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT, most: int) -> None:
    """Keep a value as the newest one, at the price of the oldest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)

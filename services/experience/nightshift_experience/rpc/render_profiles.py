"""From profiles and advice to messages."""

from __future__ import annotations

from collections import OrderedDict

from google.protobuf.duration_pb2 import Duration

from nightshift.experience.v1 import profiles_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_experience.profiles.advice import CurrentSettings, Recommendation
from nightshift_experience.profiles.prediction import CostPrediction
from nightshift_experience.profiles.service import WEIGHTS, ProjectProfile
from nightshift_experience.profiles.sketch import Costs
from nightshift_experience.profiles.statistics import GroupStatistics, scores
from nightshift_experience.resources import RunName, profile_name
from nightshift_experience.rpc.render import counts, rate, timestamp


def profile(project: str, known: ProjectProfile) -> pb.Profile:
    """A profile."""
    told = known.profile
    by_mode, by_strategy = scores(told.modes, WEIGHTS), scores(told.strategies, WEIGHTS)
    message = pb.Profile(
        name=profile_name(project),
        runs=int(told.total.runs),
        sufficient_data=told.is_sufficient,
        modes=[group(one, by_mode.get(one.key)) for one in told.modes],
        strategies=[group(one, by_strategy.get(one.key)) for one in told.strategies],
        total=group(told.total),
        rounds_distribution=[
            pb.RoundsCount(rounds=rounds, runs=int(runs)) for rounds, runs in told.total.distribution.items()
        ],
        preferred_mode=known.preferred_mode,
        preferred_strategy=known.preferred_strategy,
        models=counts(told.models),
        left_out=counts([(state.name, count) for state, count in told.left_out]),
        left_out_runs=[
            pb.LeftOutRun(run=RunName(project, run).name, reason=reason)
            for run, reason in known.left_out_runs
        ],
    )
    if known.trend is not None:
        message.trend.CopyFrom(
            pb.Trend(
                runs=known.trend.runs,
                quality_change=known.trend.quality_change,
                cost_change=known.trend.cost_change,
                better_probability=known.trend.evidence.better,
                worse_probability=known.trend.evidence.worse,
            )
        )
    if known.last_start_us is not None:
        message.last_run_time.CopyFrom(timestamp(known.last_start_us))
    return message


class RenderedProfiles:
    """Messages of the profiles that were asked for last, so that an unchanged one is made once."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[ProjectProfile, pb.Profile]] = OrderedDict()

    def of(self, project: str, known: ProjectProfile) -> pb.Profile:
        """The message; nobody may change it."""
        kept = self._kept.get(project)
        if kept is None or kept[0] is not known:
            kept = (known, profile(project, known))
            self._kept[project] = kept
            self._kept.move_to_end(project)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return kept[1]


def settings(told: CurrentSettings) -> resources.RunSettings:
    """Settings of a run."""
    return resources.RunSettings(
        mode=told.mode, strategy=told.strategy, max_rounds=told.max_rounds, max_cost_usd=told.max_cost_usd
    )


def recommendation(told: Recommendation) -> pb.Recommendation:
    """An advised change."""
    impact = told.impact
    return pb.Recommendation(
        category=pb.RecommendationCategory.ValueType(told.category),
        current_value=told.current,
        recommended_value=told.recommended,
        explanation=told.explanation,
        confidence=pb.Confidence.ValueType(told.confidence),
        estimated_impact=pb.Impact(
            cost_usd=impact.cost_usd,
            cost_percent=None if impact.cost_share is None else impact.cost_share * 100,
            quality_points=None if impact.quality is None else impact.quality * 100,
        ),
        evidence=pb.Evidence(
            current_runs=told.current_runs,
            recommended_runs=told.recommended_runs,
            better_probability=told.probability,
            expected_loss=told.expected_loss,
            uncapped_confidence=pb.Confidence.ValueType(told.uncapped),
        ),
    )


def prediction(told: CostPrediction) -> pb.RunCostPrediction:
    """A predicted cost."""
    return pb.RunCostPrediction(
        median_usd=told.median_usd,
        lower_usd=told.lower_usd,
        upper_usd=told.upper_usd,
        level=told.level,
        runs=told.runs,
        basis=told.basis,
    )


def group(told: GroupStatistics, score: float | None = None) -> pb.GroupStatistics:
    """Statistics of a mode, a strategy, or other runs."""
    message = pb.GroupStatistics(
        key=told.key,
        runs=int(told.runs),
        qa_pass_rate=rate(int(told.passed), int(told.judged)),
        qa_passed=int(told.passed),
        qa_warning=int(told.warned),
        qa_failed=int(told.failed),
        cost=_costs(told.costs),
        mean_rounds=told.mean_rounds,
        max_rounds=told.most_rounds,
        score=score,
    )
    if told.durations:
        micros = round(told.mean_duration_s * 1_000_000)
        message.mean_duration.CopyFrom(Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000))
    return message


def _costs(costs: Costs) -> pb.CostStatistics:
    return pb.CostStatistics(
        runs=int(costs.weight),
        min_usd=costs.least_usd,
        median_usd=costs.median,
        mean_usd=costs.mean,
        max_usd=costs.most_usd,
    )

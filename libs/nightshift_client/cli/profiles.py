"""What runs cost and how they fared, and what that advises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightshift_client.cli.runs import ProjectOption
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command
from nightshift_client.cli.words import instant, label, short, table

if TYPE_CHECKING:
    from nightshift.experience.v1 import profiles_pb2

# `recommendations check` where something reaches the confidence; 0 where nothing does.
EXIT_ADVISED = 5
_CATEGORIES = ("mode", "rounds", "cost", "strategy")
_CONFIDENCES = ("low", "medium", "high")

ModeOption = Annotated[str, typer.Option("--mode", help="Mode that is set now.")]
StrategyOption = Annotated[str, typer.Option("--strategy", help="Prompt strategy that is set now.")]
RoundsOption = Annotated[int | None, typer.Option("--max-rounds", min=1, help="Limit of rounds now.")]
CostOption = Annotated[float | None, typer.Option("--max-cost", help="Limit of cost now, in US dollars.")]
LatestOption = Annotated[
    bool,
    typer.Option("--latest/--only-given", help="Fill the rest from the newest run that tells it."),
]
HalfLifeOption = Annotated[
    float | None, typer.Option("--half-life", help="Days at which an older run counts for half.")
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option("--rule", help="What if: NAME=VALUE, for example min_saving=0.3 or quality_weight=0.9."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "profile")(show_profile)
    group = typer.Typer(help="Advised changes of settings.", no_args_is_help=True)
    command(group, "list")(list_recommendations)
    command(group, "check")(check)
    command(group, "predict")(predict)
    app.add_typer(group, name="recommendations")


def show_profile(session: Session, project: ProjectOption = "default") -> None:
    """What a project's runs cost and how they fared, by mode and by strategy."""
    from nightshift.experience.v1 import profiles_pb2 as messages

    request = messages.GetProfileRequest(name=f"projects/{project}/profile")
    profile = session.call("experience", "GetProfile", request)
    if session.json:
        session.print_json(profile)
        return
    if not profile.runs:
        session.say("No run of this project tells a mode, a verdict, rounds or a cost.")
        _left_out(session, profile)
        return
    session.say(f"{profile.runs} runs, the newest of {instant(profile.last_run_time)}")
    if not profile.sufficient_data:
        session.say("Too few to say anything yet.")
    for title, groups, best in (
        ("mode", profile.modes, profile.preferred_mode),
        ("strategy", profile.strategies, profile.preferred_strategy),
        ("all", [profile.total], ""),
    ):
        if groups:
            session.show(_groups(title, groups, best))
    rounds = ", ".join(f"{entry.rounds}: {entry.runs}" for entry in profile.rounds_distribution)
    if rounds:
        session.say(f"Runs by rounds: {rounds}")
    if profile.trend.runs:
        session.say(f"Trend: {_trend(profile.trend)}")
    _left_out(session, profile)


def list_recommendations(
    session: Session,
    project: ProjectOption = "default",
    mode: ModeOption = "",
    strategy: StrategyOption = "",
    max_rounds: RoundsOption = None,
    max_cost: CostOption = None,
    latest: LatestOption = True,
    half_life: HalfLifeOption = None,
    rule: RuleOption = None,
) -> None:
    """Advised changes of what is set now, with what speaks for each."""
    request = _request(project, mode, strategy, max_rounds, max_cost, latest, half_life, rule or [])
    answer = session.call("experience", "ListRecommendations", request)
    if session.json:
        session.print_json(answer)
        return
    session.say(f"{answer.runs:.0f} runs; now {_settings(answer.settings)}")
    if not answer.recommendations:
        session.say("Nothing is advised.")
    for found in answer.recommendations:
        _show(session, found)


def check(
    session: Session,
    project: ProjectOption = "default",
    mode: ModeOption = "",
    strategy: StrategyOption = "",
    max_rounds: RoundsOption = None,
    max_cost: CostOption = None,
    latest: LatestOption = True,
    half_life: HalfLifeOption = None,
    rule: RuleOption = None,
    confidence: Annotated[
        str, typer.Option("--confidence", help="Least that counts: low, medium or high.")
    ] = "medium",
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Only these: mode, rounds, cost, strategy.")
    ] = None,
) -> None:
    """For CI: status 5 where something is advised with at least this confidence, 0 where nothing is."""
    if confidence not in _CONFIDENCES:
        raise CommandFailed(
            EXIT_USAGE, f"there is no confidence {confidence!r}", advice="low, medium or high"
        )
    wanted = category or list(_CATEGORIES)
    if unknown := [name for name in wanted if name not in _CATEGORIES]:
        raise CommandFailed(EXIT_USAGE, f"there is no category {unknown[0]!r}", advice=", ".join(_CATEGORIES))
    request = _request(project, mode, strategy, max_rounds, max_cost, latest, half_life, rule or [])
    answer = session.call("experience", "ListRecommendations", request)
    kept = [
        found
        for found in answer.recommendations
        if found.confidence >= _CONFIDENCES.index(confidence) + 1 and _category(found.category) in wanted
    ]
    del answer.recommendations[:]
    answer.recommendations.extend(kept)
    if session.json:
        session.print_json(answer)
    else:
        for found in kept:
            _show(session, found)
        session.say(f"{len(kept)} advised with at least {confidence} confidence")
    if kept:
        raise typer.Exit(EXIT_ADVISED)


def predict(
    session: Session,
    project: ProjectOption = "default",
    mode: ModeOption = "",
    strategy: StrategyOption = "",
    level: Annotated[float, typer.Option("--level", help="Probability of the interval.")] = 0.9,
) -> None:
    """What a run will cost, with an interval."""
    from nightshift.experience.v1 import profiles_pb2 as messages
    from nightshift.experience.v1 import resources_pb2

    request = messages.PredictRunCostRequest(
        parent=f"projects/{project}",
        settings=resources_pb2.RunSettings(mode=mode, strategy=strategy),
        level=level,
    )
    found = session.call("experience", "PredictRunCost", request)
    if session.json:
        session.print_json(found)
        return
    session.say(
        f"{_dollars(found.median_usd)}, with {found.level:.0%} between {_dollars(found.lower_usd)} and "
        f"{_dollars(found.upper_usd)} ({found.basis}, {found.runs} runs)"
    )
    if found.level < level - 0.005:
        session.say(f"{found.runs} runs allow no interval of {level:.0%}.")


def _request(
    project: str,
    mode: str,
    strategy: str,
    max_rounds: int | None,
    max_cost: float | None,
    latest: bool,
    half_life: float | None,
    rules: list[str],
) -> profiles_pb2.ListRecommendationsRequest:
    from nightshift.experience.v1 import profiles_pb2 as messages
    from nightshift.experience.v1 import resources_pb2

    request = messages.ListRecommendationsRequest(
        parent=f"projects/{project}",
        settings=resources_pb2.RunSettings(
            mode=mode, strategy=strategy, max_rounds=max_rounds, max_cost_usd=max_cost
        ),
        use_latest_run=latest,
    )
    if half_life is not None:
        request.half_life.FromNanoseconds(round(half_life * 86_400 * 1e9))
    for rule in rules:
        name, _, value = rule.partition("=")
        try:
            setattr(request.rules, name, int(value) if name == "min_runs" else float(value))
        except (AttributeError, ValueError, TypeError):
            names = ", ".join(field.name for field in messages.RecommendationRules.DESCRIPTOR.fields)
            raise CommandFailed(EXIT_USAGE, f"no rule: {rule}", advice=f"NAME=VALUE with {names}") from None
    return request


def _show(session: Session, found: profiles_pb2.Recommendation) -> None:
    from nightshift.experience.v1 import profiles_pb2 as messages

    sure = label(messages.Confidence.Name(found.confidence), "CONFIDENCE_")
    session.say(
        f"{_category(found.category)}: {found.current_value} → {found.recommended_value}  ({sure} confidence)"
    )
    session.say(f"  {found.explanation}")
    impact = found.estimated_impact
    parts = []
    if impact.HasField("cost_usd"):
        parts.append(f"{_dollars(impact.cost_usd, signed=True)} ({impact.cost_percent:+.0f} %)")
    if impact.HasField("quality_points"):
        parts.append(f"{impact.quality_points:+.0f} points of quality")
    if parts:
        session.say(f"  a run: {', '.join(parts)}")


def _category(number: int) -> str:
    from nightshift.experience.v1 import profiles_pb2 as messages

    name = messages.RecommendationCategory.Name(messages.RecommendationCategory.ValueType(number))
    return label(name, "RECOMMENDATION_CATEGORY_")


def _groups(title: str, groups: Any, best: str) -> Any:
    rows = [
        (
            group.key + (" ★" if group.key and group.key == best else ""),
            str(group.runs),
            f"{group.qa_pass_rate.value:.0%} of {group.qa_pass_rate.total}"
            if group.qa_pass_rate.total
            else "-",
            _dollars(group.cost.median_usd) if group.cost.runs else "-",
            f"{_dollars(group.cost.min_usd)}-{_dollars(group.cost.max_usd)}" if group.cost.runs else "-",
            f"{group.mean_duration.ToTimedelta().total_seconds():.0f} s"
            if group.HasField("mean_duration")
            else "-",
            f"{group.mean_rounds:.1f}" if group.max_rounds else "-",
            f"{group.score:.2f}" if group.HasField("score") else "-",
        )
        for group in groups
    ]
    columns = (
        title,
        ("runs", "right"),
        ("passed", "right"),
        ("median", "right"),
        ("from-to", "right"),
        ("took", "right"),
        ("rounds", "right"),
        ("score", "right"),
    )
    return table(*columns, rows=rows)


def _trend(trend: profiles_pb2.Trend) -> str:
    parts = []
    if trend.HasField("quality_change"):
        parts.append(f"{trend.quality_change * 100:+.0f} points of quality")
    if trend.HasField("cost_change"):
        parts.append(f"{trend.cost_change * 100:+.0f} % of cost")
    parts.append(f"better with {trend.better_probability:.0%}, worse with {trend.worse_probability:.0%}")
    return f"the newest {trend.runs} against {trend.runs} before: " + ", ".join(parts)


def _left_out(session: Session, profile: profiles_pb2.Profile) -> None:
    for reason in profile.left_out:
        session.say(f"Not counted: {reason.count} {reason.key}")
    for run in profile.left_out_runs:
        session.say(f"  {short(run.run)} {run.reason}")


def _settings(settings: Any) -> str:
    parts = [
        f"mode {settings.mode}" if settings.mode else "",
        f"strategy {settings.strategy}" if settings.strategy else "",
        f"at most {settings.max_rounds} rounds" if settings.HasField("max_rounds") else "",
        f"at most {_dollars(settings.max_cost_usd)}" if settings.HasField("max_cost_usd") else "",
    ]
    return ", ".join(part for part in parts if part) or "nothing is known to be set"


def _dollars(amount: float, *, signed: bool = False) -> str:
    sign = "-" if amount < 0 else "+" if signed else ""
    size = abs(amount)
    return f"{sign}${size:.2f}" if size >= 0.1 or size == 0 else f"{sign}${size:.3g}"

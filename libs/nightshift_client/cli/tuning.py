"""Auto-tune: what it may change, and what became of what it changed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nightshift_client.cli.acting import CommentOption, DryRunOption, YesOption, act
from nightshift_client.cli.runs import LimitOption, ProjectOption
from nightshift_client.cli.session import Session, command
from nightshift_client.cli.words import instant, label

EverywhereOption = Annotated[
    bool, typer.Option("--everywhere", help="The switch above all projects, instead of one project.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Settings that recommendations may change.", no_args_is_help=True)
    command(group, "show")(show)
    command(group, "set")(set_tuning)
    command(group, "outcomes")(outcomes)
    app.add_typer(group, name="tuning")


def show(session: Session, project: ProjectOption = "default", everywhere: EverywhereOption = False) -> None:
    """What may be tuned."""
    from nightshift.experience.v1 import profiles_pb2
    from nightshift.experience.v1 import tuning_pb2 as messages

    name = "tuning" if everywhere else f"projects/{project}/tuning"
    found = session.call("experience", "GetTuning", messages.GetTuningRequest(name=name))
    if session.json:
        session.print_json(found)
        return
    session.say(f"{found.name}: {'on' if found.enabled else 'off'}")
    if not everywhere:
        least = label(profiles_pb2.Confidence.Name(found.confidence_threshold), "CONFIDENCE_")
        careful = ", never low" if found.apply_safely else ""
        session.say(
            f"  from {least} confidence on{careful}, from {found.min_runs_for_recommendations} runs on"
        )
    if found.HasField("update_time"):
        session.say(f"  changed {instant(found.update_time)}")


def set_tuning(
    session: Session,
    project: ProjectOption = "default",
    everywhere: EverywhereOption = False,
    on: Annotated[bool | None, typer.Option("--on/--off", help="Whether anything is tuned.")] = None,
    safely: Annotated[
        bool | None, typer.Option("--safely/--unsafely", help="Never take over low confidence.")
    ] = None,
    min_runs: Annotated[
        int | None, typer.Option("--min-runs", min=1, help="Runs that there must be.")
    ] = None,
    confidence: Annotated[str, typer.Option("--confidence", help="Least: low, medium or high.")] = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    comment: CommentOption = "",
) -> None:
    """Say what may be tuned; takes an approver."""
    parameters: dict[str, Any] = {"everywhere": True} if everywhere else {"project": project}
    for name, value in (("enabled", on), ("apply_safely", safely), ("min_runs", min_runs)):
        if value is not None:
            parameters[name] = value
    if confidence:
        parameters["confidence"] = confidence
    act(session, "set_tuning", parameters, yes=yes, dry_run=dry_run, comment=comment)


def outcomes(session: Session, project: ProjectOption = "default", limit: LimitOption = 20) -> None:
    """What became of values that runs took over."""
    from nightshift.experience.v1 import tuning_pb2 as messages

    request = messages.ListTuningOutcomesRequest(parent=f"projects/{project}", page_size=limit)
    answer = session.call("experience", "ListTuningOutcomes", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.tuning_outcomes:
        session.say("No run took over a recommendation.")
    for found in answer.tuning_outcomes:
        state = label(messages.TuningState.Name(found.state), "TUNING_STATE_")
        session.say(f"{found.field}: {found.original_value} → {found.tuned_value}  ({state})")
        session.say(
            f"  {found.tuned.runs} runs with it, better with {found.better_probability:.0%}, "
            f"worse with {found.worse_probability:.0%}"
        )

"""Interception configs: how they fare, what is wrong with them, what they lack."""

from __future__ import annotations

from typing import Annotated

import typer

from nightshift_client.cli.acting import (
    CommentOption,
    DryRunOption,
    NoWaitOption,
    ProposeOption,
    YesOption,
    act,
)
from nightshift_client.cli.runs import performance
from nightshift_client.cli.session import Session, command, named
from nightshift_client.cli.words import instant, label, short, table

LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]
# A local model writes a few texts a second.
_DRAFT_TIMEOUT_S = 180.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Interception configs.", no_args_is_help=True)
    command(group, "performance")(performance)
    command(group, "validate")(validate)
    command(group, "reports")(reports)
    command(group, "translate")(translate)
    app.add_typer(group, name="configs")


def validate(session: Session, yes: YesOption = False, dry_run: DryRunOption = False) -> None:
    """Validate the configs that are new or changed (also done when the machine is idle)."""
    act(session, "validate_configs", {}, yes=yes, dry_run=dry_run)


def reports(
    session: Session,
    config: Annotated[str, typer.Argument(help="One config, with everything that was found.")] = "",
    limit: LimitOption = 100,
) -> None:
    """What the last validation found, and which languages are missing."""
    from nightshift.lab.v1 import lab_service_pb2 as messages
    from nightshift.lab.v1 import resources_pb2

    if config:
        answer = session.call(
            "lab", "GetConfigReport", messages.GetConfigReportRequest(name=named("configs", config))
        )
        if session.json:
            session.print_json(answer)
            return
        verdict = "valid" if answer.valid else "not valid"
        session.say(f"{answer.path} is {verdict} (looked at {instant(answer.validate_time)})")
        for finding in answer.findings:
            grave = label(resources_pb2.Severity.Name(finding.severity), "SEVERITY_")
            session.say(f"  {grave:<10} {finding.field or '-'}: {finding.reason}: {finding.message}")
        for missing in answer.missing:
            session.say(f"  missing    {missing.field}: {', '.join(missing.languages)}")
        return
    answer = session.call(
        "lab", "ListConfigReports", messages.ListConfigReportsRequest(page_size=min(limit, 1000))
    )
    if session.json:
        session.print_json(answer)
        return
    if not answer.config_reports:
        session.say("No report yet: nightshift configs validate")
        return
    rows = [
        (
            short(found.name),
            "yes" if found.valid else "no",
            str(len(found.findings)),
            ", ".join(sorted({language for one in found.missing for language in one.languages})) or "-",
        )
        for found in answer.config_reports
    ]
    session.show(table("config", "valid", "findings", "missing", rows=rows))


def translate(
    session: Session,
    config: Annotated[str, typer.Argument(help="Left out: the first config that lacks a language.")] = "",
    redraft: Annotated[
        bool, typer.Option("--redraft", help="Ask the language model anew instead of taking the kept draft.")
    ] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    propose: ProposeOption = False,
    comment: CommentOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Add the languages that a config's name, description and category lack, drafted by a model."""
    parameters: dict[str, object] = {"config": named("configs", config)} if config else {}
    if redraft:
        parameters["redraft"] = True
    act(
        session,
        "translate_configs",
        parameters,
        yes=yes,
        dry_run=dry_run,
        propose=propose,
        comment=comment,
        no_wait=no_wait,
        plan_timeout_s=_DRAFT_TIMEOUT_S,
    )

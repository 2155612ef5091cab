"""What happened: import, runs, configs, opportunities."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nightshift_client.cli.session import EXIT_FAILED, EXIT_USAGE, CommandFailed, Session, as_dict, command
from nightshift_client.cli.words import instant, label, one_line, short, table, visible

if TYPE_CHECKING:
    from nightshift.experience.v1 import resources_pb2

ProjectOption = Annotated[str, typer.Option("--project", help="Project.")]
FilterOption = Annotated[
    str,
    typer.Option("--filter", help='Terms joined by AND: production = true, language = "de", start_time >= …'),
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]
# A cold start of the embedding process took 6 s on two busy cores.
MODEL_START_S = 30.0
TokenOption = Annotated[str, typer.Option("--page-token", help="Go on after an earlier answer.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "import")(import_runs)
    runs = typer.Typer(help="Runs of the platform.", no_args_is_help=True)
    command(runs, "list")(list_runs)
    command(runs, "show")(show_run)
    command(runs, "search")(search_runs)
    command(runs, "export")(export_runs)
    app.add_typer(runs, name="runs")
    command(app, "opportunities")(opportunities)


def import_runs(
    session: Session,
    directory: Annotated[
        Path | None, typer.Argument(help="Folder that holds exports/json, or that folder itself.")
    ] = None,
    platform: Annotated[Path | None, typer.Option("--platform", help="Root of the platform's tree.")] = None,
    project: ProjectOption = "default",
    source: Annotated[str, typer.Option("--source", help="Importer; devserver where left out.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow the import that runs, begin none.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is begun; it goes on.")] = False,
) -> None:
    """Read a platform's exports; what is known and unchanged is passed over."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    parent = f"projects/{project}"
    if watch:
        listed = session.call(
            "experience", "ListImportJobs", messages.ListImportJobsRequest(parent=parent, page_size=1)
        )
        if not listed.import_jobs:
            raise CommandFailed(EXIT_FAILED, f"{parent} has no import")
        job = listed.import_jobs[0]
    elif directory is None:
        raise CommandFailed(EXIT_USAGE, "which folder?", advice="nightshift import DIR --platform DIR")
    else:
        request = messages.ImportRunsRequest(
            parent=parent,
            directory=str(directory.expanduser().absolute()),
            source=source,
            platform_root="" if platform is None else str(platform.expanduser().absolute()),
        )
        job = session.call("experience", "ImportRuns", request)
    if no_wait:
        if session.json:
            session.print_json(job)
        else:
            session.say(f"{job.name} has begun; follow it with: nightshift import --watch")
        return
    job = _watch_import(session, job)
    state = _import_state(job)
    if not session.json:
        _show_import(session, job)
    if state != "succeeded":
        if session.json:
            raise typer.Exit(EXIT_FAILED)
        raise CommandFailed(
            EXIT_FAILED, job.failure.message or f"the import was {state}", reason=job.failure.reason
        )


def list_runs(
    session: Session,
    project: ProjectOption = "default",
    filter_: FilterOption = "",
    limit: LimitOption = 20,
    page_token: TokenOption = "",
) -> None:
    """Runs, newest first."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    request = messages.ListRunsRequest(
        parent=f"projects/{project}", page_size=limit, page_token=page_token, filter=filter_
    )
    answer = session.call("experience", "ListRuns", request)
    if session.json:
        session.print_json(answer)
        return
    _show_runs(session, answer.runs)
    say_more(session, answer.next_page_token)


def show_run(
    session: Session, run: Annotated[str, typer.Argument(help="Run id.")], project: ProjectOption = "default"
) -> None:
    """One run with everything that is known of it."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    name = run if "/" in run else f"projects/{project}/runs/{run}"
    answer = session.call("experience", "GetRun", messages.GetRunRequest(name=name))
    show_message(session, answer)


def search_runs(
    session: Session,
    query: Annotated[str, typer.Argument(help="What to look for, in any language.")],
    project: ProjectOption = "default",
    mode: Annotated[str, typer.Option("--mode", help="semantic, text or hybrid.")] = "semantic",
    limit: LimitOption = 10,
    language: Annotated[str, typer.Option("--language", help="Only this language.")] = "",
    config: Annotated[str, typer.Option("--config", help="Only this interception config.")] = "",
) -> None:
    """Production runs near to words or meaning, best first."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    number = messages.SearchMode.keys()
    wanted = f"SEARCH_MODE_{mode.upper()}"
    if wanted not in number:
        raise CommandFailed(EXIT_USAGE, f"there is no mode {mode!r}", advice="semantic, text or hybrid")
    request = messages.SearchRunsRequest(
        parent=f"projects/{project}",
        query=query,
        mode=messages.SearchMode.Value(wanted),
        page_size=limit,
        language=language,
        interception_config=config,
    )
    answer = _search(session, request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.hits:
        session.say("Nothing is near.")
    rows = [
        (f"{hit.score:.3f}", hit.run.language, hit.run.interception_config, one_line(hit.run.prompt, 200))
        for hit in answer.hits
    ]
    if rows:
        session.show(table(("score", "right"), "lang", "config", "prompt", rows=rows))
    if answer.pending_count:
        session.say(
            f"{answer.pending_count} prompts are not embedded yet. That happens by itself while nobody uses"
            " the machine (nightshift status); --mode text needs no embedding."
        )


def export_runs(
    session: Session,
    project: ProjectOption = "default",
    filter_: FilterOption = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; stdout where left out.")
    ] = None,
) -> None:
    """All runs as JSON Lines."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    count = 0
    file = sys.stdout if output is None else output.open("w", encoding="utf-8")
    try:
        request = messages.ExportRunsRequest(parent=f"projects/{project}", filter=filter_)
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.completed} runs"),
            console=session.errors,
            transient=True,
            disable=not session.lively,
        ) as bar:
            task = bar.add_task("", total=None)
            for batch in session.stream("experience", "ExportRuns", request):
                for run in batch.runs:
                    file.write(json.dumps(as_dict(run), ensure_ascii=True) + "\n")
                count += len(batch.runs)
                bar.update(task, completed=count)
        file.flush()
    finally:
        if output is not None:
            file.close()
    if output is not None and not session.json:
        session.say(f"{count} runs in {output}")


def performance(
    session: Session,
    project: ProjectOption = "default",
    since: Annotated[datetime | None, typer.Option("--since", help="Only runs from then on.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Only runs before then.")] = None,
    limit: LimitOption = 50,
    page_token: TokenOption = "",
) -> None:
    """How interception configs fare: rates of production runs with their 95 % intervals."""
    from nightshift.experience.v1 import experience_service_pb2 as messages

    request = messages.ListConfigPerformanceRequest(
        parent=f"projects/{project}", page_size=limit, page_token=page_token
    )
    if since is not None:
        request.start_time.FromDatetime(since.astimezone())
    if until is not None:
        request.end_time.FromDatetime(until.astimezone())
    answer = session.call("experience", "ListConfigPerformance", request)
    if session.json:
        session.print_json(answer)
        return
    rows = [
        (
            row.config,
            str(row.production_runs),
            _rate(row.favorite_rate),
            _rate(row.error_rate),
            _rate(row.block_rate),
            f"{row.avg_regenerations:.2f}",
        )
        for row in answer.config_performance
    ]
    columns = (
        "config",
        ("runs", "right"),
        ("favourites", "right"),
        ("errors", "right"),
        ("blocked", "right"),
        ("again", "right"),
    )
    if rows:
        session.show(table(*columns, rows=rows))
    else:
        session.say("No production run: nightshift import DIR --platform DIR")
    say_more(session, answer.next_page_token)


def opportunities(session: Session, project: ProjectOption = "default", limit: LimitOption = 20) -> None:
    """What experience suggests to improve, best first."""
    from nightshift.experience.v1 import experience_service_pb2 as messages
    from nightshift.experience.v1 import resources_pb2

    request = messages.ListOpportunitiesRequest(parent=f"projects/{project}", page_size=limit)
    answer = session.call("experience", "ListOpportunities", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.opportunities:
        session.say("None is known; look for some with: nightshift skills run detect_opportunities")
    for found in answer.opportunities:
        kind = label(resources_pb2.OpportunityKind.Name(found.kind), "OPPORTUNITY_KIND_")
        session.say(f"{kind}: {found.label}  (score {found.score:.2f}, {found.runs} runs)")
        session.say(f"  {found.name}")
        session.say(f"  {found.explanation}")
        for prompt in found.example_prompts[:3]:
            session.say(f"  “{one_line(prompt, 70)}”")


def show_message(session: Session, message: Any) -> None:
    """One resource: JSON, or its set fields one a line."""
    if session.json:
        session.print_json(message)
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            shown = instant(value)
        elif field.enum_type is not None and not field.is_repeated:
            known = field.enum_type.values_by_number.get(value)
            shown = known.name if known is not None else str(value)
        elif field.message_type is not None or field.is_repeated:
            part = as_dict(message).get(field.name)
            shown = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        else:
            shown = str(value)
        session.say(f"{field.name:<20} {shown}")


def _watch_import(session: Session, job: Any) -> Any:
    from nightshift.experience.v1 import experience_service_pb2 as messages

    columns = (
        SpinnerColumn(),
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    request = messages.WatchImportJobRequest(name=job.name)
    with Progress(*columns, console=session.errors, transient=True, disable=not session.lively) as bar:
        task = bar.add_task("", total=None, rate="")
        try:
            for message in session.stream("experience", "WatchImportJob", request):
                job = message.import_job
                if session.json:
                    session.print_json(message, compact=True)
                speed = bar.tasks[0].speed
                rate = f"{speed:,.0f} runs/s" if speed else ""
                bar.update(task, completed=job.scanned_count, total=job.found_count or None, rate=rate)
        except KeyboardInterrupt:
            bar.stop()
            session.errors.print(f"{job.name} goes on; follow it with: nightshift import --watch")
            raise
    return job


def _show_import(session: Session, job: resources_pb2.ImportJob) -> None:
    session.say(f"{job.name}: {_import_state(job)}")
    session.say(
        f"  {job.scanned_count} looked at: {job.created_count} new, {job.updated_count} changed, "
        f"{job.unchanged_count} unchanged, {job.skipped_count} skipped"
    )
    session.say(f"  {job.favorite_count} favourites, {job.dangling_favorite_count} of runs that do not exist")
    if not job.scanned_count:
        session.say("  No run lies there: name the folder that holds exports/json.")
    for reason in job.skipped_reasons:
        session.say(f"  skipped {reason.count:>6}  {reason.key}")


def _import_state(job: resources_pb2.ImportJob) -> str:
    from nightshift.experience.v1 import resources_pb2

    return label(resources_pb2.ImportJobState.Name(job.state), "IMPORT_JOB_STATE_")


def _search(session: Session, request: Any) -> Any:
    """Searches; waits for the embedding process where it is only starting."""
    deadline = time.monotonic() + (session.timeout_s or MODEL_START_S)
    columns = (SpinnerColumn(), TextColumn("the embedding process starts"), TimeElapsedColumn())
    with Progress(*columns, console=session.errors, transient=True, disable=not session.lively) as bar:
        shown = False
        while True:
            try:
                return session.call("experience", "SearchRuns", request)
            except CommandFailed as error:
                if error.reason != "MODEL_UNAVAILABLE" or time.monotonic() > deadline:
                    raise
            if not shown:
                bar.add_task("", total=None)
                shown = True
            time.sleep(0.5)


def _show_runs(session: Session, runs: Any) -> None:
    """Two lines a run, so that names can be copied whole."""
    from nightshift.experience.v1 import resources_pb2

    if not runs:
        session.say("No run: nightshift import DIR --platform DIR")
    for run in runs:
        outcome = label(resources_pb2.RunOutcome.Name(run.outcome), "RUN_OUTCOME_")
        config = run.interception_config + ("  ★" if run.favorite else "")
        session.say(f"{instant(run.start_time)}  {short(run.name):<24}  {outcome:<10}  {config}")
        session.say(f"  {one_line(run.prompt, 76)}")


def _rate(rate: resources_pb2.Rate) -> str:
    return f"{rate.value:.0%} [{rate.lower:.0%}-{rate.upper:.0%}]" if rate.total else "-"


def say_more(session: Session, token: str) -> None:
    """How to see the next page, where there is one."""
    if token:
        session.errors.print(visible(f"There are more: --page-token {token}"), soft_wrap=True)

"""What users were after: sessions, and days in words."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from nightshift_client.cli.runs import LimitOption, ProjectOption, TokenOption, say_more
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command
from nightshift_client.cli.words import instant, label, table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    sessions = typer.Typer(help="Sessions of users, and what they were after.", no_args_is_help=True)
    command(sessions, "list")(list_sessions)
    command(sessions, "show")(show_session)
    command(sessions, "days")(list_days)
    app.add_typer(sessions, name="sessions")


def list_sessions(
    session: Session,
    project: ProjectOption = "default",
    mode: Annotated[str, typer.Option("--mode", help="Only these: exploration, aesthetic_search, …")] = "",
    since: Annotated[datetime | None, typer.Option("--since", help="Only sessions from then on.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Only sessions before then.")] = None,
    limit: LimitOption = 20,
    page_token: TokenOption = "",
) -> None:
    """Sessions of production devices, newest first."""
    from nightshift.experience.v1 import sessions_pb2 as messages

    request = messages.ListSessionsRequest(
        parent=f"projects/{project}", page_size=limit, page_token=page_token
    )
    if mode:
        wanted = f"ENGAGEMENT_MODE_{mode.upper().replace('-', '_')}"
        known = messages.EngagementMode.keys()[1:]
        if wanted not in known:
            names = ", ".join(label(name, "ENGAGEMENT_MODE_") for name in known)
            raise CommandFailed(EXIT_USAGE, f"there is no mode {mode!r}", advice=names)
        request.mode = messages.EngagementMode.Value(wanted)
    if since is not None:
        request.start_time.FromDatetime(since.astimezone())
    if until is not None:
        request.end_time.FromDatetime(until.astimezone())
    answer = session.call("experience", "ListSessions", request)
    if session.json:
        session.print_json(answer)
        return
    rows = [
        (
            instant(found.start_time),
            found.name.rpartition("/")[2],
            str(found.run_count),
            label(messages.EngagementMode.Name(found.modes[0].mode), "ENGAGEMENT_MODE_"),
            f"{found.modes[0].probability:.0%}",
            found.languages[0].key if found.languages else "",
            found.configs[0].key if found.configs else "",
        )
        for found in answer.sessions
    ]
    if rows:
        columns = ("begun", "session", ("runs", "right"), "mode", ("sure", "right"), "lang", "config")
        session.show(table(*columns, rows=rows))
    else:
        session.say("None is known. That happens by itself while nobody uses the machine, or with:")
        session.say("nightshift skills run summarize_sessions")
    say_more(session, answer.next_page_token)


def show_session(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="SESSION", help="Session id.")],
    project: ProjectOption = "default",
) -> None:
    """One session: its modes, and the evidence for each."""
    from nightshift.experience.v1 import sessions_pb2 as messages

    full = name if "/" in name else f"projects/{project}/sessions/{name}"
    found = session.call("experience", "GetSession", messages.GetSessionRequest(name=full))
    if session.json:
        session.print_json(found)
        return
    session.say(
        f"{instant(found.start_time)} to {instant(found.end_time)}: {found.run_count} runs, "
        f"{found.distinct_prompt_count} prompts, {found.favorite_count} favourites, "
        f"{found.regeneration_count} made again, {found.blocked_count} blocked, {found.failed_count} failed"
    )
    for one in found.modes:
        mode = label(messages.EngagementMode.Name(one.mode), "ENGAGEMENT_MODE_")
        session.say(f"{one.probability:>4.0%}  {mode}")
        if one.probability < 0.1:
            continue
        for evidence in one.evidence:
            session.say(f"      {evidence.strength:>4.0%}  {evidence.text}")


def list_days(
    session: Session,
    project: ProjectOption = "default",
    limit: LimitOption = 14,
    page_token: TokenOption = "",
) -> None:
    """Days in words, newest first."""
    from nightshift.experience.v1 import sessions_pb2 as messages

    request = messages.ListDailySummariesRequest(
        parent=f"projects/{project}", page_size=limit, page_token=page_token
    )
    answer = session.call("experience", "ListDailySummaries", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.daily_summaries:
        session.say("None yet: nightshift skills run summarize_sessions")
    for day in answer.daily_summaries:
        session.say(f"{day.name.rpartition('/')[2]}  {day.text}")
    say_more(session, answer.next_page_token)

"""What is true now: activity and probes."""

from __future__ import annotations

from typing import Annotated

import typer

from nightshift_client.cli.profile import show_hours, show_profile
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command, named
from nightshift_client.cli.words import ago, instant, label, seconds_of, short, span, table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "activity")(activity)
    command(app, "probes")(probes)


def activity(
    session: Session,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the changes.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="How likely users are in each hour of the week.")
    ] = False,
    hours: Annotated[int, typer.Option("--hours", min=0, help="The last hours with activity, so many.")] = 0,
) -> None:
    """Whether the machine counts as idle, and why (not); when users are usually there."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages

    if sum((watch, profile, bool(hours))) > 1:
        raise CommandFailed(EXIT_USAGE, "--watch, --profile and --hours are three questions: ask one")
    if profile or hours:
        answer = (
            session.call("monitor", "GetActivityProfile", messages.GetActivityProfileRequest())
            if profile
            else session.call("monitor", "ListActivity", messages.ListActivityRequest(page_size=hours))
        )
        if session.json:
            session.print_json(answer)
        elif profile:
            show_profile(session, answer)
        else:
            show_hours(session, answer)
        return
    if not watch:
        answer = session.call("monitor", "GetIdleness", messages.GetIdlenessRequest())
        if session.json:
            session.print_json(answer)
        else:
            _show(session, answer)
        return
    shown: object = None
    for message in session.stream("monitor", "WatchStatus", messages.WatchStatusRequest()):
        if session.json:
            session.print_json(message, compact=True)
        elif not message.keep_alive:
            idleness = message.status.idleness
            # Counters move with each second; the verdict and its reasons are the news.
            verdict = idleness.idle, [(reason.code, reason.allows_idle) for reason in idleness.reasons]
            if verdict != shown:
                _show(session, idleness)
            shown = verdict


def probes(
    session: Session,
    probe: Annotated[str, typer.Argument(help="Only this one.")] = "",
    run: Annotated[bool, typer.Option("--run", help="Look now.")] = False,
    history: Annotated[int, typer.Option("--history", min=0, help="Show the last answers, too.")] = 0,
) -> None:
    """What is looked at, and what was seen."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages
    from nightshift.monitor.v1 import resources_pb2

    name = named("probes", probe) if probe else ""
    if name and run:
        answer = session.call("monitor", "RunProbe", messages.RunProbeRequest(name=name), timeout_s=65)
        results = [answer]
    elif name and history:
        answer = session.call(
            "monitor", "ListProbeResults", messages.ListProbeResultsRequest(parent=name, page_size=history)
        )
        results = list(answer.probe_results)
    elif name:
        answer = session.call("monitor", "GetProbe", messages.GetProbeRequest(name=name))
        results = [answer.latest]
    else:
        answer = session.call("monitor", "ListProbes", messages.ListProbesRequest(page_size=1000))
        results = []
    if session.json:
        session.print_json(answer)
        return

    def state(result: resources_pb2.ProbeResult) -> str:
        return label(resources_pb2.ProbeState.Name(result.state), "PROBE_STATE_")

    if name:
        rows = [
            (instant(result.probe_time), state(result), span(seconds_of(result.latency)), result.detail)
            for result in results
        ]
        session.show(table("when", "state", ("took", "right"), "seen", rows=rows))
        return
    listed = [
        (
            short(each.name) + (" *" if each.platform else ""),
            state(each.latest),
            ago(each.latest.probe_time),
            each.latest.detail,
        )
        for each in answer.probes
    ]
    session.show(table("probe", "state", "looked", "seen", rows=listed))
    if any(each.platform for each in answer.probes):
        session.say("* the platform counts as gone when this one is down")


def _show(session: Session, idleness: object) -> None:
    from nightshift.monitor.v1 import resources_pb2

    assert isinstance(idleness, resources_pb2.Idleness)
    session.say(f"{'idle' if idleness.idle else 'not idle'}, since {ago(idleness.since_time)}")
    session.say(f"  last activity {ago(idleness.last_activity_time)}")
    if idleness.HasField("predicted_busy_time"):
        session.say(f"  users are next expected {instant(idleness.predicted_busy_time)}")
    for reason in idleness.reasons:
        session.say(f"  {'+' if reason.allows_idle else '-'} {reason.code:<17} {reason.message}")

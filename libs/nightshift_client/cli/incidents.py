"""Incidents: what went wrong for longer than a glitch, and a person's word on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command, named
from nightshift_client.cli.words import ago, instant, label, one_line, short, who

if TYPE_CHECKING:
    from nightshift.monitor.v1 import resources_pb2

IncidentArgument = Annotated[str, typer.Argument(help="Incident (nightshift incidents list).")]
CommentOption = Annotated[str, typer.Option("--comment", help="A word on it, kept with the incident.")]
STATES = ("open", "acknowledged", "resolved")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="What went wrong for longer than a glitch.", no_args_is_help=True)
    command(group, "list")(list_incidents)
    command(group, "show")(show_incident)
    command(group, "ack")(acknowledge)
    command(group, "resolve")(resolve)
    app.add_typer(group, name="incidents")


def list_incidents(
    session: Session,
    state: Annotated[
        str, typer.Option("--state", help="open, acknowledged, resolved, unresolved or all.")
    ] = "unresolved",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
    page_token: Annotated[str, typer.Option("--page-token", help="Go on after an earlier answer.")] = "",
) -> None:
    """Incidents, newest first."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages
    from nightshift.monitor.v1 import resources_pb2

    chosen = {"unresolved": STATES[:2], "all": (), **{each: (each,) for each in STATES}}
    if state not in chosen:
        raise CommandFailed(EXIT_USAGE, f"there is no state {state!r}", advice=", ".join(chosen))
    wanted = [resources_pb2.IncidentState.Value(f"INCIDENT_STATE_{each.upper()}") for each in chosen[state]]
    request = messages.ListIncidentsRequest(page_size=limit, page_token=page_token, states=wanted)
    answer = session.call("monitor", "ListIncidents", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.incidents:
        session.say("Nothing is wrong." if state == "unresolved" else "None.")
        return
    for incident in answer.incidents:
        flaps = f", {incident.flap_count} flaps" if incident.flap_count else ""
        began = f"{_worst(incident)}, began {ago(incident.start_time)}{flaps}"
        session.say(f"{short(incident.probe):<22} {_state(incident)}, {began}")
        session.say(f"  {incident.name}")
        session.say(f"  {one_line(incident.detail)}")
    if answer.next_page_token:
        session.errors.print(f"There are more: --page-token {answer.next_page_token}", soft_wrap=True)


def show_incident(session: Session, incident: IncidentArgument) -> None:
    """One incident in full."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages

    request = messages.GetIncidentRequest(name=named("incidents", incident))
    _show(session, session.call("monitor", "GetIncident", request))


def acknowledge(session: Session, incident: IncidentArgument, comment: CommentOption = "") -> None:
    """Say that you have seen it."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages

    request = messages.AcknowledgeIncidentRequest(name=named("incidents", incident), comment=comment)
    _show(session, session.call("monitor", "AcknowledgeIncident", request))


def resolve(session: Session, incident: IncidentArgument, comment: CommentOption = "") -> None:
    """Close it; a probe that stays bad opens another one."""
    from nightshift.monitor.v1 import monitor_service_pb2 as messages

    request = messages.ResolveIncidentRequest(name=named("incidents", incident), comment=comment)
    _show(session, session.call("monitor", "ResolveIncident", request))


def _show(session: Session, incident: Any) -> None:
    if session.json:
        session.print_json(incident)
        return
    session.say(f"{incident.name} is {_state(incident)}")
    session.say(f"  probe         {short(incident.probe)}, at worst {_worst(incident)}")
    session.say(f"  seen          {one_line(incident.detail)}")
    session.say(f"  began         {instant(incident.start_time)}")
    session.say(f"  last bad      {instant(incident.last_bad_time)}, {incident.flap_count} flaps")
    if incident.acknowledger:
        word = f": {one_line(incident.acknowledge_comment)}" if incident.acknowledge_comment else ""
        session.say(
            f"  acknowledged  {instant(incident.acknowledge_time)} by {who(incident.acknowledger)}{word}"
        )
    if incident.HasField("resolve_time"):
        by = f" by {who(incident.resolver)}" if incident.resolver else ""
        word = f": {one_line(incident.resolve_comment)}" if incident.resolve_comment else ""
        session.say(f"  resolved      {instant(incident.resolve_time)}{by}{word}")


def _state(incident: resources_pb2.Incident) -> str:
    from nightshift.monitor.v1 import resources_pb2

    return label(resources_pb2.IncidentState.Name(incident.state), "INCIDENT_STATE_")


def _worst(incident: resources_pb2.Incident) -> str:
    from nightshift.monitor.v1 import resources_pb2

    return label(resources_pb2.ProbeState.Name(incident.worst_state), "PROBE_STATE_")

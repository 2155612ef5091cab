"""Proof and the brake: the audit log, the global lock."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nightshift_client.cli.session import EXIT_FAILED, CommandFailed, Session, command
from nightshift_client.cli.words import instant, who

CommentArgument = Annotated[str, typer.Argument(help="Why.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="The sealed log of every decision and effect.", no_args_is_help=True)
    command(group, "list")(list_events)
    command(group, "verify")(verify)
    app.add_typer(group, name="audit")
    command(app, "lock")(lock)
    command(app, "unlock")(unlock)


def list_events(
    session: Session,
    kind: Annotated[str, typer.Option("--kind", help='Only kinds that begin with this ("approval.").')] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
    page_token: Annotated[str, typer.Option("--page-token", help="Go on after an earlier answer.")] = "",
) -> None:
    """Events, oldest first."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    request = messages.ListAuditEventsRequest(page_size=limit, page_token=page_token, kind_prefix=kind)
    answer = session.call("skills", "ListAuditEvents", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.audit_events:
        session.say("No event.")
    for event in answer.audit_events:
        session.say(f"{event.seq:>6}  {instant(event.event_time)}  {event.kind:<22} {event.subject}")
        session.say(f"        by {who(event.actor)} ({event.source})")
    if answer.next_page_token:
        session.errors.print(f"There are more: --page-token {answer.next_page_token}", soft_wrap=True)


def verify(session: Session) -> None:
    """Check the chain, its signed checkpoints and the services' outboxes."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call("skills", "VerifyAudit", messages.VerifyAuditRequest(), timeout_s=120)
    if session.json:
        session.print_json(answer)
        if not answer.valid:
            raise typer.Exit(EXIT_FAILED)
        return
    if not answer.valid:
        raise CommandFailed(
            EXIT_FAILED,
            f"the audit log is broken at event {answer.first_bad_seq}: {answer.detail}",
            reason="AUDIT_BROKEN",
            advice="Keep the databases and audit/checkpoints.jsonl as they are; find out who touched them.",
        )
    session.say(f"{answer.event_count} events and {answer.checkpoint_count} signed checkpoints verify.")
    if answer.unsealed_count:
        session.say(f"{answer.unsealed_count} events are not sealed yet.")
    for service in answer.unreachable:
        session.say(f"{service} could not be asked.")


def lock(session: Session, comment: CommentArgument = "") -> None:
    """Stop all autonomous effects at once; an admin lifts it."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    _show(session, session.call("skills", "EngageLock", messages.EngageLockRequest(comment=comment)))


def unlock(session: Session, comment: CommentArgument = "") -> None:
    """Lift the global lock."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    _show(session, session.call("skills", "ReleaseLock", messages.ReleaseLockRequest(comment=comment)))


def _show(session: Session, lock_now: Any) -> None:
    if session.json:
        session.print_json(lock_now)
    elif lock_now.engaged:
        session.say(f"The lock is on since {instant(lock_now.change_time)}, by {who(lock_now.actor)}.")
    else:
        session.say(f"The lock is off since {instant(lock_now.change_time)}, by {who(lock_now.actor)}.")

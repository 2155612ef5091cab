"""Proof and the brake: the audit log, the global lock."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nightshift_client.cli.plane import need_kit
from nightshift_client.cli.session import EXIT_FAILED, EXIT_USAGE, CommandFailed, Session, command
from nightshift_client.cli.words import instant, who

CommentArgument = Annotated[str, typer.Argument(help="Why.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="The sealed log of every decision and effect.", no_args_is_help=True)
    command(group, "list")(list_events)
    command(group, "verify")(verify)
    command(group, "export")(export)
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


def verify(
    session: Session,
    file: Annotated[
        Path | None, typer.Option("--file", help="Check an exported file instead, without a plane.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option("--checkpoints", help="Signed checkpoints that the file must reach (with --file)."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Audit key of the plane (HOME/keys/audit.pub).")
    ] = None,
) -> None:
    """Check the chain, its signed checkpoints, their copy and the services' outboxes."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    if file is not None:
        _verify_file(session, file, checkpoints, public_key)
        return
    if checkpoints is not None or public_key is not None:
        raise CommandFailed(EXIT_USAGE, "--checkpoints and --public-key go with --file")
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
    if answer.copied_checkpoint_count:
        session.say(f"{answer.copied_checkpoint_count} checkpoints lie in the second place, too.")
    if answer.copy_problem:
        session.say(f"The second place of the checkpoints: {answer.copy_problem}")
    if answer.unsealed_count:
        session.say(f"{answer.unsealed_count} events are not sealed yet.")
    for service in answer.unreachable:
        session.say(f"{service} could not be asked.")


def export(
    session: Session,
    file: Annotated[Path, typer.Argument(help="Where to; must not be there yet.")],
) -> None:
    """Write the whole chain as JSON Lines; check it anywhere with: nightshift audit verify --file."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    digest, count = hashlib.sha256(), 0
    columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        # Linked into place at the end: what lies under the name is whole, and nothing is overwritten.
        with (
            os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out,
            Progress(*columns, console=session.errors, transient=True, disable=session.json) as progress,
        ):
            bar = progress.add_task("events", total=None)
            token = ""
            while True:
                request = messages.ListAuditEventsRequest(page_size=1000, page_token=token, with_lines=True)
                answer = session.call("skills", "ListAuditEvents", request)
                for event in answer.audit_events:
                    line = event.line.encode() + b"\n"
                    digest.update(line)
                    out.write(line)
                count += len(answer.audit_events)
                progress.update(bar, completed=count, total=answer.last_seq)
                token = answer.next_page_token
                if not token:
                    break
            out.flush()
            os.fsync(out.fileno())
        os.link(partial, file)
    except FileExistsError as error:
        raise CommandFailed(EXIT_USAGE, f"{file} is there already") from error
    except OSError as error:
        raise CommandFailed(EXIT_FAILED, f"{file} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    if session.json:
        session.print_json({"file": str(file), "event_count": count, "sha256": digest.hexdigest()})
    else:
        session.say(f"{count} events are in {file}.")
        session.say(f"sha256 {digest.hexdigest()}")


def _verify_file(session: Session, file: Path, checkpoints: Path | None, public_key: Path | None) -> None:
    """Checks an exported file; needs no plane, only its public key where checkpoints are given."""
    need_kit("check an exported file")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from nightshift_kit.audit.checkpoints import Checkpoints
    from nightshift_kit.audit.export import verify_export
    from nightshift_kit.errors import NightshiftError

    marks = []
    try:
        if checkpoints is not None:
            path = public_key or session.home.path / "keys" / "audit.pub"
            key = load_pem_public_key(path.read_bytes())
            if not isinstance(key, Ed25519PublicKey):
                raise CommandFailed(EXIT_USAGE, f"{path} is no Ed25519 key")
            if not checkpoints.is_file():
                raise CommandFailed(EXIT_USAGE, f"there is no file {checkpoints}")
            marks = Checkpoints(checkpoints, key).read()
        with file.open("rb") as lines:
            found = verify_export(lines, marks)
    except NightshiftError as error:
        raise CommandFailed(EXIT_FAILED, f"{checkpoints}: {error.message}", reason=error.reason) from error
    except OSError as error:
        raise CommandFailed(EXIT_USAGE, f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CommandFailed(EXIT_USAGE, f"{public_key or 'the audit key'} is no PEM key") from error
    if session.json:
        session.print_json(
            {
                "valid": found.valid,
                "event_count": found.event_count,
                "checkpoint_count": found.checkpoint_count,
                "first_bad_seq": found.first_bad_seq,
                "detail": found.detail,
            }
        )
        if not found.valid:
            raise typer.Exit(EXIT_FAILED)
        return
    if not found.valid:
        advice = "Checkpoints must be as old as the export, or older." if "cut off" in found.detail else ""
        raise CommandFailed(
            EXIT_FAILED,
            f"{file} is broken at event {found.first_bad_seq}: {found.detail}",
            reason="AUDIT_BROKEN",
            advice=advice,
        )
    session.say(f"{found.event_count} events and {found.checkpoint_count} signed checkpoints verify.")
    if checkpoints is None:
        session.say("No checkpoints were given: a tail that was cut off would not show.")


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

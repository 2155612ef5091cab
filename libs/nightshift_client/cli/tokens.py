"""Local tokens: who a person on this machine is, where no certificate says it."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command, named
from nightshift_client.cli.words import instant, label, who

ROLES = ("viewer", "approver", "admin")
_SPAN = re.compile(r"(\d{1,6})([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Tokens of persons who have no certificate here.", no_args_is_help=True)
    command(group, "create")(create)
    command(group, "list")(list_tokens)
    command(group, "revoke")(revoke)
    app.add_typer(group, name="tokens")


def create(
    session: Session,
    person: Annotated[str, typer.Argument(help="Whom it is for; the same name as in their certificate.")],
    role: Annotated[str, typer.Option("--role", help="viewer, approver or admin.")] = "viewer",
    expires: Annotated[str, typer.Option("--expires", help="After 30m, 12h or 7d; at most 90d.")] = "12h",
    name: Annotated[str, typer.Option("--name", help="What to call it (laptop).")] = "",
    file: Annotated[
        Path | None, typer.Option("--file", help="Write it there, for its owner alone, and do not show it.")
    ] = None,
) -> None:
    """Issue a token; takes an admin with a certificate. It is told this once."""
    from nightshift.skills.v1 import tokens_service_pb2 as messages

    if role not in ROLES:
        raise CommandFailed(EXIT_USAGE, f"there is no role {role!r}", advice=", ".join(ROLES))
    request = messages.CreateTokenRequest(
        person=person, role=messages.PersonRole.Value(f"PERSON_ROLE_{role.upper()}"), display_name=name
    )
    request.ttl.FromTimedelta(_span(expires))
    # Opened first: a token that nobody can keep must not be issued.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600) if file is not None else None
    try:
        answer = session.call("skills", "CreateToken", request, stub="TokensService")
        if descriptor is not None:
            os.write(descriptor, f"{answer.secret}\n".encode())
            os.fsync(descriptor)
            answer.ClearField("secret")
    except BaseException:
        if file is not None:
            file.unlink(missing_ok=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if session.json:
        session.print_json(answer)
        return
    _line(session, answer.token)
    if file is not None:
        session.say(f"It is in {file}; its person sets NIGHTSHIFT_CLIENT_TOKEN_FILE to that.")
        return
    session.say("It is shown this once. Its person keeps it in a file that nobody else can read, and sets")
    session.say("NIGHTSHIFT_CLIENT_TOKEN_FILE to that:")
    session.say(answer.secret)


def list_tokens(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
) -> None:
    """Tokens, newest first: all for an admin, your own otherwise."""
    from nightshift.skills.v1 import tokens_service_pb2 as messages

    request = messages.ListTokensRequest(page_size=limit, active_only=not everything)
    answer = session.call("skills", "ListTokens", request, stub="TokensService")
    if session.json:
        session.print_json(answer)
        return
    if not answer.tokens:
        session.say("None." if everything else "None is good now.")
    for token in answer.tokens:
        _line(session, token)


def revoke(
    session: Session, token: Annotated[str, typer.Argument(help="Token (nightshift tokens list).")]
) -> None:
    """Take one back, at once and for good: your own, or any as an admin."""
    from nightshift.skills.v1 import tokens_service_pb2 as messages

    request = messages.RevokeTokenRequest(name=named("tokens", token))
    answer = session.call("skills", "RevokeToken", request, stub="TokensService")
    if session.json:
        session.print_json(answer)
    else:
        _line(session, answer)


def _line(session: Session, token: Any) -> None:
    from nightshift.skills.v1 import tokens_service_pb2 as messages

    state = label(messages.LocalTokenState.Name(token.state), "LOCAL_TOKEN_STATE_")
    role = label(messages.PersonRole.Name(token.role), "PERSON_ROLE_")
    called = f" ({token.display_name})" if token.display_name else ""
    session.say(f"{token.name}{called}")
    session.say(
        f"  {token.person} as {role}: {state}, until {instant(token.expire_time)}, by {who(token.issuer)}"
    )
    if token.revoker:
        session.say(f"  revoked {instant(token.revoke_time)} by {who(token.revoker)}")


def _span(text: str) -> timedelta:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise CommandFailed(EXIT_USAGE, f"{text!r} is no span of time", advice="Say 30m, 12h or 7d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})

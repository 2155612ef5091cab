"""What the plane may do without asking: standing approvals, and the way back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nightshift_client.cli.acting import CommentOption, DryRunOption, YesOption, act
from nightshift_client.cli.session import Session, command, named
from nightshift_client.cli.words import instant, label, short, who

StandingArgument = Annotated[str, typer.Argument(help="Standing approval (nightshift autonomy list).")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="What the plane may do without asking.", no_args_is_help=True)
    command(group, "show")(show)
    command(group, "set")(set_autonomy)
    command(group, "manual-only")(manual_only)
    command(group, "list")(list_standing)
    command(group, "revoke")(revoke)
    app.add_typer(group, name="autonomy")


def show(
    session: Session,
    skill: Annotated[str, typer.Argument(help="Also say whether this skill could be delegated.")] = "",
) -> None:
    """The mode, and the standing approvals in force."""
    from nightshift.skills.v1 import autonomy_service_pb2 as messages

    request = messages.GetAutonomyRequest(skill=named("skills", skill) if skill else "")
    _show(session, session.call("skills", "GetAutonomy", request, stub="AutonomyService"))


def set_autonomy(
    session: Session,
    skill: Annotated[str, typer.Argument(help="Skill that need not ask any more.")],
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="Only this subject; a * at its end: any beginning.")
    ] = None,
    max_uses: Annotated[int, typer.Option("--max-uses", min=1, max=1000, help="How often.")] = 10,
    days: Annotated[float, typer.Option("--days", max=30, help="How long.")] = 7,
    max_cost_usd: Annotated[float, typer.Option("--max-cost", min=0, help="US dollars a plan.")] = 0,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    comment: CommentOption = "",
) -> None:
    """Let a skill act within limits without asking; takes an admin, and readiness."""
    parameters: dict[str, Any] = {"skill": skill, "max_uses": max_uses, "days": days}
    if subject:
        parameters["subjects"] = subject
    if max_cost_usd:
        parameters["max_cost_usd"] = max_cost_usd
    act(session, "set_autonomy", parameters, yes=yes, dry_run=dry_run, comment=comment)


def manual_only(session: Session, comment: CommentOption = "") -> None:
    """Back to asking for everything, at once; armed rollbacks stay armed."""
    from nightshift.skills.v1 import autonomy_service_pb2 as messages
    from nightshift.skills.v1 import standing_approvals_pb2 as types

    request = messages.UpdateAutonomyRequest(mode=types.AUTONOMY_MODE_MANUAL_ONLY, comment=comment)
    _show(session, session.call("skills", "UpdateAutonomy", request, stub="AutonomyService"))


def list_standing(
    session: Session, limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 20
) -> None:
    """Standing approvals and armed rollbacks, newest first, ended ones too."""
    from nightshift.skills.v1 import autonomy_service_pb2 as messages

    request = messages.ListStandingApprovalsRequest(page_size=limit)
    answer = session.call("skills", "ListStandingApprovals", request, stub="AutonomyService")
    if session.json:
        session.print_json(answer)
        return
    if not answer.standing_approvals:
        session.say("Nobody approved anything in advance.")
    for standing in answer.standing_approvals:
        _line(session, standing)


def revoke(session: Session, standing: StandingArgument, comment: CommentOption = "") -> None:
    """End one, an armed rollback too."""
    from nightshift.skills.v1 import autonomy_service_pb2 as messages

    request = messages.RevokeStandingApprovalRequest(
        name=named("standingApprovals", standing), comment=comment
    )
    answer = session.call("skills", "RevokeStandingApproval", request, stub="AutonomyService")
    if session.json:
        session.print_json(answer)
    else:
        _line(session, answer)


def _show(session: Session, autonomy: Any) -> None:
    from nightshift.skills.v1 import standing_approvals_pb2 as types

    if session.json:
        session.print_json(autonomy)
        return
    session.say(f"mode: {label(types.AutonomyMode.Name(autonomy.mode), 'AUTONOMY_MODE_')}")
    for fact in autonomy.readiness:
        session.say(f"  {'+' if fact.met else '-'} {fact.fact:<15} {fact.detail}")
    for standing in autonomy.standing_approvals:
        _line(session, standing)


def _line(session: Session, standing: Any) -> None:
    from nightshift.skills.v1 import standing_approvals_pb2 as types

    state = label(types.StandingApprovalState.Name(standing.state), "STANDING_APPROVAL_STATE_")
    what = f"rollback of {standing.promotion}" if standing.promotion else ", ".join(standing.scope.subjects)
    session.say(f"{standing.name}")
    session.say(
        f"  {short(standing.skill)} ({what or 'any subject'}): {state}, used {standing.use_count} of "
        f"{standing.max_uses}, until {instant(standing.expire_time)}, by {who(standing.approver)}"
    )
    if standing.end_detail:
        session.say(f"  ended by {who(standing.ended_by)}: {standing.end_detail}")

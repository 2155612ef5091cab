"""A person's word on plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightshift_client.cli.acting import CommentOption, YesOption, show_plan
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command, named
from nightshift_client.cli.words import ago, instant, label, one_line, short, who

if TYPE_CHECKING:
    from nightshift.skills.v1 import resources_pb2

ApprovalArgument = Annotated[str, typer.Argument(help="Approval (nightshift approvals list).")]
STATES = ("pending", "approved", "denied", "expired")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Plans that wait for a person.", no_args_is_help=True)
    command(group, "list")(list_approvals)
    command(group, "show")(show_approval)
    command(group, "approve")(approve)
    command(group, "deny")(deny)
    command(group, "watch")(watch)
    app.add_typer(group, name="approvals")


def list_approvals(
    session: Session,
    state: Annotated[
        str, typer.Option("--state", help="pending, approved, denied, expired or all.")
    ] = "pending",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
) -> None:
    """Approvals, newest first."""
    from nightshift.skills.v1 import resources_pb2
    from nightshift.skills.v1 import skills_service_pb2 as messages

    if state not in (*STATES, "all"):
        raise CommandFailed(EXIT_USAGE, f"there is no state {state!r}", advice=", ".join((*STATES, "all")))
    value = "unspecified" if state == "all" else state
    wanted = resources_pb2.ApprovalState.Value(f"APPROVAL_STATE_{value.upper()}")
    answer = session.call(
        "skills", "ListApprovals", messages.ListApprovalsRequest(page_size=limit, state=wanted)
    )
    if session.json:
        session.print_json(answer)
        return
    if not answer.approvals:
        session.say("Nothing waits for a person." if state == "pending" else "None.")
        return
    for approval in answer.approvals:
        asked = f"asked {ago(approval.create_time)}"
        session.say(f"{short(approval.plan.skill):<22} {_state(approval)}, {asked}")
        session.say(f"  {approval.name}")
        session.say(f"  {one_line(approval.plan.summary)}")


def show_approval(session: Session, approval: ApprovalArgument) -> None:
    """One approval with its whole plan."""
    answer = _get(session, approval)
    if session.json:
        session.print_json(answer)
    else:
        _show(session, answer)


def approve(
    session: Session, approval: ApprovalArgument, yes: YesOption = False, comment: CommentOption = ""
) -> None:
    """Let the very plan that is shown run."""
    _decide(session, approval, "APPROVE", yes=yes, comment=comment)


def deny(
    session: Session, approval: ApprovalArgument, yes: YesOption = False, comment: CommentOption = ""
) -> None:
    """Do not let it run, nor ask again within its cooldown."""
    _decide(session, approval, "DENY", yes=yes, comment=comment)


def watch(
    session: Session, after_seq: Annotated[int, typer.Option("--after-seq", help="Only later changes.")] = 0
) -> None:
    """The pending approvals, then each change."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    for message in session.stream(
        "skills", "WatchApprovals", messages.WatchApprovalsRequest(after_seq=after_seq)
    ):
        if session.json:
            session.print_json(message, compact=True)
        elif message.HasField("approval"):
            found = message.approval
            session.say(
                f"{message.seq:>6}  {found.name}  {_state(found):<9} {one_line(found.plan.summary, 50)}"
            )


def _decide(session: Session, approval: str, decision: str, *, yes: bool, comment: str) -> None:
    from nightshift.skills.v1 import skills_service_pb2 as messages

    if session.json and not yes:
        raise CommandFailed(EXIT_USAGE, "--json asks nothing", advice="Add --yes.")
    shown = _get(session, approval)
    if not session.json:
        _show(session, shown)
        if not yes and not session.confirm("Approve this plan?" if decision == "APPROVE" else "Deny it?"):
            session.say("Nothing was decided.")
            return
    request = messages.DecideApprovalRequest(
        name=shown.name,
        decision=messages.Decision.Value(f"DECISION_{decision}"),
        plan_digest=shown.plan.digest,
        nonce=shown.nonce,
        comment=comment,
    )
    answer = session.call("skills", "DecideApproval", request)
    if session.json:
        session.print_json(answer)
    else:
        session.say(
            f"{answer.name} is {_state(answer)}; its run: nightshift skills show-run {answer.skill_run}"
        )


def _get(session: Session, approval: str) -> Any:
    from nightshift.skills.v1 import skills_service_pb2 as messages

    return session.call(
        "skills", "GetApproval", messages.GetApprovalRequest(name=named("approvals", approval))
    )


def _show(session: Session, approval: resources_pb2.Approval) -> None:
    session.say(f"{approval.name} is {_state(approval)}, asked {ago(approval.create_time)}")
    session.say(f"  skill      {short(approval.plan.skill)}")
    session.say(f"  until      {instant(approval.expire_time)}")
    if approval.decider:
        session.say(
            f"  decided    {instant(approval.decide_time)} by {who(approval.decider)}: {approval.comment}"
        )
    show_plan(session, approval.plan)


def _state(approval: resources_pb2.Approval) -> str:
    from nightshift.skills.v1 import resources_pb2

    return label(resources_pb2.ApprovalState.Name(approval.state), "APPROVAL_STATE_")

"""Changes to the platform: proposals, promotions, rollbacks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightshift_client.cli.acting import CommentOption, DryRunOption, NoWaitOption, YesOption, act, diff_text
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, as_dict, command, named
from nightshift_client.cli.words import instant, label, short, table, visible_lines

if TYPE_CHECKING:
    from nightshift.lab.v1 import resources_pb2

ProposalArgument = Annotated[str, typer.Argument(help="Proposal (nightshift lab proposals).")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Proposals and what became of them.", no_args_is_help=True)
    command(group, "proposals")(proposals)
    command(group, "show")(show)
    command(group, "diff")(diff)
    command(group, "reject")(reject)
    command(group, "promote")(promote)
    command(group, "rollback")(rollback)
    command(group, "promotions")(promotions)
    command(group, "configs")(configs)
    app.add_typer(group, name="lab")


def proposals(
    session: Session,
    state: Annotated[
        str, typer.Option("--state", help="draft, validated, promoted, rejected or all.")
    ] = "all",
    limit: LimitOption = 50,
) -> None:
    """Proposals, newest first."""
    from nightshift.lab.v1 import lab_service_pb2 as messages
    from nightshift.lab.v1 import resources_pb2

    wanted = resources_pb2.PROPOSAL_STATE_UNSPECIFIED
    if state != "all":
        name = f"PROPOSAL_STATE_{state.upper()}"
        if name not in resources_pb2.ProposalState.keys():  # noqa: SIM118 - an enum wrapper is no mapping
            raise CommandFailed(
                EXIT_USAGE,
                f"there is no state {state!r}",
                advice="draft, validated, promoted, rejected or all",
            )
        wanted = resources_pb2.ProposalState.Value(name)
    answer = session.call(
        "lab", "ListProposals", messages.ListProposalsRequest(page_size=limit, state=wanted)
    )
    if session.json:
        session.print_json(answer)
        return
    if not answer.proposals:
        session.say("No proposal; a theme without a config gets one: nightshift skills run propose_config")
    for found in answer.proposals:
        findings = f"{len(found.report.findings)} findings"
        session.say(f"{instant(found.create_time)}  {found.config_id:<32} {_state(found)}, {findings}")
        session.say(f"  {found.name}")


def show(session: Session, proposal: ProposalArgument) -> None:
    """One proposal with its content and everything that validation found."""
    from nightshift.lab.v1 import lab_service_pb2 as messages
    from nightshift.lab.v1 import resources_pb2

    answer = session.call(
        "lab", "GetProposal", messages.GetProposalRequest(name=named("proposals", proposal))
    )
    if session.json:
        session.print_json(answer)
        return
    session.say(f"{answer.name} is {_state(answer)}: config {answer.config_id}")
    session.say(f"  drafted by {answer.drafted_by} {instant(answer.create_time)}")
    session.say(f"  answers    {answer.opportunity or '-'}")
    report = answer.report
    session.say(f"  nearest    {report.nearest_config} (similarity {report.nearest_similarity:.2f})")
    session.say(f"  levels     {', '.join(report.levels)}")
    for finding in report.findings:
        grave = label(resources_pb2.Severity.Name(finding.severity), "SEVERITY_")
        session.say(f"  {grave:<10} {finding.field or '-'}: {finding.reason}: {finding.message}")
    content = json.dumps(as_dict(answer).get("content", {}), ensure_ascii=False, indent=2)
    session.show(visible_lines(content))


def diff(
    session: Session,
    proposal: ProposalArgument,
    config: Annotated[
        str, typer.Option("--config", help="Compare with this one instead of the nearest.")
    ] = "",
) -> None:
    """Compare a proposal with a config of production."""
    from nightshift.lab.v1 import lab_service_pb2 as messages

    request = messages.DiffProposalRequest(
        name=named("proposals", proposal), config=named("configs", config) if config else ""
    )
    answer = session.call("lab", "DiffProposal", request)
    if session.json:
        session.print_json(answer)
        return
    session.say(f"against {answer.config}")
    session.show(diff_text(answer.diff))


def reject(
    session: Session,
    proposal: ProposalArgument,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    comment: CommentOption = "",
) -> None:
    """Turn a proposal down; its history stays."""
    parameters = {"proposal": named("proposals", proposal), **({"comment": comment} if comment else {})}
    act(session, "reject_proposal", parameters, yes=yes, dry_run=dry_run, comment=comment)


def promote(
    session: Session,
    proposal: ProposalArgument,
    path: Annotated[
        str, typer.Option("--path", help="Below the platform's root; left out: production's folder.")
    ] = "",
    rollback_on_guardrail: Annotated[
        bool,
        typer.Option("--rollback-on-guardrail", help="Arm its one rollback, should a guardrail fall."),
    ] = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    comment: CommentOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Write a validated proposal into production's folder, atomically and reversibly."""
    parameters: dict[str, Any] = {"proposal": named("proposals", proposal)}
    if path:
        parameters["path"] = path
    if rollback_on_guardrail:
        parameters["rollback_on_guardrail"] = True
    act(session, "promote_config", parameters, yes=yes, dry_run=dry_run, comment=comment, no_wait=no_wait)


def rollback(
    session: Session,
    promotion: Annotated[str, typer.Argument(help="Promotion (nightshift lab promotions).")],
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    comment: CommentOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Take a promotion back, byte by byte, as a new promotion."""
    parameters = {"promotion": named("promotions", promotion)}
    act(session, "rollback", parameters, yes=yes, dry_run=dry_run, comment=comment, no_wait=no_wait)


def promotions(session: Session, limit: LimitOption = 50) -> None:
    """Changes of production's folder, newest first."""
    from nightshift.lab.v1 import lab_service_pb2 as messages
    from nightshift.lab.v1 import resources_pb2

    answer = session.call("lab", "ListPromotions", messages.ListPromotionsRequest(page_size=limit))
    if session.json:
        session.print_json(answer)
        return
    if not answer.promotions:
        session.say("Nothing was promoted yet: nightshift lab promote PROPOSAL")
    for found in answer.promotions:
        kind = label(resources_pb2.PromotionKind.Name(found.kind), "PROMOTION_KIND_")
        now = "rolled back" if found.rolled_back_by else "stands"
        session.say(f"{instant(found.create_time)}  {kind:<9} {found.path}  ({now})")
        session.say(f"  {found.name}")


def configs(session: Session, limit: LimitOption = 100) -> None:
    """Interception configs in production's folder."""
    from nightshift.lab.v1 import lab_service_pb2 as messages
    from nightshift.lab.v1 import resources_pb2

    answer = session.call("lab", "ListConfigs", messages.ListConfigsRequest(page_size=limit))
    if session.json:
        session.print_json(answer)
        return
    rows = [
        (
            short(found.name),
            label(resources_pb2.ConfigOrigin.Name(found.origin), "CONFIG_ORIGIN_"),
            found.digest[:12],
            ", ".join(sorted({language for one in found.missing for language in one.languages})) or "-",
            found.problem or "-",
        )
        for found in answer.configs
    ]
    session.show(table("config", "from", "digest", "missing", "problem", rows=rows))


def _state(proposal: resources_pb2.Proposal) -> str:
    from nightshift.lab.v1 import resources_pb2

    return label(resources_pb2.ProposalState.Name(proposal.state), "PROPOSAL_STATE_")

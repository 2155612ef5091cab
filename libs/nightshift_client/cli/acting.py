"""How every acting verb goes: plan, look, confirm, run through skills, follow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text

from nightshift_client.cli import gpus
from nightshift_client.cli.session import EXIT_FAILED, EXIT_USAGE, CommandFailed, Session, request_id
from nightshift_client.cli.words import label, one_line, seconds_of, size, span, visible, visible_lines

if TYPE_CHECKING:
    from nightshift.skills.v1 import resources_pb2

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Confirm the plan without being asked.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show the plan; nothing changes.")]
ProposeOption = Annotated[bool, typer.Option("--propose", help="Only ask for an approval (CONFIRM skills).")]
CommentOption = Annotated[str, typer.Option("--comment", help="A word on it, kept with the decision.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Return once it is begun; it goes on.")]

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED", "DENIED", "NOTHING_TO_DO"})
BAD_ENDS = frozenset({"FAILED", "CANCELLED", "INTERRUPTED", "DENIED"})
# A person does not see faster, and the plane does not mind.
LOOK_INTERVAL_S = 0.3

STATE_PREFIX = "SKILL_RUN_STATE_"


def act(
    session: Session,
    skill: str,
    parameters: dict[str, Any],
    *,
    yes: bool = False,
    dry_run: bool = False,
    propose: bool = False,
    comment: str = "",
    no_wait: bool = False,
    plan_timeout_s: float | None = None,
) -> resources_pb2.SkillRun | None:
    """Plans a skill, shows the plan, asks, runs and follows it; returns the run, if one began.

    Raises:
        CommandFailed: where it is refused, nobody confirms, or the run ends badly (JSON prints the run).
    """
    from google.protobuf.struct_pb2 import Struct

    from nightshift.skills.v1 import skills_service_pb2 as messages
    from nightshift.type.v1 import policy_pb2

    struct = Struct()
    struct.update(parameters)
    name = f"skills/{skill}"
    if session.json and not (yes or dry_run or propose):
        raise CommandFailed(EXIT_USAGE, "--json asks nothing", advice="Add --yes, --propose or --dry-run.")
    planned = session.call(
        "skills",
        "PlanSkill",
        messages.PlanSkillRequest(name=name, parameters=struct),
        timeout_s=plan_timeout_s,
    )
    if dry_run:
        _show_dry_run(session, planned)
        return None
    tier = session.call("skills", "GetSkill", messages.GetSkillRequest(name=name)).tier
    if propose and tier != policy_pb2.TIER_CONFIRM:
        word = policy_pb2.Tier.Name(tier).removeprefix("TIER_")
        raise CommandFailed(EXIT_USAGE, f"{skill} is {word}: only CONFIRM skills can be proposed")
    if planned.nothing_to_do and not session.json:
        session.say(f"Nothing to do: {planned.nothing_to_do}")
        return None
    if not session.json:
        show_plan(session, planned.plan)
        if not (yes or propose) and not session.confirm("Do it?"):
            session.say("Nothing was done.")
            return None
    request = messages.RunSkillRequest(
        name=name,
        parameters=struct,
        plan_digest="" if propose else planned.plan.digest,
        request_id=request_id(),
        comment=comment,
    )
    run = session.call("skills", "RunSkill", request)
    if session.json:
        session.print_json(run)
        if state_of(run) in BAD_ENDS:
            raise typer.Exit(EXIT_FAILED)
        return run  # type: ignore[no-any-return]
    return conclude(session, run if no_wait else follow(session, run))


def conclude(session: Session, run: resources_pb2.SkillRun) -> resources_pb2.SkillRun:
    """Says what became of a run.

    Raises:
        CommandFailed: where it ended badly.
    """
    state = state_of(run)
    if state in BAD_ENDS:
        raise CommandFailed(
            EXIT_FAILED,
            f"{run.name} is {label(state, '')}: {run.failure.message or run.outcome or 'no reason given'}",
            reason=run.failure.reason,
        )
    if state == "AWAITING_APPROVAL":
        session.say(f"{run.name} waits for an approval:")
        session.say(f"  nightshift approvals approve {run.approval}")
    else:
        session.say(f"{run.name} is {label(state, '')}{': ' + run.outcome if run.outcome else ''}")
    return run


def follow(session: Session, run: resources_pb2.SkillRun) -> resources_pb2.SkillRun:
    """Shows a run until it ends or waits for a person; Ctrl-C leaves it running."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=session.errors, transient=True, disable=not session.lively) as progress:
        task = progress.add_task(_doing(run))
        told = _tell_results(session, run, 0)
        try:
            while state_of(run) not in ENDED | {"AWAITING_APPROVAL"}:
                time.sleep(LOOK_INTERVAL_S)
                run = session.call("skills", "GetSkillRun", messages.GetSkillRunRequest(name=run.name))
                progress.update(task, description=_doing(run))
                told = _tell_results(session, run, told)
        except KeyboardInterrupt:
            progress.stop()
            session.say(f"{run.name} goes on; look at it with: nightshift skills show-run {run.name}")
            raise
    return run


def show_plan(session: Session, plan: resources_pb2.Plan) -> None:
    """Shows a plan: the machine's diff first, reasoning last and marked untrusted."""
    from nightshift.skills.v1 import resources_pb2

    session.say(plan.summary)
    if plan.diff:
        session.show(diff_text(plan.diff))
    for call in plan.calls:
        session.say(f"  calls      {call.method}")
    facts = [("subject", plan.subject)]
    facts += sorted((f"limit {key}", value) for key, value in plan.limits.items())
    if plan.cost_usd:
        facts.append(("cost", f"{plan.cost_usd:.2f} $"))
    if plan.vram_bytes:
        facts.append(("memory", size(plan.vram_bytes)))
    if plan.HasField("duration"):
        facts.append(("takes", span(seconds_of(plan.duration))))
    facts.append(("undo", label(resources_pb2.Reversibility.Name(plan.reversibility), "REVERSIBILITY_")))
    facts += [("evidence", line) for line in plan.evidence]
    facts.append(("plan", plan.digest))
    for title, value in facts:
        session.say(f"  {title:<10} {value}")
    if plan.reasoning:
        session.show(Rule("reasoning, untrusted: written by a model or from users' words", style="dim"))
        session.show(Text(visible_lines(plan.reasoning), style="dim"))


def diff_text(diff: str) -> Text:
    """A unified diff with colours, everything in it visible."""
    text = Text(end="")
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff.rstrip("\n").split("\n"):
        text.append(visible(line.replace("\t", "    ")) + "\n", style=styles.get(line[:1], ""))
    return text


def state_of(run: resources_pb2.SkillRun) -> str:
    """The state's bare name, of newer servers too."""
    from nightshift.skills.v1 import resources_pb2

    number = int(run.state)
    known = resources_pb2.SkillRunState.values()
    return (
        resources_pb2.SkillRunState.Name(run.state).removeprefix(STATE_PREFIX)
        if number in known
        else str(number)
    )


def _show_dry_run(session: Session, planned: Any) -> None:
    if session.json:
        session.print_json(planned)
    elif planned.nothing_to_do:
        session.say(f"Nothing to do: {planned.nothing_to_do}")
    else:
        show_plan(session, planned.plan)


def _tell_results(session: Session, run: resources_pb2.SkillRun, told: int) -> int:
    """Says what calls that are done came to, where that is worth a line; how many are told by now."""
    from google.protobuf.json_format import MessageToDict

    for result in run.results[told:]:
        for line in gpus.told(MessageToDict(result)):
            session.say(line)
    return max(told, len(run.results))


def _doing(run: resources_pb2.SkillRun) -> str:
    calls = f" {run.done_calls}/{len(run.plan.calls)}" if run.plan.calls else ""
    return visible(f"{label(state_of(run), '')}{calls}  {one_line(run.plan.summary, 60)}")

"""What the plane can do: skills, plans, runs, schedule."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from nightshift_client.cli.acting import (
    CommentOption,
    DryRunOption,
    NoWaitOption,
    ProposeOption,
    YesOption,
    act,
    show_plan,
    state_of,
)
from nightshift_client.cli.session import EXIT_USAGE, CommandFailed, Session, command, named
from nightshift_client.cli.words import ago, instant, label, one_line, seconds_of, short, span, table, who

SkillArgument = Annotated[str, typer.Argument(help="Skill (nightshift skills list).")]
RunArgument = Annotated[str, typer.Argument(help="Skill run.")]
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="KEY=VALUE; the value as JSON or as plain text.")
]
POINTS = ("t1", "t2", "t3", "t4", "t5")
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="What the plane can do, and does.", no_args_is_help=True)
    command(group, "list")(list_skills)
    command(group, "show")(show_skill)
    command(group, "plan")(plan_skill)
    command(group, "run")(run_skill)
    command(group, "runs")(list_skill_runs)
    command(group, "show-run")(show_skill_run)
    command(group, "cancel")(cancel_skill_run)
    command(group, "watch")(watch_skill_runs)
    command(group, "schedule")(schedule)
    command(group, "pause")(pause)
    command(group, "resume")(resume)
    command(group, "plugins")(list_plugins)
    app.add_typer(group, name="skills")
    preemptions = typer.Typer(help="How fast the plane made room for users.", no_args_is_help=True)
    command(preemptions, "list")(list_preemptions)
    app.add_typer(preemptions, name="preemptions")


def list_skills(session: Session) -> None:
    """All skills with their tiers."""
    from nightshift.skills.v1 import skills_service_pb2 as messages
    from nightshift.type.v1 import policy_pb2

    answer = session.call("skills", "ListSkills", messages.ListSkillsRequest(page_size=1000))
    if session.json:
        session.print_json(answer)
        return
    rows = [
        (
            short(skill.name),
            label(policy_pb2.Tier.Name(skill.tier), "TIER_"),
            ", ".join(skill.triggers),
            skill.description,
        )
        for skill in answer.skills
    ]
    session.show(table("skill", "tier", "when", "what", rows=rows))


def show_skill(session: Session, skill: SkillArgument) -> None:
    """One skill: tier, methods, parameters."""
    from nightshift.skills.v1 import skills_service_pb2 as messages
    from nightshift.type.v1 import policy_pb2

    answer = session.call("skills", "GetSkill", messages.GetSkillRequest(name=named("skills", skill)))
    if session.json:
        session.print_json(answer)
        return
    session.say(
        f"{short(answer.name)} ({label(policy_pb2.Tier.Name(answer.tier), 'TIER_')}): {answer.description}"
    )
    rest = seconds_of(answer.cooldown)
    session.say(
        f"  when       {', '.join(answer.triggers)}"
        + (f"; rests {span(rest)} on one subject" if rest else "")
    )
    for method in answer.methods:
        session.say(f"  calls      {method}")
    for line in _parameters(answer.parameters_schema):
        session.say(f"  parameter  {line}")
    session.say(f"  digest     {answer.digest}")


def list_plugins(session: Session) -> None:
    """Plug-in skills that are installed, the digest that enables each, and their sandbox."""
    from nightshift.skills.v1 import resources_pb2 as types
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call("skills", "ListPlugins", messages.ListPluginsRequest())
    if session.json:
        session.print_json(answer)
        return
    if not answer.plugins:
        session.say("No plug-in is installed.")
    for plugin in answer.plugins:
        state = label(types.PluginState.Name(plugin.state), "PLUGIN_STATE_")
        session.say(f"{plugin.name} ({plugin.distribution or '-'} {plugin.version}) is {state}")
        for key, value in (
            ("says", plugin.description),
            ("digest", plugin.digest),
            ("pinned", plugin.pinned_digest if plugin.pinned_digest != plugin.digest else ""),
            ("why", plugin.detail),
        ):
            if value:
                session.say(f"  {key:<9}{one_line(value, 400)}")
        for key, methods in (("reads", plugin.reads), ("plans", plugin.methods)):
            for method in methods:
                session.say(f"  {key:<9}{method}")
    for layer in answer.layers:
        said = "there" if layer.present else f"{'waived' if layer.waived else 'MISSING'}: {layer.detail}"
        session.say(f"layer {layer.name:<13}{said}")


def plan_skill(session: Session, skill: SkillArgument, parameter: ParameterOption = None) -> None:
    """What would it do now? Changes nothing, asks nobody."""
    act(session, short(skill), parsed(parameter), dry_run=True)


def run_skill(
    session: Session,
    skill: SkillArgument,
    parameter: ParameterOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    propose: ProposeOption = False,
    comment: CommentOption = "",
    no_wait: NoWaitOption = False,
) -> None:
    """Plan a skill, look at the plan, confirm, run."""
    act(
        session,
        short(skill),
        parsed(parameter),
        yes=yes,
        dry_run=dry_run,
        propose=propose,
        comment=comment,
        no_wait=no_wait,
    )


def list_skill_runs(
    session: Session,
    skill: Annotated[str, typer.Option("--skill", help="Only this skill.")] = "",
    limit: LimitOption = 20,
    page_token: Annotated[str, typer.Option("--page-token", help="Go on after an earlier answer.")] = "",
) -> None:
    """Runs of skills, newest first."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    request = messages.ListSkillRunsRequest(
        page_size=limit, page_token=page_token, skill=named("skills", skill) if skill else ""
    )
    answer = session.call("skills", "ListSkillRuns", request)
    if session.json:
        session.print_json(answer)
        return
    if not answer.skill_runs:
        session.say("No run yet.")
    for run in answer.skill_runs:
        session.say(f"{instant(run.create_time)}  {short(run.skill):<22} {label(state_of(run), '')}")
        session.say(f"  {run.name}")
        session.say(f"  {one_line(run.failure.message or run.outcome or run.plan.summary)}")
        for preemption in run.preemptions:
            session.say(f"  {stop_line(preemption)}")


def show_skill_run(session: Session, run: RunArgument) -> None:
    """One run with its plan, state and outcome."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call("skills", "GetSkillRun", messages.GetSkillRunRequest(name=named("skillRuns", run)))
    if session.json:
        session.print_json(answer)
        return
    session.say(f"{answer.name} ({short(answer.skill)}) is {label(state_of(answer), '')}")
    session.say(f"  by         {who(answer.initiator)}")
    session.say(f"  began      {instant(answer.start_time) or '-'}, ended {instant(answer.end_time) or '-'}")
    if answer.approval:
        session.say(f"  approval   {answer.approval}")
    if answer.preemption_count:
        session.say(f"  stopped    {answer.preemption_count} times for users")
    for preemption in answer.preemptions:
        session.say(f"  stopped    {stop_line(preemption)}")
    if answer.outcome:
        session.say(f"  outcome    {answer.outcome}")
    if answer.failure.reason:
        session.say(f"  failure    {answer.failure.reason}: {answer.failure.message}")
    show_plan(session, answer.plan)


def cancel_skill_run(session: Session, run: RunArgument) -> None:
    """Stop a run for good."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call(
        "skills", "CancelSkillRun", messages.CancelSkillRunRequest(name=named("skillRuns", run))
    )
    if session.json:
        session.print_json(answer)
    else:
        session.say(f"{answer.name} is {label(state_of(answer), '')}")


def watch_skill_runs(
    session: Session, after_seq: Annotated[int, typer.Option("--after-seq", help="Only later changes.")] = 0
) -> None:
    """Follow the runs as they change; Ctrl-C ends the looking, not the runs."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    for message in session.stream(
        "skills", "WatchSkillRuns", messages.WatchSkillRunsRequest(after_seq=after_seq)
    ):
        if session.json:
            session.print_json(message, compact=True)
        elif message.HasField("skill_run"):
            run = message.skill_run
            what = one_line(run.failure.message or run.outcome or run.plan.summary, 60)
            session.say(f"{message.seq:>6}  {short(run.skill):<22} {label(state_of(run), ''):<18} {what}")


def schedule(session: Session) -> None:
    """For each skill whether it will run next, and why (not)."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call("skills", "GetSchedule", messages.GetScheduleRequest())
    if session.json:
        session.print_json(answer)
        return
    state = "may start" if answer.open else "waits"
    session.say(f"What runs by itself {state} (fence {answer.fence}):")
    for reason in answer.reasons:
        session.say(f"  {reason}")
    shared = set(answer.reasons)

    def why(reasons: Iterable[str]) -> str:
        # What holds for all stands above, once.
        own = [reason for reason in reasons if reason not in shared]
        return " ".join(own) or ("" if answer.open else "As above.")

    if answer.HasField("predicted_busy_time"):
        session.say(f"  Users are expected at {instant(answer.predicted_busy_time)}.")
    left = answer.budget
    session.say(
        f"  Left today: {left.runs} runs, {left.cost_usd:.2f} $, {left.gpu_hours:.1f} h of the GPU "
        f"(anew at {instant(left.renew_time)})."
    )
    rows = [
        (
            short(entry.skill),
            _place(entry),
            ago(entry.last_run_time),
            str(entry.budget.runs),
            why(entry.reasons),
        )
        for entry in answer.entries
    ]
    session.show(table("skill", "next", "last", ("left", "right"), "why", rows=rows))


def _place(entry: Any) -> str:
    if entry.paused:
        return "paused"
    if entry.due:
        return "due"
    return instant(entry.next_time) or "-"


def pause(session: Session, skill: SkillArgument, comment: CommentOption = "") -> None:
    """Keep a skill from starting by itself; commands go on. Any approver may."""
    _set_paused(session, skill, True, comment)


def resume(session: Session, skill: SkillArgument, comment: CommentOption = "") -> None:
    """Let a paused skill start by itself again. Takes an admin."""
    _set_paused(session, skill, False, comment)


def _set_paused(session: Session, skill: str, paused: bool, comment: str) -> None:
    from nightshift.skills.v1 import skills_service_pb2 as messages

    request = messages.UpdateScheduleRequest(skill=named("skills", skill), paused=paused, comment=comment)
    answer = session.call("skills", "UpdateSchedule", request)
    if session.json:
        session.print_json(answer)
    elif answer.paused:
        session.say(f"{short(answer.skill)} does not start by itself (paused by {who(answer.paused_by)}).")
    else:
        reasons = one_line(" ".join(answer.reasons), 200)
        session.say(f"{short(answer.skill)} starts by itself again. {reasons}")


def list_preemptions(session: Session, limit: LimitOption = 20) -> None:
    """Pre-emptions with T1 to T5, newest first."""
    from nightshift.skills.v1 import skills_service_pb2 as messages

    answer = session.call("skills", "ListPreemptions", messages.ListPreemptionsRequest(page_size=limit))
    if session.json:
        session.print_json(answer)
        return

    if not answer.preemptions:
        session.say("No user came while background work ran.")
        return

    rows = [
        (
            instant(event.start_time),
            str(event.fence),
            *(_took(event, point) for point in POINTS),
            str(len(event.skill_runs)),
            str(event.killed_count),
            "lapsed" if event.lapsed_services else "yes" if event.confirmed else "no",
        )
        for event in answer.preemptions
    ]
    right = [(title, "right") for title in ("fence", *(f"{p.upper()} ms" for p in POINTS), "runs", "killed")]
    session.show(table(("when", "fixed"), *right, ("done", "fixed"), rows=rows))
    for detail in dict.fromkeys(event.t5_detail for event in answer.preemptions if not event.HasField("t5")):
        if detail:
            session.say(f"T5 is not known: {detail}")
    for service in sorted({name for event in answer.preemptions for name in event.lapsed_services}):
        session.say(f"{service} did not confirm; the leases of what ran there have lapsed.")


def stop_line(preemption: Any) -> str:
    """A pre-emption on one line."""
    took = ", ".join(
        f"{point.upper()} {_took(preemption, point)}" for point in POINTS if preemption.HasField(point)
    )
    lapsed = (
        f"; by lapsed leases: {', '.join(preemption.lapsed_services)}" if preemption.lapsed_services else ""
    )
    unsure = "" if preemption.confirmed else "; not confirmed"
    return f"{instant(preemption.start_time)} for a user, fence {preemption.fence}: {took} ms{lapsed}{unsure}"


def _took(preemption: Any, point: str) -> str:
    """Milliseconds; "-" where the point is not known."""
    return f"{seconds_of(getattr(preemption, point)) * 1000:.1f}" if preemption.HasField(point) else "-"


def parsed(parameters: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is JSON is that, any other is text.

    Raises:
        CommandFailed: for a pair without ``=``.
    """
    values: dict[str, Any] = {}
    for pair in parameters or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise CommandFailed(EXIT_USAGE, f"{pair!r} is not KEY=VALUE")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = text
    return values


def _parameters(schema: str) -> list[str]:
    try:
        document = json.loads(schema or "{}")
        required = set(document.get("required", []))
        return [
            f"{key}{' (required)' if key in required else ''}: {value.get('type', 'any')}"
            for key, value in document.get("properties", {}).items()
        ]
    except (ValueError, AttributeError, TypeError):
        return [schema]

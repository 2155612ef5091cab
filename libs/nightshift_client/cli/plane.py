"""The plane itself: up, down, status, credentials."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from nightshift_client.cli.session import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandFailed,
    Session,
    command,
)
from nightshift_client.cli.skills import stop_line
from nightshift_client.cli.words import ago, label, one_line, table, visible, who

SERVICES = ("monitor", "experience", "skills", "lab", "trainer")
# As long as the other looks of `status`: on a busy machine a first handshake alone takes its time.
HEALTH_TIMEOUT_S = 5.0
# A replica that stands by is well; its leader is asked instead of it.
WELL = frozenset({"SERVING", "STANDBY"})
_LISTS = ("approvals", "preemptions", "training_jobs")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "up")(up)
    command(app, "down")(down)
    command(app, "status")(status)
    group = typer.Typer(help="Certificates of platforms and persons.", no_args_is_help=True)
    command(group, "create")(create_credential)
    app.add_typer(group, name="credentials")


def up(
    session: Session,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the plane is healthy.")] = False,
    port_base: Annotated[
        int | None, typer.Option("--port-base", help="Ports are counted from here; 0 takes a free block.")
    ] = None,
    insecure_loopback: Annotated[
        bool,
        typer.Option("--insecure-loopback", help="Also listen without TLS, for viewers on this machine."),
    ] = False,
) -> None:
    """Start the plane; Ctrl-C stops it."""
    need_kit("start the plane")
    if session.json and not detach:
        raise CommandFailed(EXIT_USAGE, "--json prints one answer", advice="Add --detach.")
    # The one place where the command reaches for the kit: whoever only calls a plane does not have it.
    from nightshift_kit.processes.__main__ import main

    os.environ["NIGHTSHIFT_HOME"] = str(session.home.path)
    arguments = ["--detach"] if detach else []
    arguments += ["--port-base", str(port_base)] if port_base is not None else []
    arguments += ["--insecure-loopback"] if insecure_loopback else []

    def complain(problem: object) -> int:
        raise CommandFailed(
            EXIT_FAILED,
            str(problem),
            reason="START_FAILED",
            advice=f"Logs: {session.home.path / 'logs'}; a running plane: nightshift status",
        )

    if not session.json:
        for line in _platform_missing(session):
            session.errors.print(visible(line), soft_wrap=True)
        if not detach:
            session.errors.print("The plane starts; Ctrl-C stops it.")
        raise typer.Exit(main(arguments, complain))
    with contextlib.redirect_stdout(sys.stderr):
        code = main(arguments, complain)
    if code == 0:
        session.print_json(_endpoints(session))
    raise typer.Exit(code)


def down(session: Session) -> None:
    """Stop a plane that runs in the background."""
    pid_file = session.home.path / "plane.pid"
    try:
        pid = int(pid_file.read_text())
        running = b"nightshift" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        running, pid = False, 0
    if not running:
        # The number may belong to somebody else by now.
        raise CommandFailed(EXIT_UNREACHABLE, f"no plane runs in {session.home.path}", reason="PLANE_DOWN")
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        raise CommandFailed(EXIT_REFUSED, f"process {pid} belongs to another user") from error
    deadline = time.monotonic() + (session.timeout_s or 30.0)
    while _alive(pid):
        if time.monotonic() > deadline:
            raise CommandFailed(
                EXIT_FAILED, f"the plane (process {pid}) does not end; see {session.home.path}/logs"
            )
        time.sleep(0.05)
    if session.json:
        session.print_json({"stopped_pid": pid})
    else:
        session.say("The plane is down.")


def status(session: Session) -> None:
    """Everything at one glance."""
    seen = _look(session)
    if session.json:
        from nightshift_client.cli.session import as_dict

        session.print_json(
            {
                key: [as_dict(entry) for entry in value]
                if isinstance(value, list)
                else as_dict(value)
                if hasattr(value, "DESCRIPTOR")
                else value
                for key, value in seen.items()
            }
        )
    else:
        _show_status(session, seen)
    if any(entry["health"] not in WELL for entry in seen["services"].values()):
        raise typer.Exit(EXIT_UNREACHABLE)


def create_credential(
    session: Session,
    kind: Annotated[str, typer.Argument(help="platform or person")],
    name: Annotated[str, typer.Argument(help="Its name; a person's user id finds it by itself.")],
    role: Annotated[str, typer.Option("--role", help="Of a person: viewer, approver or admin.")] = "viewer",
) -> None:
    """Make a certificate for a platform or a person, on the plane's own machine."""
    need_kit("make credentials")
    from nightshift_kit.rpc.identity import SpiffeInvalid
    from nightshift_kit.rpc.tls import HomeUnsafe, create_credential
    from nightshift_kit.settings import PlaneSettings

    try:
        certificate = create_credential(PlaneSettings(home=session.home.path), kind, name, role)
    except (SpiffeInvalid, ValueError) as error:
        # The kit speaks of the whole identity there.
        words = f"{name!r} cannot be a name" if isinstance(error, SpiffeInvalid) else str(error)
        raise CommandFailed(EXIT_USAGE, words) from error
    except (HomeUnsafe, OSError) as error:
        raise CommandFailed(EXIT_REFUSED, str(error)) from error
    key = certificate.with_suffix(".key")
    if session.json:
        session.print_json(
            {"certificate": str(certificate), "key": str(key), "ca": str(session.home.ca_file)}
        )
    else:
        for title, path in (("certificate", certificate), ("key", key), ("authority", session.home.ca_file)):
            session.say(f"{title:<12}{path}")


def need_kit(what: str) -> None:
    """Ends the command where the services are not installed."""
    if importlib.util.find_spec("nightshift_kit") is None or importlib.util.find_spec("structlog") is None:
        raise CommandFailed(
            EXIT_USAGE,
            f"the services are not installed here, so this machine cannot {what}",
            reason="KIT_MISSING",
            advice="Install them with: pip install 'nightshift-plane[all]'",
        )


def _platform_missing(session: Session) -> list[str]:
    """What a plane without a platform cannot do, and how it is told of one."""
    from nightshift_kit.errors import NightshiftError
    from nightshift_kit.settings import plane_settings

    try:
        root = plane_settings().platform_root
        document = tomllib.loads(_text(session.home.path / "settings.toml"))
    except (NightshiftError, ValueError):
        # The start itself says what is wrong with them.
        return []
    url = os.environ.get("NIGHTSHIFT_MONITOR_PLATFORM_URL", "") or document.get("monitor", {}).get(
        "platform_url", ""
    )
    lines = []
    if root is None:
        lines.append("  NIGHTSHIFT_PLATFORM_ROOT         its folder; without it nothing is promoted")
    elif not root.is_dir():
        lines.append(f"  {root} is no folder; until it is there nothing is promoted")
    if not url:
        lines.append("  NIGHTSHIFT_MONITOR_PLATFORM_URL  its address; without it nothing runs by itself")
    if not lines:
        return []
    return [
        "The plane does not know all of its platform. What works without: recording,",
        "import, statistics, search in text. For the rest, set this and start again:",
        *lines,
        "or platform_root in section [plane], platform_url in section [monitor] of",
        f"  {session.home.path / 'settings.toml'}",
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _endpoints(session: Session) -> dict[str, Any]:
    import json

    document: dict[str, Any] = json.loads(session.home.endpoints_file.read_bytes())
    return document


def _look(session: Session) -> dict[str, Any]:
    """What each service says of itself; those that do not answer are left out."""
    from concurrent.futures import ThreadPoolExecutor

    from nightshift.lab.v1 import lab_service_pb2 as lab
    from nightshift.monitor.v1 import monitor_service_pb2 as monitor
    from nightshift.skills.v1 import resources_pb2 as skills_types
    from nightshift.skills.v1 import skills_service_pb2 as skills
    from nightshift.trainer.v1 import trainer_service_pb2 as trainer

    endpoints = session.endpoints
    names = [name for name in SERVICES if name in endpoints.services]
    names += sorted(set(endpoints.services) - set(names))
    pending = skills_types.APPROVAL_STATE_PENDING
    asked: dict[str, tuple[str, str, Any]] = {
        "monitor": ("monitor", "GetStatus", monitor.GetStatusRequest()),
        "lock": ("skills", "GetLock", skills.GetLockRequest()),
        "schedule": ("skills", "GetSchedule", skills.GetScheduleRequest()),
        "approvals": ("skills", "ListApprovals", skills.ListApprovalsRequest(state=pending)),
        "preemptions": ("skills", "ListPreemptions", skills.ListPreemptionsRequest(page_size=1)),
        "configs": ("lab", "ListConfigs", lab.ListConfigsRequest(page_size=1)),
        "training_jobs": ("trainer", "ListTrainingJobs", trainer.ListTrainingJobsRequest(page_size=1)),
    }
    with ThreadPoolExecutor(len(names) + len(asked)) as threads:
        health = {name: threads.submit(_health, session, name) for name in names}
        seen: dict[str, Any] = {
            "home": str(session.home.path),
            "services": {
                name: {
                    "address": endpoints.services[name].address,
                    "pid": endpoints.services[name].pid,
                    "health": future.result(),
                }
                for name, future in health.items()
            },
        }
        up_now = {name for name, entry in seen["services"].items() if entry["health"] in WELL}
        answers = {
            key: threads.submit(session.call, service, method, request, timeout_s=5)
            for key, (service, method, request) in asked.items()
            if service in up_now
        }
        for key, answer in answers.items():
            try:
                message = answer.result()
            except CommandFailed as error:
                if error.reason == "PLATFORM_MISSING":
                    seen["platform_problem"] = error.message
                elif key != "configs":
                    seen.setdefault("problems", []).append(f"{key}: {error.message}")
                continue
            if key == "configs":
                continue
            seen[key] = list(getattr(message, key)) if key in _LISTS else message
    if "problems" in seen:
        seen["problems"] = "; ".join(seen["problems"])
    return seen


def _health(session: Session, service: str) -> str:
    """SERVING, STANDBY, NOT_SERVING or UNREACHABLE."""
    import grpc

    timeout_s = min(session.timeout_s or HEALTH_TIMEOUT_S, HEALTH_TIMEOUT_S)

    # grpc.health.v1, by hand: its answer is one enum, and the package is not among what a client needs.
    check: Any = session.channel(service).unary_unary("/grpc.health.v1.Health/Check")
    try:
        answer: bytes = check(b"", timeout=timeout_s)
    except grpc.RpcError:
        return "UNREACHABLE"
    if answer[:2] == b"\x08\x01":
        return "SERVING"
    try:
        # HealthCheckRequest{service: "standby"}: known to a replica that stands by, and to it alone.
        check(b"\x0a\x07standby", timeout=timeout_s)
    except grpc.RpcError:
        return "NOT_SERVING"
    return "STANDBY"


def _show_status(session: Session, seen: dict[str, Any]) -> None:
    rows = [(name, entry["health"].lower(), entry["address"]) for name, entry in seen["services"].items()]
    session.show(table("service", "health", ("address", "fixed"), rows=rows))
    if (monitor := seen.get("monitor")) is not None:
        idleness = monitor.idleness
        session.show("")
        session.say(f"{'idle' if idleness.idle else 'not idle'}, since {ago(idleness.since_time)}")
        for reason in idleness.reasons:
            if reason.allows_idle == idleness.idle:
                session.say(f"  {reason.message}")
    if (schedule := seen.get("schedule")) is not None:
        said = {reason.message for reason in monitor.idleness.reasons} if monitor is not None else set()
        _show_schedule(session, schedule, said)
    if "platform_problem" in seen:
        session.say(f"no platform for the lab: {seen['platform_problem']}")
    if monitor is not None:
        names = ", ".join(gpu.display_name for gpu in monitor.gpus)
        for incident in monitor.incidents:
            session.say(f"incident: {incident.probe.rpartition('/')[2]}: {one_line(incident.detail, 80)}")
            session.say(f"  {incident.name}, since {ago(incident.start_time)}")
        session.say(f"gpu: {names or 'none'}{f' ({monitor.gpu_detail})' if not names else ''}")
    if (lock := seen.get("lock")) is not None:
        session.say(
            f"lock: on, by {who(lock.actor)}: {lock.comment}; an admin lifts it: nightshift unlock"
            if lock.engaged
            else "lock: off"
        )
    if schedule is not None:
        session.say(f"fence: {schedule.fence}")
    for preemption in seen.get("preemptions", []):
        session.say(f"last stop: {stop_line(preemption)}")
    if "approvals" in seen:
        waiting = seen["approvals"]
        session.say(f"approvals: {len(waiting)} pending")
        for approval in waiting[:5]:
            session.say(f"  {approval.name}  {one_line(approval.plan.summary, 60)}")
    for job in seen.get("training_jobs", []):
        from nightshift.trainer.v1 import resources_pb2 as trainer_types

        state = label(trainer_types.TrainingJobState.Name(job.state), "TRAINING_JOB_STATE_")
        session.say(f"training: {job.name} {state}, step {job.step}/{job.total_steps}")
    if "problems" in seen:
        session.say(f"problems: {seen['problems']}")


def _show_schedule(session: Session, schedule: Any, said: set[str]) -> None:
    """What runs by itself next, or why nothing does; what was `said` already is not said again."""
    due = [entry.skill.rpartition("/")[2] for entry in schedule.entries if entry.due]
    if schedule.open:
        session.say(f"by itself: {', '.join(due) or 'nothing is due'}; why: nightshift skills schedule")
        return
    watching = f" but {', '.join(due)}" if due else ""
    session.say(f"by itself: nothing{watching}; why: nightshift skills schedule")
    for reason in schedule.reasons:
        if reason not in said:
            session.say(f"  {reason}")


def _alive(pid: int) -> bool:
    try:
        # A zombie has ended; only its parent has not looked yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

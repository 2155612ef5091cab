"""The command in a process of its own against real servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from nightshift.experience.v1 import experience_service_pb2, resources_pb2
from nightshift.skills.v1 import resources_pb2 as skills_types
from nightshift.skills.v1 import skills_service_pb2
from nightshift_client.cli import gpus, words
from nightshift_client.cli.app import build
from tests.client.cli_plane import CommandPlane, plan
from tests.client.plane import write_endpoints

COMMAND = Path(sys.executable).with_name("nightshift")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plane(home: Path) -> Iterator[CommandPlane]:
    running = CommandPlane(home)
    running.start()
    yield running
    running.close()


@pytest.fixture
def nightshift(home: Path) -> Run:
    """Runs the command against the test's home."""

    def run(*arguments: str, home_folder: Path = home, columns: int = 80) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTSHIFT_")}
        environment = {
            **kept,
            "NIGHTSHIFT_HOME": str(home_folder),
            "COLUMNS": str(columns),
            "PYTHONWARNINGS": "error",
        }
        return subprocess.run(
            [COMMAND, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


def in_terminal(home: Path, answer: str, *arguments: str) -> tuple[int, str]:
    """Runs the command on a terminal and types an answer to its question."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"NIGHTSHIFT_HOME": str(home), "COLUMNS": "80", "TERM": "xterm"})
        os.execv(COMMAND, [str(COMMAND), *arguments])
    seen = b""
    answered = False
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            seen += chunk
            if not answered and b"[y/N]" in seen:
                os.write(terminal, answer.encode())
                answered = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), seen.decode()


def hidden(text: str) -> list[str]:
    """Characters that steer a terminal or hide."""
    return [
        c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    ]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_has_the_shared_options_and_a_help() -> None:
    root = typer.main.get_command(build())
    found = dict(commands(root))
    for path, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--timeout", "--home"} <= options, path
        assert command.help, path
    wanted = """up|down|status|import|runs list|runs search|runs export|configs performance|
        configs validate|configs reports|configs translate|opportunities|
        skills list|skills plan|skills run|skills runs|skills schedule|skills pause|skills resume|
        skills plugins|
        approvals list|approvals show|approvals approve|approvals deny|approvals watch|
        lab proposals|lab show|lab diff|lab reject|lab promote|lab rollback|lab promotions|
        train start|train watch|train list|train pause|train resume|train cancel|
        train estimate|adapters list|activity|preemptions list|audit list|audit verify|lock|unlock|
        credentials create|probes|gpus list|gpus models|incidents list|incidents show|incidents ack|
        incidents resolve|profile|recommendations list|recommendations check|
        recommendations predict|tuning show|tuning set|tuning outcomes|tokens create|tokens list|
        tokens revoke"""
    assert {tuple(each.split()) for each in wanted.split("|")} <= set(found)


def test_help_is_quick_and_loads_no_grpc(nightshift: Run) -> None:
    began = time.perf_counter()
    done = nightshift("--help")
    print(f"nightshift --help: {(time.perf_counter() - began) * 1e3:.0f} ms")
    assert done.returncode == 0
    program = (
        "import sys; from nightshift_client.cli.app import build; build(); assert 'grpc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.parametrize(
    "arguments", [(), ("skills",), ("frobnicate",), ("skills", "run"), ("runs", "list", "--limit", "x")]
)
def test_wrong_usage_exits_2(nightshift: Run, arguments: tuple[str, ...]) -> None:
    assert nightshift(*arguments).returncode == 2


def test_without_a_plane_it_says_so_and_exits_4(nightshift: Run, tmp_path: Path) -> None:
    for arguments in (("status",), ("runs", "list"), ("lock",), ("down",)):
        done = nightshift(*arguments, home_folder=tmp_path)
        assert done.returncode == 4
        assert "PLANE_DOWN" in done.stderr
        assert done.stdout == ""


def test_a_plane_that_does_not_answer_exits_4_in_time(nightshift: Run, home: Path, black_hole: None) -> None:
    began = time.monotonic()
    done = nightshift("runs", "list", "--timeout", "0.5", "--json")
    assert done.returncode == 4
    assert time.monotonic() - began < 10
    error = json.loads(done.stderr)["error"]
    assert error["reason"] == "UNREACHABLE"
    assert "nightshift up" in error["advice"]


def test_refusals_have_reason_words_advice_and_exit_3(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("lab", "show", "proposals/2")
    assert done.returncode == 3
    assert "FIELD_INVALID" in done.stderr
    assert not hidden(done.stderr)
    plane.skills.locked = True
    done = nightshift("skills", "run", "manual", "--yes")
    assert done.returncode == 3
    assert "GLOBAL_LOCK" in done.stderr
    assert "nightshift unlock" in done.stderr
    plane.skills.locked = False
    done = nightshift("skills", "run", "manual", "--yes", "--comment", "busy", "--json")
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["reason"] == "USER_ACTIVE"
    assert done.stdout == ""


def test_a_person_without_credential_is_told_how_to_get_one(nightshift: Run, plane: CommandPlane) -> None:
    (plane.home / "credentials" / "person" / f"{os.getuid()}.pem").unlink()
    done = nightshift("skills", "list")
    assert done.returncode == 3
    assert "IDENTITY_MISSING" in done.stderr
    assert "credentials create person" in done.stderr


def test_json_is_the_answer_itself(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift(
        "runs", "list", "--json", "--project", "default", "--limit", "7", "--filter", "production = true"
    )
    answer = json_format.ParseDict(json.loads(done.stdout), experience_service_pb2.ListRunsResponse())
    assert answer == experience_service_pb2.ListRunsResponse(runs=plane.runs.runs(), next_page_token="more")
    assert "next_page_token" in done.stdout
    asked = plane.runs.asked[-1]
    assert (asked.parent, asked.page_size, asked.filter) == ("projects/default", 7, "production = true")
    assert not hidden(done.stdout)


def test_plug_ins_with_what_enables_them_and_what_holds_them(nightshift: Run, plane: CommandPlane) -> None:
    said = re.sub(r"[ \t]+", " ", nightshift("skills", "plugins").stdout)
    for line in (
        "tidy (tidy 1.0) is disabled",
        f"digest {'d' * 64}",
        "plans /nightshift.lab.v1.LabService/CreateProposal",
        "layer seccomp there",
        "layer landlock waived: Function not implemented",
        "layer cgroup MISSING: not delegated to us",
    ):
        assert line in said.replace("\n", " "), line


def test_streams_are_one_json_a_line(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("approvals", "watch", "--json")
    lines = [
        json_format.Parse(line, skills_service_pb2.WatchApprovalsResponse())
        for line in done.stdout.splitlines()
    ]
    assert [line.seq for line in lines] == [1, 2, 3]
    exported = nightshift("runs", "export")
    runs = [json_format.Parse(line, resources_pb2.Run()) for line in exported.stdout.splitlines()]
    assert runs == plane.runs.runs()


def test_export_into_a_file(nightshift: Run, plane: CommandPlane, tmp_path: Path) -> None:
    target = tmp_path / "runs.jsonl"
    done = nightshift("runs", "export", "--output", str(target))
    assert done.returncode == 0
    assert "2 runs" in done.stdout
    assert [
        json_format.Parse(line, resources_pb2.Run()) for line in target.read_text().splitlines()
    ] == plane.runs.runs()


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "list"),
        ("runs", "search", "boot"),
        ("lab", "show", "1"),
        ("configs", "reports", "boats"),
        ("approvals", "show", "1"),
        ("skills", "plan", "confirm"),
        ("skills", "plugins"),
        ("status",),
    ],
)
def test_users_words_never_steer_the_terminal(
    nightshift: Run, plane: CommandPlane, arguments: tuple[str, ...]
) -> None:
    plane.skills.locked = True
    done = nightshift(*arguments)
    assert done.returncode == 0, done.stderr
    assert not hidden(done.stdout)
    assert "<U+202E>" in done.stdout.replace("\n", "")
    # Markup of the printing library is text like any other.
    assert "[bold red]" in re.sub(r"\s+", " ", done.stdout) or arguments[0] in ("status", "lab")


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "list"),
        ("profile",),
        ("configs", "performance"),
        ("configs", "reports"),
        ("skills", "list"),
        ("status",),
    ],
)
def test_tables_fit_80_columns(nightshift: Run, plane: CommandPlane, arguments: tuple[str, ...]) -> None:
    done = nightshift(*arguments)
    assert done.returncode == 0
    tables = [line for line in done.stdout.splitlines() if "  " in line or "─" in line]
    assert tables
    assert max(map(len, tables)) <= 80


@given(st.text())
def test_visible_text_holds_nothing_hidden_and_plain_text_stays(text: str) -> None:
    shown = words.visible(text)
    assert not hidden(shown)
    if text.isascii() and text.isprintable():
        assert shown == text
    assert not hidden(words.visible_lines(text))
    assert words.visible_lines(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "42 ms"),
        (5.25, "5.2 s"),
        (75, "1 min 15 s"),
        (7_300, "2 h 1 min"),
        (400_000, "4 d 15 h"),
        (-1.5, "-1.5 s"),
    ],
)
def test_spans_in_words(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


def test_a_dry_run_shows_the_plan_and_runs_nothing(nightshift: Run, plane: CommandPlane) -> None:
    for arguments in (("skills", "plan", "confirm"), ("skills", "run", "confirm", "--dry-run")):
        done = nightshift(*arguments, "-p", "full=true", "-p", "theme=boats")
        assert done.returncode == 0
        shown = done.stdout
        assert (
            shown.index("+new line")
            < shown.index("CreateProposal")
            < shown.index("untrusted")
            < shown.index("Because")
        )
    answer = json.loads(nightshift("skills", "plan", "confirm", "--json").stdout)
    assert json_format.ParseDict(answer["plan"], skills_types.Plan()) == plan()
    kinds = {type(request).__name__ for request in plane.skills.asked}
    assert kinds == {"PlanSkillRequest"}
    first = plane.skills.asked[0]
    assert json_format.MessageToDict(first.parameters) == {"full": True, "theme": "boats"}


def test_yes_confirms_the_very_plan_and_follows_the_run(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("skills", "run", "confirm", "--yes", "--comment", "go")
    assert done.returncode == 0
    request = plane.skills.asked[-1]
    assert (request.plan_digest, request.comment, len(request.request_id)) == ("d" * 64, "go", 36)
    assert "succeeded: It is stored." in done.stdout


def test_propose_only_proposes_and_only_where_that_is_possible(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("skills", "run", "confirm", "--propose")
    assert done.returncode == 0
    assert plane.skills.asked[-1].plan_digest == ""
    assert "approvals approve approvals/1" in done.stdout
    for tier in ("manual", "auto"):
        plane.skills.asked.clear()
        assert nightshift("skills", "run", tier, "--propose").returncode == 2
        assert {type(request).__name__ for request in plane.skills.asked} == {"PlanSkillRequest"}


def test_without_a_yes_nothing_happens(nightshift: Run, plane: CommandPlane) -> None:
    assert nightshift("skills", "run", "confirm").returncode == 2
    assert nightshift("skills", "run", "confirm", "--json").returncode == 2
    assert nightshift("approvals", "approve", "1").returncode == 2
    code, seen = in_terminal(plane.home, "n\n", "lab", "promote", "1")
    assert code == 0
    assert "Nothing was done" in seen
    assert {type(request).__name__ for request in plane.skills.asked} == {"PlanSkillRequest"}


def test_a_yes_on_the_terminal_runs_the_shown_plan(plane: CommandPlane) -> None:
    code, seen = in_terminal(plane.home, "y\n", "lab", "rollback", "7")
    assert code == 0, seen
    request = plane.skills.asked[-1]
    assert (request.name, request.plan_digest) == ("skills/rollback", "d" * 64)
    assert json_format.MessageToDict(request.parameters) == {"promotion": "promotions/7"}


def test_nothing_to_do_is_said(nightshift: Run, plane: CommandPlane) -> None:
    plane.skills.nothing_to_do = "No theme is without a config."
    done = nightshift("skills", "run", "confirm", "--yes")
    assert done.returncode == 0
    assert "No theme is without a config." in done.stdout


def test_a_decision_carries_digest_and_nonce_of_what_was_shown(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("approvals", "approve", "1", "--yes", "--comment", "fine")
    assert done.returncode == 0
    request = plane.skills.asked[-1]
    assert (request.name, request.plan_digest, request.nonce, request.comment) == (
        "approvals/1",
        "d" * 64,
        "n1",
        "fine",
    )
    assert request.decision == skills_service_pb2.DECISION_APPROVE
    nightshift("approvals", "deny", "approvals/1", "--yes", "--json")
    assert plane.skills.asked[-1].decision == skills_service_pb2.DECISION_DENY


def test_approvals_by_state(nightshift: Run, plane: CommandPlane) -> None:
    states = {"all": 0, "pending": 1, "denied": 3}
    for state, number in states.items():
        assert nightshift("approvals", "list", "--state", state).returncode == 0
        assert plane.skills.asked[-1].state == number
    assert nightshift("approvals", "list", "--state", "lost").returncode == 2


def test_an_import_is_followed_to_its_end_and_its_failure_is_ours(
    nightshift: Run, plane: CommandPlane, tmp_path: Path
) -> None:
    done = nightshift("import", str(tmp_path), "--platform", str(tmp_path), "--json")
    assert done.returncode == 0
    states = [json.loads(line)["import_job"]["state"] for line in done.stdout.splitlines()]
    assert states[-1] == "IMPORT_JOB_STATE_SUCCEEDED"
    assert plane.runs.asked[-1].directory == str(tmp_path)
    assert "succeeded" in nightshift("import", str(tmp_path)).stdout
    plane.runs.fails = True
    assert nightshift("import", str(tmp_path)).returncode == 1
    assert nightshift("import").returncode == 2


def test_ctrl_c_in_a_watch_leaves_the_job_alone(home: Path, plane: CommandPlane) -> None:
    plane.trainer.endless = True
    process = subprocess.Popen(
        [COMMAND, "train", "watch", "--json"],
        env={**os.environ, "NIGHTSHIFT_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    plane.trainer.endless = False
    assert process.returncode == 130
    assert "goes on" in errors
    assert [json.loads(line)["points"][0]["step"] for line in lines] == [1, 2, 3]


def test_the_gpu_is_shown_with_everything_hidden_made_visible(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("gpus", "models", columns=120)
    assert done.returncode == 0, done.stderr
    assert hidden(done.stdout) == []
    assert "90.0 GiB of 100.0 GiB in use (90 %), 10.0 GiB free" in done.stdout
    assert "sd35 <U+202E>[bold]x[/]" in done.stdout
    assert re.search(r"sounds +mmaudio +1\.0 GiB +now, by 2 +no", done.stdout)
    assert re.search(r"qwen3:4b +ollama +1\.0 GiB +not told +yes", done.stdout)
    assert re.search(r"gemma3:1b +ollama +1\.0 GiB +not loaded", done.stdout)
    assert "! ollama: no answer <U+001B>[2J" in done.stdout
    seen = json.loads(nightshift("gpus", "models", "--json").stdout)
    assert seen["models"][1]["in_use"] == 2
    assert seen["form"] == "GPU_HOST_FORM_NEW"


def test_what_became_of_models_is_told_in_lines() -> None:
    ref = {"backend": "text", "model": "m\u202e"}
    unloaded = {"outcome": "UNLOAD_OUTCOME_UNLOADED", "model": ref, "freed_bytes": str(2**30)}
    spared = {"outcome": "UNLOAD_OUTCOME_NONE_IDLE", "spared": [{"model": ref, "reason": "in use"}]}
    assert gpus.told(unloaded) == ["unloaded m<U+202E> (text), 1.0 GiB freed"]
    assert gpus.told(spared) == [
        "none is idle; nothing unloaded",
        "  spared m<U+202E> (text): in use",
    ]
    loaded = {"model": ref, "free_bytes": "7", "vram_bytes": "1024"}
    assert gpus.told(loaded) == ["m<U+202E> (text) loaded, holds 1.0 KiB"]
    assert gpus.told({**loaded, "already_loaded": True})[0].startswith("m<U+202E> (text) was loaded already")
    assert gpus.told({"name": "proposals/1"}) == []


def test_watching_a_training_into_a_pipe_gives_lines(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("train", "watch", "1")
    assert done.returncode == 0
    assert "step 1/10" in done.stdout
    assert "loss 2.000" in done.stdout


def test_status_at_one_glance(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("status", "--json")
    assert done.returncode == 0
    seen = json.loads(done.stdout)
    assert set(seen["services"]) == {"monitor", "experience", "skills", "lab", "trainer"}
    assert {entry["health"] for entry in seen["services"].values()} == {"SERVING"}
    assert seen["monitor"]["idleness"]["idle"] is True
    assert seen["schedule"]["fence"] == "7"
    assert len(seen["approvals"]) == len(seen["training_jobs"]) == 1
    shown = nightshift("status").stdout
    for part in (
        "idle",
        "fence: 7",
        "approvals: 1 pending",
        "training: trainingJobs/1 running, step 3/10",
        "lock: off",
    ):
        assert part in shown


def test_status_with_a_service_missing_exits_4_and_shows_the_rest(
    nightshift: Run, plane: CommandPlane
) -> None:
    document = json.loads((plane.home / "endpoints.json").read_text())
    ports = {name: int(entry["address"].rpartition(":")[2]) for name, entry in document["services"].items()}
    write_endpoints(plane.home, {**ports, "lab": 1})
    done = nightshift("status", "--json")
    assert done.returncode == 4
    seen = json.loads(done.stdout)
    assert seen["services"]["lab"]["health"] == "UNREACHABLE"
    assert seen["services"]["skills"]["health"] == "SERVING"


def test_a_broken_audit_log_exits_1(nightshift: Run, plane: CommandPlane) -> None:
    assert "41 events" in nightshift("audit", "verify").stdout
    plane.skills.audit = skills_service_pb2.VerifyAuditResponse(
        valid=False, first_bad_seq=12, detail="hash differs"
    )
    done = nightshift("audit", "verify")
    assert done.returncode == 1
    assert "event 12" in done.stderr
    assert nightshift("audit", "verify", "--json").returncode == 1


def test_the_lock_takes_one_call(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("lock", "smoke", "--json")
    assert json.loads(done.stdout)["engaged"] is True
    assert plane.skills.locked


def test_credentials_are_made_and_bad_ones_refused(nightshift: Run, home: Path) -> None:
    done = nightshift("credentials", "create", "person", "ada", "--role", "approver", "--json")
    assert done.returncode == 0
    made = json.loads(done.stdout)
    assert Path(made["key"]).stat().st_mode & 0o777 == 0o600
    assert nightshift("credentials", "create", "platform", "second").returncode == 0
    for bad in (("person", "ada", "--role", "king"), ("service", "x"), ("person", "../x")):
        assert nightshift("credentials", "create", *bad).returncode == 2


def test_without_the_kit_it_says_which_extra_to_install(home: Path) -> None:
    program = """
import sys
sys.modules["nightshift_kit"] = None
sys.argv = ["nightshift", *sys.argv[1:]]
from nightshift_client.cli import main
main()
"""
    for arguments in (["up"], ["credentials", "create", "person", "ada"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--home", str(home)],
            check=False,
            timeout=30,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "nightshift-plane[all]" in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(home: Path, plane: CommandPlane) -> None:
    environment = {**os.environ, "NIGHTSHIFT_HOME": str(home)}
    line = f"{COMMAND} runs export | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert "Traceback" not in done.stderr


def test_triggers_are_paused_and_resumed(nightshift: Run, plane: CommandPlane) -> None:
    done = nightshift("skills", "pause", "confirm", "--comment", "exam week")
    assert done.returncode == 0
    assert "confirm does not start by itself" in done.stdout
    answer = json.loads(nightshift("skills", "resume", "confirm", "--json").stdout)
    assert json_format.ParseDict(answer, skills_types.ScheduleEntry()).paused is False
    asked = [(one.skill, one.paused, one.comment) for one in plane.skills.asked[-2:]]
    assert asked == [("skills/confirm", True, "exam week"), ("skills/confirm", False, "")]
    shown = nightshift("skills", "schedule").stdout
    assert "41 runs" in shown
    assert "paused" in shown


def test_incidents_are_listed_shown_and_answered(nightshift: Run, plane: CommandPlane) -> None:
    listed = nightshift("incidents", "list")
    assert "platform" in listed.stdout
    assert "3 flaps" in listed.stdout
    assert not hidden(listed.stdout)
    assert list(plane.monitor.asked[-1].states) == [1, 2]
    assert nightshift("incidents", "list", "--state", "nosuch").returncode == 2
    name = plane.monitor.incident.name
    seen = nightshift("incidents", "ack", name.rpartition("/")[2], "--comment", "on my way")
    assert (plane.monitor.asked[-1].name, plane.monitor.asked[-1].comment) == (name, "on my way")
    assert "by person/admin/1000: on my way" in seen.stdout
    over = nightshift("incidents", "resolve", name, "--json")
    assert json.loads(over.stdout)["state"] == "INCIDENT_STATE_RESOLVED"


def test_gpus_and_the_usual_week_in_words(nightshift: Run, plane: CommandPlane) -> None:
    shown = nightshift("gpus", "list").stdout
    words = re.sub(r"\s+", " ", shown)
    assert "22.0 GiB of 96.0 GiB 37 %" in words
    assert "GPU is lost" in words
    assert "pid 42" in words
    assert max(map(len, shown.splitlines())) <= 80
    week = nightshift("activity", "--profile").stdout
    assert "Tue  ·········████···········" in week
    assert "Mon  ························" in week
    assert "next expected" in week
    assert "120" in nightshift("activity", "--hours", "5").stdout
    assert plane.monitor.asked[-1].page_size == 5
    assert nightshift("activity", "--hours", "5", "--profile").returncode == 2


def test_profile_and_advice_in_words(nightshift: Run, plane: CommandPlane) -> None:
    shown = nightshift("profile", columns=120)
    assert shown.returncode == 0 and not hidden(shown.stdout)
    for part in (
        "3loop ★",
        "75% of 8",
        "$0.80",
        "$0.50-$1.20",
        "0.81",
        "2: 8",
        "-20 points",
        "COST_IMPLAUSIBLE",
    ):
        assert part in shown.stdout, part
    told = nightshift(
        "recommendations",
        "list",
        *("--mode", "2loop", "--max-rounds", "5", "--half-life", "30", "--only-given"),
        *("--rule", "min_saving=0.3", "--rule", "min_runs=7"),
        columns=200,
    )
    assert told.returncode == 0 and not hidden(told.stdout)
    assert "mode: 2loop → 3loop  (medium confidence)" in told.stdout
    assert "-$0.40 (-33 %), +4 points of quality" in told.stdout
    asked = plane.runs.asked[-1]
    assert (asked.settings.mode, asked.settings.max_rounds, asked.use_latest_run) == ("2loop", 5, False)
    assert asked.half_life.seconds == 30 * 86_400
    assert (asked.rules.min_saving, asked.rules.min_runs) == (0.3, 7)
    assert not asked.settings.HasField("max_cost_usd")
    cost = nightshift("recommendations", "predict", "--mode", "3loop")
    assert "$0.80, with 60% between $0.05 and $1.20 (mode 3loop, 4 runs)" in " ".join(cost.stdout.split())
    assert "4 runs allow no interval of 90%" in cost.stdout
    assert nightshift("recommendations", "list", "--rule", "nonsense=1").returncode == 2


def test_ci_acts_on_the_exit_status_of_a_check(nightshift: Run, plane: CommandPlane) -> None:
    assert nightshift("recommendations", "check").returncode == 5
    advised = nightshift("recommendations", "check", "--json", "--category", "mode")
    assert advised.returncode == 5
    assert json.loads(advised.stdout)["recommendations"][0]["recommended_value"] == "3loop"
    assert nightshift("recommendations", "check", "--confidence", "high").returncode == 0
    assert nightshift("recommendations", "check", "--category", "cost").returncode == 0
    assert nightshift("recommendations", "check", "--confidence", "sure").returncode == 2
    assert nightshift("recommendations", "check", "--category", "luck").returncode == 2


def test_auto_tune_in_words(nightshift: Run, plane: CommandPlane) -> None:
    shown = nightshift("tuning", "show")
    assert "projects/default/tuning: on" in shown.stdout
    assert "from medium confidence on, never low, from 5 runs on" in " ".join(shown.stdout.split())
    became = nightshift("tuning", "outcomes", columns=200)
    assert "(reverted)" in became.stdout and "worse with 91%" in became.stdout
    assert not hidden(became.stdout)

"""The real command against the real plane, in the order in which its user would go."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from examples.demo.stage import COMMAND, CommandFailedError, Stage, tree_digest
from nightshift.experience.v1 import experience_service_pb2 as experience
from nightshift.experience.v1 import resources_pb2 as runs
from nightshift.lab.v1 import lab_service_pb2 as lab
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.monitor.v1 import monitor_service_pb2 as monitor
from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift.skills.v1 import autonomy_service_pb2 as autonomy
from nightshift.skills.v1 import resources_pb2 as skills_types
from nightshift.skills.v1 import skills_service_pb2 as skills
from nightshift.skills.v1 import standing_approvals_pb2 as standing_types
from nightshift.skills.v1 import tokens_service_pb2 as tokens
from nightshift.trainer.v1 import trainer_service_pb2 as trainer
from nightshift_client import Client, DeliveryState
from nightshift_kit.rpc.tls import create_credential
from nightshift_kit.settings import PlaneSettings
from tests.chaos.themes import workshop
from tests.end_to_end.conftest import RUNS

SERVICES = {"monitor", "experience", "skills", "lab", "trainer"}

MessageT = TypeVar("MessageT", bound=Message)
ResultT = TypeVar("ResultT")

READS: list[tuple[tuple[str, ...], type[Message]]] = [
    (("runs", "list"), experience.ListRunsResponse),
    (("runs", "search", "boat", "--mode", "text"), experience.SearchRunsResponse),
    (("configs", "reports"), lab.ListConfigReportsResponse),
    (("configs", "performance"), experience.ListConfigPerformanceResponse),
    (("opportunities",), experience.ListOpportunitiesResponse),
    (("skills", "list"), skills.ListSkillsResponse),
    (("skills", "show", "propose_config"), skills_types.Skill),
    (("skills", "plan", "propose_config"), skills.PlanSkillResponse),
    (("skills", "runs"), skills.ListSkillRunsResponse),
    (("skills", "schedule"), skills.Schedule),
    (("preemptions", "list"), skills.ListPreemptionsResponse),
    (("approvals", "list", "--state", "all"), skills.ListApprovalsResponse),
    (("autonomy", "show", "propose_config"), standing_types.Autonomy),
    (("autonomy", "list"), autonomy.ListStandingApprovalsResponse),
    (("autonomy", "manual-only"), standing_types.Autonomy),
    (("lab", "proposals"), lab.ListProposalsResponse),
    (("lab", "promotions"), lab.ListPromotionsResponse),
    (("lab", "configs"), lab.ListConfigsResponse),
    (("train", "list"), trainer.ListTrainingJobsResponse),
    (("adapters", "list"), trainer.ListAdaptersResponse),
    (("activity",), monitor_types.Idleness),
    (("activity", "--profile"), monitor_types.ActivityProfile),
    (("activity", "--hours", "24"), monitor.ListActivityResponse),
    (("gpus", "list"), monitor.ListGpusResponse),
    (("incidents", "list", "--state", "all"), monitor.ListIncidentsResponse),
    (("probes",), monitor.ListProbesResponse),
    (("probes", "platform", "--run"), monitor_types.ProbeResult),
    (("tokens", "list", "--all"), tokens.ListTokensResponse),
    (("audit", "list"), skills.ListAuditEventsResponse),
    (("audit", "verify"), skills.VerifyAuditResponse),
]


def parsed(document: Any, kind: type[MessageT]) -> MessageT:
    """Protobuf JSON as a message; unknown fields fail."""
    return json_format.ParseDict(document, kind())


def until(look: Callable[[], ResultT | None], what: str, timeout_s: float = 40) -> ResultT:
    """The first true answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{timeout_s:.0f} s passed without {what}")


def ended(stage: Stage, run: skills_types.SkillRun) -> skills_types.SkillRun:
    """A run that has succeeded."""

    def look() -> skills_types.SkillRun | None:
        seen = parsed(stage.nightshift("skills", "show-run", run.name), skills_types.SkillRun)
        return seen if seen.HasField("end_time") else None

    seen = until(look, f"the end of {run.name}")
    assert seen.state == skills_types.SKILL_RUN_STATE_SUCCEEDED, seen
    return seen


@pytest.fixture(scope="module")
def themed(stage: Stage) -> None:
    """Runs over ten themes that no config fits, recorded as a platform records them."""
    told, kept = workshop(random.Random(11))
    with Client(home=stage.home, deadline_s=5, raise_errors=True) as client:
        for run in told:
            assert client.record_run(run).state is DeliveryState.STORED
        for name in kept:
            assert client.record_feedback(name, "favorite").state is DeliveryState.STORED


def test_up_again_says_that_a_plane_runs(stage: Stage) -> None:
    with pytest.raises(CommandFailedError) as caught:
        stage.nightshift("up", "--detach")
    assert caught.value.code == 1
    error = json.loads(caught.value.errors)["error"]
    assert error["reason"] == "START_FAILED"
    assert "nightshift down" in error["message"]
    assert caught.value.output == ""


def test_taken_ports_are_named(stage: Stage, tmp_path: Path) -> None:
    base = int(stage.endpoints()["monitor"]["address"].rpartition(":")[2]) - 1
    done = stage.command("up", "--detach", "--port-base", str(base), "--home", str(tmp_path / "home"))
    assert done.returncode == 1
    assert "ports are taken" in done.stderr
    assert "--port-base" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_instead_of_a_certificate(stage: Stage, tmp_path: Path) -> None:
    """Ada has no certificate: a folder that tells where the plane is, and a token."""
    kept = tmp_path / "ada.token"
    wish = ("ada", "--role", "approver", "--expires", "30m", "--name", "laptop", "--file", str(kept))
    made = stage.nightshift("tokens", "create", *wish)
    issued = parsed(made, tokens.CreateTokenResponse)
    assert not issued.secret
    assert kept.stat().st_mode & 0o777 == 0o600
    hers = tmp_path / "home"
    (hers / "ca").mkdir(parents=True)
    for name in ("endpoints.json", "ca/ca.pem"):
        (hers / name).write_bytes((stage.home / name).read_bytes())

    def ada(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments, "--home", str(hers), "--json"],
            env={**stage.environment, "NIGHTSHIFT_CLIENT_TOKEN_FILE": str(kept)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def refused(*arguments: str) -> str:
        done = ada(*arguments)
        assert done.returncode == 3, done
        assert kept.read_text().strip() not in done.stdout + done.stderr
        return str(json.loads(done.stderr)["error"]["reason"])

    # All five services know her by themselves, and nothing shows the token.
    for arguments in (("status",), ("runs", "list")):
        done = ada(*arguments)
        assert done.returncode == 0, done.stderr
        assert "problems" not in json.loads(done.stdout)
        assert kept.read_text().strip() not in done.stdout + done.stderr
    run = parsed(json.loads(ada("skills", "run", "health_check", "--yes").stdout), skills_types.SkillRun)
    assert run.initiator == "spiffe://nightshift.local/person/approver/ada"
    assert refused("unlock") == "ROLE_INSUFFICIENT"
    own = parsed(json.loads(ada("tokens", "list").stdout), tokens.ListTokensResponse)
    # Other tests of this plane may have made some for her, too.
    (shown,) = [token for token in own.tokens if token.name == issued.token.name]
    assert shown.display_name == "laptop"
    assert {token.person for token in own.tokens} == {"ada"}
    kept.chmod(0o640)
    assert refused("status") == "TOKEN_FILE_OPEN"
    kept.chmod(0o600)
    # The file is there already: nothing is issued that nobody could keep.
    again = stage.command("tokens", "create", "ada", "--file", str(kept))
    assert again.returncode == 1
    assert "exists" in again.stderr
    gone = parsed(stage.nightshift("tokens", "revoke", issued.token.name), tokens.LocalToken)
    assert gone.state == tokens.LOCAL_TOKEN_STATE_REVOKED
    assert refused("runs", "list") == "TOKEN_REVOKED"
    problems = json.loads(ada("status").stdout)["problems"]
    assert problems.count("The token was revoked") == 6, problems

    def sealed() -> bool:
        """Whether the refusals of all five services stand in the chain."""
        answer = stage.nightshift("audit", "list", "--kind", "token.refused", "--limit", "500")
        events = parsed(answer, skills.ListAuditEventsResponse).audit_events
        mine = [event for event in events if event.subject == issued.token.name]
        return {event.source for event in mine if event.payload["reason"] == "TOKEN_REVOKED"} == SERVICES

    until(sealed, "the refusals in the audit")
    assert parsed(stage.nightshift("audit", "verify"), skills.VerifyAuditResponse).valid


def test_a_token_that_is_shown_is_shown_once(stage: Stage) -> None:
    done = stage.command("tokens", "create", "bob", "--expires", "1m")
    assert done.returncode == 0
    secret = done.stdout.split()[-1]
    assert secret.startswith("nst1_")
    listed = stage.command("tokens", "list", "--all").stdout
    assert "bob as viewer" in listed
    assert secret not in listed
    assert stage.command("tokens", "create", "bob", "--expires", "1y").returncode == 2
    assert stage.command("tokens", "create", "bob", "--expires", "91d").returncode == 3


def test_status_is_made_of_messages(stage: Stage) -> None:
    seen = stage.nightshift("status")
    assert {entry["health"] for entry in seen["services"].values()} == {"SERVING"}
    parsed(seen["monitor"], monitor_types.Status)
    parsed(seen["schedule"], skills.Schedule)
    parsed(seen["lock"], skills_types.Lock)
    assert "problems" not in seen
    assert "platform_problem" not in seen
    shown = stage.command("status")
    assert shown.returncode == 0
    assert "by itself:" in shown.stdout


def test_import_counts_what_is_there_and_nothing_twice(stage: Stage) -> None:
    def imported() -> runs.ImportJob:
        lines = stage.nightshift("import", str(stage.workshop), "--platform", str(stage.platform_root))
        answers = lines if isinstance(lines, list) else [lines]
        return [parsed(line, experience.WatchImportJobResponse) for line in answers][-1].import_job

    first, second = imported(), imported()
    assert first.state == second.state == runs.IMPORT_JOB_STATE_SUCCEEDED
    assert first.created_count > RUNS / 2
    assert (second.created_count, second.updated_count) == (0, 0)
    assert second.unchanged_count == first.created_count
    exported = stage.command("runs", "export")
    assert len(exported.stdout.splitlines()) == first.created_count
    for line in exported.stdout.splitlines():
        json_format.Parse(line, runs.Run())


@pytest.mark.parametrize(("arguments", "kind"), READS, ids=[" ".join(words) for words, _ in READS])
def test_every_read_answers_in_protobuf_json_and_in_words(
    stage: Stage, arguments: tuple[str, ...], kind: type[Message]
) -> None:
    parsed(stage.nightshift(*arguments), kind)
    shown = stage.command(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("skills", "plan", "frobnicate"), "SKILL_UNKNOWN"),
        (("skills", "run", "propose_config", "--yes", "-p", "colour=red"), "PARAMETERS_INVALID"),
        (("approvals", "approve", "nosuch", "--yes"), "APPROVAL_UNKNOWN"),
        (("lab", "show", "nosuch"), "ID_INVALID"),
        (("lab", "promote", "nosuch", "--yes"), "ID_INVALID"),
        (("lab", "rollback", "nosuch", "--yes"), "ID_INVALID"),
        (("runs", "show", "nosuch"), "RUN_UNKNOWN"),
        (("runs", "list", "--filter", "colour = red"), "FILTER_INVALID"),
        (("import", "/nonexistent"), "DIRECTORY_NOT_FOUND"),
        (("probes", "nosuch"), "PROBE_UNKNOWN"),
        (("incidents", "show", "nosuch"), "ID_INVALID"),
        (("adapters", "show", "nosuch"), "ADAPTER_UNKNOWN"),
        (("train", "watch", "nosuch"), "TRAINING_JOB_UNKNOWN"),
    ],
)
def test_refusals_name_their_reason(stage: Stage, arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(CommandFailedError) as caught:
        stage.nightshift(*arguments)
    assert caught.value.code == 3
    assert json.loads(caught.value.errors)["error"]["reason"] == reason
    assert caught.value.output == ""


@pytest.mark.usefixtures("themed")
def test_one_improvement_from_the_plan_to_the_rollback(stage: Stage) -> None:
    found = until(
        lambda: parsed(stage.nightshift("opportunities"), experience.ListOpportunitiesResponse).opportunities,
        "an opportunity, which the plane finds by itself",
    )
    assert any(each.kind == runs.OPPORTUNITY_KIND_UNCOVERED_THEME for each in found)

    # The scheduler may ask by itself before we do: both ways end at one approval.
    stage.nightshift("skills", "run", "propose_config", "--propose")
    approval = until(
        lambda: parsed(stage.nightshift("approvals", "list"), skills.ListApprovalsResponse).approvals,
        "an approval",
    )[0]
    assert stage.nightshift("lab", "proposals") == {}
    shown = stage.command("approvals", "show", approval.name).stdout
    assert approval.plan.digest in shown
    decided = parsed(stage.nightshift("approvals", "approve", approval.name, "--yes"), skills_types.Approval)
    assert decided.state == skills_types.APPROVAL_STATE_APPROVED
    ended(stage, skills_types.SkillRun(name=decided.skill_run))

    proposals = parsed(stage.nightshift("lab", "proposals"), lab.ListProposalsResponse).proposals
    assert [each.state for each in proposals] == [lab_types.PROPOSAL_STATE_VALIDATED]
    proposal = proposals[0]
    assert parsed(stage.nightshift("lab", "show", proposal.name), lab_types.Proposal) == proposal
    assert parsed(stage.nightshift("lab", "diff", proposal.name), lab.DiffProposalResponse).diff

    before = tree_digest(stage.platform_root)
    planned = parsed(
        stage.nightshift("lab", "promote", proposal.name, "--dry-run"), skills.PlanSkillResponse
    ).plan
    assert tree_digest(stage.platform_root) == before
    run = parsed(stage.nightshift("lab", "promote", proposal.name, "--yes"), skills_types.SkillRun)
    assert run.plan.digest == planned.digest
    ended(stage, run)
    promotion = parsed(stage.nightshift("lab", "promotions"), lab.ListPromotionsResponse).promotions[0]
    promoted = json.loads((stage.platform_root / promotion.path).read_text(encoding="utf-8"))
    assert promoted == json_format.MessageToDict(proposal.content)
    ended(
        stage,
        parsed(stage.nightshift("lab", "rollback", promotion.name, "--yes"), skills_types.SkillRun),
    )
    assert tree_digest(stage.platform_root) == before

    verdict = parsed(stage.nightshift("audit", "verify"), skills.VerifyAuditResponse)
    assert verdict.valid
    kinds = {
        event.kind
        for event in parsed(
            stage.nightshift("audit", "list", "--limit", "1000"), skills.ListAuditEventsResponse
        ).audit_events
    }
    assert {"config.promoted", "config.rolled_back"} <= kinds, kinds


def test_the_lock_holds_until_an_admin_lifts_it(stage: Stage) -> None:
    create_credential(PlaneSettings(home=stage.home), "person", "looker", "viewer")
    looker = {**stage.environment, "NIGHTSHIFT_CLIENT_PERSON": "looker"}

    def as_looker(*arguments: str) -> subprocess.CompletedProcess[str]:
        own, stage.environment = stage.environment, looker
        try:
            return stage.command(*arguments)
        finally:
            stage.environment = own

    locked = as_looker("lock", "strange pictures", "--json")
    assert locked.returncode == 0, "anybody may pull the brake"
    assert parsed(json.loads(locked.stdout), skills_types.Lock).engaged
    assert "strange pictures" in stage.command("status").stdout
    refused = stage.command("skills", "run", "aggregate_experience", "--yes")
    assert refused.returncode in (0, 3)
    assert "GLOBAL_LOCK" in refused.stderr or "Nothing to do" in refused.stdout
    lifting = as_looker("unlock", "--json")
    assert lifting.returncode == 3
    assert json.loads(lifting.stderr)["error"]["reason"] == "ROLE_INSUFFICIENT"
    assert not parsed(stage.nightshift("unlock", "looked at"), skills_types.Lock).engaged


def test_without_a_platform_it_starts_and_says_what_is_missing(stage: Stage, tmp_path: Path) -> None:
    bare = {
        key: value
        for key, value in stage.environment.items()
        if key not in ("NIGHTSHIFT_PLATFORM_ROOT", "NIGHTSHIFT_MONITOR_PLATFORM_URL")
    } | {"NIGHTSHIFT_HOME": str(tmp_path / "home")}
    own, stage.environment = stage.environment, bare
    try:
        (tmp_path / "home").mkdir(mode=0o700)
        # Left by a plane that lost its power; the number belongs to nobody's plane now.
        (tmp_path / "home" / "plane.pid").write_text(f"{os.getpid()}\n")
        gone = stage.command("down", "--json")
        assert (gone.returncode, json.loads(gone.stderr)["error"]["reason"]) == (4, "PLANE_DOWN")
        up = stage.command("up", "--detach", "--port-base", "0")
        assert up.returncode == 0, up.stderr
        for part in ("NIGHTSHIFT_PLATFORM_ROOT", "NIGHTSHIFT_MONITOR_PLATFORM_URL", "settings.toml"):
            assert part in up.stderr
        status = stage.command("status")
        assert status.returncode == 0, status.stdout
        assert "NIGHTSHIFT_MONITOR_PLATFORM_URL" in status.stdout
        assert "by itself: nothing" in status.stdout
        assert "NIGHTSHIFT_PLATFORM_ROOT" in status.stdout
        configs = stage.command("lab", "configs", "--json")
        assert json.loads(configs.stderr)["error"]["reason"] == "PLATFORM_MISSING"
    finally:
        down = stage.command("down", "--json")
        stage.environment = own
    assert down.returncode == 0
    assert json.loads(down.stdout)["stopped_pid"]
    assert not (tmp_path / "home" / "endpoints.json").exists()

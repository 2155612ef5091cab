"""What a whole plane leaves behind: personal data nowhere, users' words in their place, private files.

One plane does everything with a simulated workshop by itself (import, aggregate, embed, detect, propose) and
is then searched, file by file. Afterwards its audit is tampered with, one way at a time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import stat
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToJson

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift.skills.v1 import resources_pb2 as skills_types
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1.skills_service_pb2_grpc import SkillsServiceStub
from nightshift_kit.storage import Database
from tests.adversary.intruders import refusal
from tests.experience.experience_support import simulate
from tests.support.collector import Collector
from tests.support.plane import PLATFORM, RealPlane, real_plane

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PARENT = "projects/default"
RUNS = 1000
SECRET = "Wilmaline Zwickelbart, Tintenfassallee 12b"
SERVICES = ("monitor", "experience", "lab", "trainer", "skills")


@dataclass
class Traces:
    """A plane that has worked, and what it worked on."""

    plane: RealPlane
    truth: dict[str, Any]
    prompts: list[str]
    canaries: list[str]
    collector: Collector

    @property
    def skills(self) -> Any:
        return self.plane.stub(SkillsServiceStub, "skills")

    @property
    def experience(self) -> Any:
        return self.plane.stub(ExperienceServiceStub, "experience")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traces(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traces]:
    folder = tmp_path_factory.mktemp("traces")
    truth = await asyncio.to_thread(simulate, folder / "workshop", "--runs", str(RUNS), "--seed", "8")
    with Collector() as collector:
        exporting = {"NIGHTSHIFT_TELEMETRY_OTLP_ENDPOINT": collector.endpoint}
        async with real_plane(folder, exporting) as plane:
            canaries = truth["canary_names"] + truth["canary_addresses"]
            made = Traces(plane, truth, _prompts(truth), canaries, collector)
            await _import(plane, folder / "workshop")
            await _learn(made)
            await _attack_with_words(made)
            yield made


def _prompts(truth: dict[str, Any]) -> list[str]:
    return sorted({run["prompt"] for run in truth["runs"] if run.get("prompt") and len(run["prompt"]) > 25})


async def _import(plane: RealPlane, directory: Path) -> None:
    stub = plane.stub(ExperienceServiceStub, "experience", PLATFORM)
    job = await stub.ImportRuns(
        experience_pb.ImportRunsRequest(parent=PARENT, directory=str(directory)), timeout=10
    )
    async for answer in stub.WatchImportJob(experience_pb.WatchImportJobRequest(name=job.name), timeout=120):
        job = answer.import_job
    assert job.state == experience_types.IMPORT_JOB_STATE_SUCCEEDED
    assert job.created_count > RUNS // 2


async def _learn(traces: Traces) -> None:
    """Waits until the idle machine has embedded all and asks for a proposal; approves it."""
    async with asyncio.timeout(240):
        while True:
            state = await traces.experience.GetExperienceState(
                experience_pb.GetExperienceStateRequest(parent=PARENT), timeout=10
            )
            pending = await traces.skills.ListApprovals(
                skills_pb.ListApprovalsRequest(state=skills_types.APPROVAL_STATE_PENDING), timeout=10
            )
            if pending.approvals and not state.pending_embedding_count:
                break
            await asyncio.sleep(0.5)
    approval = pending.approvals[0]
    await traces.skills.DecideApproval(
        skills_pb.DecideApprovalRequest(
            name=approval.name,
            decision=skills_pb.DECISION_APPROVE,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
        ),
        timeout=10,
    )
    async with asyncio.timeout(60):
        while True:
            run = await traces.skills.GetSkillRun(
                skills_pb.GetSkillRunRequest(name=approval.skill_run), timeout=10
            )
            if run.end_time.seconds:
                break
            await asyncio.sleep(0.2)
    assert run.state == skills_types.SKILL_RUN_STATE_SUCCEEDED, run


async def _attack_with_words(traces: Traces) -> None:
    """Personal words wherever a request takes words; none of these calls may leave a trace of them."""
    experience: Any = traces.plane.stub(ExperienceServiceStub, "experience", PLATFORM)
    for query in (SECRET, *traces.canaries):
        answer = await experience.SearchRuns(
            experience_pb.SearchRunsRequest(parent=PARENT, query=query), timeout=30
        )
        found = MessageToJson(answer)
        assert not [canary for canary in traces.canaries if canary in found]
    refused = [
        (experience.SearchRuns, experience_pb.SearchRunsRequest(parent=PARENT, query=SECRET * 400)),
        (experience.SearchRuns, experience_pb.SearchRunsRequest(parent=SECRET, query="x")),
        (experience.ListRuns, experience_pb.ListRunsRequest(parent=PARENT, filter=f'prompt = "{SECRET}"')),
        (experience.ListRuns, experience_pb.ListRunsRequest(parent=PARENT, page_token=SECRET)),
    ]
    # The name of what is not there is said back to whoever asked for it, and to nobody else.
    unknown = experience_pb.GetRunRequest(name=f"{PARENT}/runs/{SECRET}")
    assert (await refusal(experience.GetRun(unknown, timeout=10))).reason
    run = experience_types.Run(
        name=f"{PARENT}/runs/run_1_aaaaaa", prompt=SECRET + "x" * 2**20, device="dev", language=SECRET
    )
    refused.append((experience.RecordRun, experience_pb.RecordRunRequest(parent=PARENT, run=run)))
    for method, request in refused:
        error = await refusal(method(request, timeout=10))
        assert error.reason, (method, error)
        assert "Zwickelbart" not in f"{error}", error.reason
    wanted = skills_pb.RunSkillRequest(name="skills/promote_config", comment=SECRET)
    wanted.parameters.update({"proposal": f"proposals/{SECRET}"})
    error = await refusal(traces.skills.RunSkill(wanted, timeout=20))
    assert error.reason
    assert "Zwickelbart" not in f"{error}", error


def _files(traces: Traces) -> Iterator[tuple[Path, bytes]]:
    for folder in (traces.plane.home, traces.plane.home.parent / "platform.log"):
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes()


async def test_personal_data_is_in_no_file(traces: Traces) -> None:
    assert len(traces.canaries) >= 5
    wanted = [text.encode() for text in (*traces.canaries, SECRET)]
    wanted += [json.dumps(text).strip('"').encode() for text in traces.canaries]
    # Surnames by themselves too: a text that was cut or masked half is still personal.
    wanted += [word.encode() for text in truth_names(traces) for word in text.split() if len(word) > 6]
    seen = 0
    for path, content in _files(traces):
        seen += 1
        # The search index keeps strings in UTF-8; other encodings would be those of a dump.
        for needle in wanted:
            assert needle not in content, (path, needle)
            assert needle.decode().encode("utf-16-le") not in content, (path, needle)
    assert seen > 30


def truth_names(traces: Traces) -> list[str]:
    names: list[str] = traces.truth["canary_names"]
    return names


async def test_users_words_stay_in_experience(traces: Traces) -> None:
    """Whole prompts stand in experience's store and index alone; no log, plan, audit or metric holds one."""
    needles = [prompt.encode() for prompt in traces.prompts]
    assert len(needles) > 100
    home = traces.plane.home
    # What a person has to judge may show masked examples; nothing else.
    for path, content in _files(traces):
        if path.is_relative_to(home / "experience"):
            continue
        held = [needle for needle in needles if needle in content]
        assert not held, (path, held[:3])
    events = await traces.skills.ListAuditEvents(skills_pb.ListAuditEventsRequest(page_size=1000), timeout=10)
    audit = MessageToJson(events, ensure_ascii=False)
    assert not [prompt for prompt in traces.prompts if prompt in audit]
    approvals = await traces.skills.ListApprovals(skills_pb.ListApprovalsRequest(), timeout=10)
    evidence = MessageToJson(approvals, ensure_ascii=False)
    assert not [prompt for prompt in traces.prompts if prompt in evidence]
    for service in SERVICES:
        port = traces.plane.plane.settings.metrics_port(service)
        metrics = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
        assert "nightshift_rpc" in metrics
        assert not [prompt for prompt in traces.prompts if prompt in metrics]
        assert not [canary for canary in traces.canaries if canary in metrics]
        assert "Zwickelbart" not in metrics


async def test_what_is_exported_tells_of_no_user(traces: Traces) -> None:
    refused = "/SearchRuns"
    await asyncio.to_thread(
        traces.collector.until,
        lambda: (
            {f"nightshift-{one}" for one in SERVICES} <= {one.service for one in traces.collector.spans()}
            and any(
                one.name.endswith(refused) and "error.type" in one.attributes
                for one in traces.collector.spans()
            )
            and all(traces.collector.metrics(f"nightshift-{one}") for one in SERVICES)
        ),
    )
    content = b"".join(one.SerializeToString() for one in list(traces.collector.requests))
    needles = [*traces.prompts, *traces.canaries, SECRET, "Zwickelbart", socket.gethostname()]
    needles += sorted({run["device"] for run in traces.truth["runs"] if run["device"]})
    assert len(needles) > 100
    assert not [needle for needle in needles if needle.encode() in content]
    assert "skill run" in {one.name for one in traces.collector.spans()}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


async def test_files_are_the_owners_alone(traces: Traces) -> None:
    home = traces.plane.home
    wrong = []
    for path in [home, *sorted(home.rglob("*"))]:
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            fits = mode == 0o700
        elif stat.S_ISLNK(status.st_mode):
            fits = False
        else:
            fits = not mode & 0o077 and not mode & 0o111
        if not fits:
            wrong.append(f"{path.relative_to(home)} {mode:o}")
    assert wrong == []
    keys = sorted(home.rglob("*.key"))
    assert len(keys) >= 10
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


async def test_no_secret_stands_in_a_log(traces: Traces) -> None:
    home = traces.plane.home
    secrets = [b"PRIVATE KEY", b"eyJ", b"nightshift-grant"]
    for key in home.rglob("*.key"):
        secrets += [line for line in key.read_bytes().splitlines() if len(line) > 40]
    logs = sorted((home / "logs").iterdir())
    assert len(logs) >= len(SERVICES)
    for log in logs:
        content = log.read_bytes()
        assert content
        assert not [secret for secret in secrets if secret in content], log
    for database in home.glob("*/*.db*"):
        content = database.read_bytes()
        assert not [secret for secret in secrets if secret in content], database


async def test_nothing_listens_beyond_this_machine(traces: Traces) -> None:
    listening = 0
    for process in traces.plane.processes():
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN or (connection.type.name == "SOCK_DGRAM"):
                address = ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
                assert address.is_loopback, connection
                listening += 1
    # Main, control and metrics ports of five services, and the platform's.
    assert listening >= 15


# How the audit is tampered with: what is done to which database, and whether the sealed chain itself suffers.
TAMPERED: dict[str, tuple[str, tuple[str, ...]]] = {
    "an actor of experience": ("experience", ("UPDATE kit_outbox SET actor = 'x' || actor WHERE seq = 1",)),
    "an actor of the lab": ("lab", ("UPDATE kit_outbox SET actor = 'person/admin/else' WHERE seq = 1",)),
    "a payload of skills": (
        "skills",
        ("UPDATE kit_outbox SET payload = replace(payload, '\"', '\" ') WHERE seq = 3",),
    ),
    "a time of skills": (
        "skills",
        ("UPDATE kit_outbox SET time = '2020-01-01T00:00:00.000000Z' WHERE seq = 3",),
    ),
    "a hash of skills": ("skills", ("UPDATE kit_outbox SET hash = replace(hash, 'a', 'b') WHERE seq = 4",)),
    "an event left out": ("skills", ("DELETE FROM kit_outbox WHERE seq = 3",)),
    "the first event left out": ("experience", ("DELETE FROM kit_outbox WHERE seq = 1",)),
    "the tail of an outbox cut off": (
        "skills",
        ("DELETE FROM kit_outbox WHERE seq > (SELECT max(seq) - 3 FROM kit_outbox)",),
    ),
    "an outbox emptied": ("lab", ("DELETE FROM kit_outbox", "DELETE FROM kit_outbox_head")),
    "two events swapped": (
        "skills",
        (
            "UPDATE kit_outbox SET seq = -1 WHERE seq = 2",
            "UPDATE kit_outbox SET seq = 2 WHERE seq = 3",
            "UPDATE kit_outbox SET seq = 3 WHERE seq = -1",
        ),
    ),
    "bytes that are no text": (
        "skills",
        ("UPDATE kit_outbox SET actor = CAST(x'ff' || CAST(actor AS BLOB) AS TEXT) WHERE seq = 3",),
    ),
    "bytes that are no text in the lab": (
        "lab",
        ("UPDATE kit_outbox SET subject = CAST(x'ff' || CAST(subject AS BLOB) AS TEXT) WHERE seq = 1",),
    ),
    "a payload of the lab that is no JSON": ("lab", ("UPDATE kit_outbox SET payload = '{' WHERE seq = 1",)),
    "a payload of skills that is no text": (
        "skills",
        ("UPDATE kit_outbox SET payload = CAST(payload AS BLOB) WHERE seq = 2",),
    ),
    "sealed bytes that are no text": (
        "skills",
        ("UPDATE sealed_events SET actor = CAST(x'ff' || CAST(actor AS BLOB) AS TEXT) WHERE seq = 2",),
    ),
    "a sealed kind": ("skills", ("UPDATE sealed_events SET kind = 'lock.released' WHERE seq = 2",)),
    "a sealed event left out": ("skills", ("DELETE FROM sealed_events WHERE seq = 4",)),
    "sealed events swapped": (
        "skills",
        (
            "UPDATE sealed_events SET seq = -1 WHERE seq = 2",
            "UPDATE sealed_events SET seq = 2 WHERE seq = 3",
            "UPDATE sealed_events SET seq = 3 WHERE seq = -1",
        ),
    ),
    "the sealed chain's tail cut off": (
        "skills",
        ("DELETE FROM sealed_events WHERE seq > (SELECT max(seq) / 2 FROM sealed_events)",),
    ),
    "the sealed chain emptied": ("skills", ("DELETE FROM sealed_events",)),
}
TABLES = ("kit_outbox", "kit_outbox_head", "sealed_events")


class Intruder:
    """Writes into a service's database behind its back."""

    def __init__(self, path: Path, service: str) -> None:
        self._db = Database(f"sqlite:///{path}", migrations=f"nightshift_{service}", name="intruder")
        self._tables = TABLES if service == "skills" else TABLES[:2]
        self._kept: dict[str, list[tuple[Any, ...]]] = {}

    def tamper(self, statements: tuple[str, ...]) -> None:
        """Keeps what was there, and changes it."""

        def change(connection: Any) -> None:
            for table in self._tables:
                rows = connection.exec_driver_sql(f"SELECT * FROM {table}").all()
                self._kept[table] = [tuple(row) for row in rows]
            for statement in statements:
                assert connection.exec_driver_sql(statement).rowcount > 0, f"nothing to change: {statement}"

        self._db.write_sync(change)

    def put_back(self) -> None:
        """As it was; what the service added meanwhile stays."""

        def restore(connection: Any) -> None:
            for table, rows in self._kept.items():
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    connection.exec_driver_sql(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)

        self._db.write_sync(restore)
        self._db.close()


async def _verify(traces: Traces) -> skills_pb.VerifyAuditResponse:
    report: skills_pb.VerifyAuditResponse = await traces.skills.VerifyAudit(
        skills_pb.VerifyAuditRequest(), timeout=30
    )
    return report


async def _quiet(traces: Traces) -> None:
    """A lock: nothing writes an event while the audit is tampered with; all that is there is sealed."""
    await traces.skills.EngageLock(skills_pb.EngageLockRequest(), timeout=10)
    async with asyncio.timeout(30):
        while True:
            report = await _verify(traces)
            if report.valid and not report.unsealed_count and report.checkpoint_count:
                break
            await asyncio.sleep(0.3)
    await asyncio.sleep(2.5)


async def test_tampering_is_found(traces: Traces) -> None:
    await _quiet(traces)
    whole = await _verify(traces)
    assert whole.valid, whole
    assert whole.event_count > 12
    assert not whole.unreachable
    for name, (service, statements) in TAMPERED.items():
        intruder = Intruder(traces.plane.database(service), service)
        await asyncio.to_thread(intruder.tamper, statements)
        try:
            report = await _verify(traces)
        finally:
            await asyncio.to_thread(intruder.put_back)
        assert not report.valid, name
        assert 1 <= report.first_bad_seq <= whole.event_count + 1, name
        assert report.detail, name
        assert (await _verify(traces)).valid, f"not put back after: {name}"


async def test_checkpoints_cannot_be_cut_forged_or_exchanged(traces: Traces) -> None:
    await _quiet(traces)
    assert (await _verify(traces)).valid
    path = traces.plane.home / "audit" / "checkpoints.jsonl"
    original = path.read_bytes()
    lines = original.splitlines(keepends=True)
    assert len(lines) >= 2
    last = json.loads(lines[-1])
    changed = dict(last)
    changed["seq"] -= 1
    for name, content in {
        "emptied": b"",
        "tail cut off": b"".join(lines[:-1]),
        "half a line": original[:-20],
        "first left out": b"".join(lines[1:]),
        "swapped": b"".join([lines[1], lines[0], *lines[2:]]),
        "signed for something else": b"".join([*lines[:-1], json.dumps(changed).encode() + b"\n"]),
        "no checkpoints at all": b"\xff\xfe garbage\n",
    }.items():
        path.write_bytes(content)
        try:
            report = await _verify(traces)
        finally:
            path.write_bytes(original)
        assert not report.valid, name
        assert report.detail, name
    # Chain and checkpoints cut together fit each other; the process that signed more remembers.
    seq = json.loads(lines[-2])["seq"]
    intruder = Intruder(traces.plane.database("skills"), "skills")
    path.write_bytes(b"".join(lines[:-1]))
    await asyncio.to_thread(intruder.tamper, (f"DELETE FROM sealed_events WHERE seq > {seq}",))
    try:
        assert not (await _verify(traces)).valid
    finally:
        await asyncio.to_thread(intruder.put_back)
        path.write_bytes(original)
    assert (await _verify(traces)).valid


async def test_what_cannot_be_audited_does_not_begin(traces: Traces) -> None:
    """Experience's outbox cannot be written: an import is refused, and there is no trace of one."""
    experience: Any = traces.plane.stub(ExperienceServiceStub, "experience", PLATFORM)
    listing = experience_pb.ListImportJobsRequest(parent=PARENT)
    before = await experience.ListImportJobs(listing, timeout=10)
    path = traces.plane.database("experience")
    request = experience_pb.ImportRunsRequest(parent=PARENT, directory=str(traces.plane.platform_root))

    def rename(one: str, other: str) -> None:
        with Database(f"sqlite:///{path}", migrations="nightshift_experience", name="intruder") as db:
            db.write_sync(lambda c: c.exec_driver_sql(f"ALTER TABLE {one} RENAME TO {other}").close())

    await asyncio.to_thread(rename, "kit_outbox", "gone")
    try:
        error = await refusal(experience.ImportRuns(request, timeout=10))
        after = await experience.ListImportJobs(listing, timeout=10)
    finally:
        await asyncio.to_thread(rename, "gone", "kit_outbox")
    assert error.reason == "AUDIT_UNAVAILABLE", error
    assert after == before

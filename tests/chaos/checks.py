"""What must hold when the killing is over: the journal against the plane, the stores against each other."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from typing import Any

from google.protobuf.json_format import MessageToDict

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.lab.v1.lab_service_pb2_grpc import LabServiceStub
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from tests.chaos.commanding import ENDED, Person
from tests.chaos.importing import Importer
from tests.chaos.journal import Journal
from tests.chaos.recording import CONFIGS
from tests.chaos.themes import PARENT
from tests.support.plane import PRODUCTION, RealPlane, tree_of

_SETTLE_S = 90.0
_FAVORITE, _UNFAVORITE = 1, 2
# Failures of idle work that a kill explains: nothing is owed to anybody, it is planned anew.
_EXPLAINED = frozenset(
    {"SERVICE_UNAVAILABLE", "PREEMPTED", "EMBEDDING_STOPPED", "MODEL_UNAVAILABLE", "DRAINING"}
)
# A proposal that was asked for twice at the same moment: the later plan is not carried out.
_OUTDATED = frozenset({"PLAN_CHANGED", "CONFIG_EXISTS", "PROPOSAL_OPEN"})


class Checks:
    """Checks over the wire, while the plane is up, and on the stores, after it has stopped."""

    def __init__(
        self, plane: RealPlane, person: Person, journal: Journal, tree_before: Mapping[str, str]
    ) -> None:
        self._plane = plane
        self._person = person
        self._journal = journal
        self._tree_before = tree_before
        self._experience = plane.stub(ExperienceServiceStub, "experience")
        self._lab = plane.stub(LabServiceStub, "lab")

    # Over the wire.

    async def settled(self) -> None:
        """Waits until no run that somebody approved is open any more."""
        ends_s = time.monotonic() + _SETTLE_S
        while left := [run for run in await self._skill_runs() if run.approval and run.state not in ENDED]:
            waiting = [run for run in left if run.state != types.SKILL_RUN_STATE_AWAITING_APPROVAL]
            if not waiting:
                return
            assert time.monotonic() < ends_s, f"approved and never finished: {waiting}"
            await asyncio.sleep(0.2)

    async def runs(self) -> int:
        """Every acknowledged run is there, once, with its content; how many there are."""
        stored: dict[str, Any] = {}
        async for run in self._exported(PARENT):
            assert run["name"] not in stored, f"{run['name']} is there twice"
            stored[run["name"]] = run
        acknowledged = [entry["run"] for entry in self._journal.entries("ack", "RecordRun")]
        for entry in self._journal.entries("ack", "RecordRuns"):
            acknowledged += entry["runs"]
        for run in acknowledged:
            found = stored.get(run["name"])
            assert found is not None, f"acknowledged and lost: {run['name']}"
            assert {key: found.get(key) for key in run} == run, (found, run)
        await self._visitors(stored)
        return len(acknowledged)

    async def _visitors(self, stored: dict[str, Any]) -> None:
        """The SDK keeps what it could not deliver and delivers it later."""
        expected = {
            f"{PARENT}/runs/{e['run_id']}": e["seed"] for e in self._journal.entries("ack", "generate")
        }
        ends_s = time.monotonic() + 30
        while not expected.keys() <= stored.keys():
            assert time.monotonic() < ends_s, f"never delivered: {expected.keys() - stored.keys()}"
            await asyncio.sleep(0.5)
            stored |= {run["name"]: run async for run in self._exported(PARENT)}
        for name, seed in expected.items():
            assert int(stored[name]["seed"]) == seed

    async def statistics(self) -> None:
        """Counters are what a recount gives, and what a count of the journal gives."""
        run = await self._aggregated()
        assert run.results, run
        for earlier in await self._skill_runs("aggregate_experience"):
            for result in earlier.results:
                corrected = MessageToDict(result).get("corrected_count", 0)
                assert not int(corrected), f"the counters had been wrong: {earlier}"
        request = experience_pb.ListConfigPerformanceRequest(parent=PARENT, page_size=1000)
        answer = await self._experience.ListConfigPerformance(request, timeout=10)
        found = {row.config: row for row in answer.config_performance}
        told = [entry["run"] for entry in self._journal.entries("ack", "RecordRun")]
        for entry in self._journal.entries("ack", "RecordRuns"):
            told += entry["runs"]
        signals: dict[str, dict[int, int]] = {}
        for entry in self._journal.entries("ack", "RecordFeedback"):
            signals.setdefault(entry["run"], {})[entry["feedback"]] = entry["at_s"]
        liked = {
            run for run, given in signals.items() if given.get(_FAVORITE, -1) > given.get(_UNFAVORITE, -1)
        }
        for config in CONFIGS:
            runs = [run for run in told if run["interception_config"] == config]
            # Users' unfinished runs may have arrived unacknowledged: none here, every call was insisted on.
            row = found[config]
            assert row.total_runs == len(runs), (config, row.total_runs, len(runs))
            favorites = sum(run["name"] in liked for run in runs)
            assert row.favorite_rate.count == favorites, (config, row.favorite_rate, favorites)
            failed = sum(run["outcome"] == "RUN_OUTCOME_FAILED" for run in runs)
            assert row.failed_runs == failed, (config, row.failed_runs, failed)

    async def _aggregated(self) -> types.SkillRun:
        """A full recount; the gate may be closed for a moment because a user was there."""
        ends_s = time.monotonic() + _SETTLE_S
        while True:
            run = await self._person.ended(await self._person.run("aggregate_experience", full=True))
            if run.state == types.SKILL_RUN_STATE_SUCCEEDED:
                return run
            assert time.monotonic() < ends_s, run
            await asyncio.sleep(0.5)

    async def imports(self, importer: Importer) -> None:
        """Trees whose imports were killed read as those of an undisturbed import into another project."""
        control = "projects/control"
        for tree in importer.done:
            again = await importer.import_tree(tree)
            assert (again.created_count, again.updated_count) == (0, 0), again
            await importer.import_tree(tree, control)
        undisturbed = {run["name"].split("/")[-1]: run async for run in self._exported(control)}
        disturbed = {run["name"].split("/")[-1]: run async for run in self._exported(PARENT)}
        assert undisturbed or not importer.done
        for run_id, run in undisturbed.items():
            assert _bare(disturbed[run_id]) == _bare(run)

    async def commands(self) -> None:
        """Each acknowledged command has its run, and what was acknowledged as ended stayed so."""
        for entry in self._journal.entries("ack", "RunSkill"):
            run = await self._person.get(entry["run"])
            assert run.skill == f"skills/{entry['skill']}"
        for entry in self._journal.entries("ack", "end"):
            run = await self._person.get(entry["run"])
            assert types.SkillRunState.Name(run.state) == entry["state"], (entry, run)
            assert [MessageToDict(result) for result in run.results] == entry["results"]
        for entry in self._journal.entries("ack", "DecideApproval"):
            run = await self._person.get(entry["run"])
            assert run.state in ENDED, run
        for run in await self._skill_runs():
            if run.state == types.SKILL_RUN_STATE_FAILED:
                allowed = _OUTDATED if run.approval else _EXPLAINED
                assert run.failure.reason in allowed, f"{run.skill} failed: {run.failure}"

    async def production(self) -> None:
        """The platform's tree is as before, but for what the lab says it put there; no half file anywhere."""
        standing: dict[str, str] = {}
        for promotion in reversed(await self._promotions()):
            assert promotion.previous_digest == standing.get(promotion.path, "")
            standing[promotion.path] = promotion.digest
        found = tree_of(self._plane.platform_root)
        for path, digest in standing.items():
            assert path.startswith(f"{PRODUCTION}/")
            entry = found.pop(path, "")
            assert entry == (f"100644 {digest}" if digest else ""), (path, entry, digest)
        assert found == dict(self._tree_before)

    async def _promotions(self) -> list[lab_types.Promotion]:
        """All, newest first."""
        promotions: list[lab_types.Promotion] = []
        token = ""
        while True:
            request = lab_pb.ListPromotionsRequest(page_size=100, page_token=token)
            answer = await self._lab.ListPromotions(request, timeout=10)
            promotions += answer.promotions
            token = answer.next_page_token
            if not token:
                return promotions

    async def audit(self) -> int:
        """The chain is valid and holds every event of every outbox; how many."""
        ends_s = time.monotonic() + _SETTLE_S
        while True:
            answer = await self._person.stub.VerifyAudit(skills_pb.VerifyAuditRequest(), timeout=60)
            assert answer.valid, answer
            assert not answer.unreachable
            if not answer.unsealed_count:
                return int(answer.event_count)
            assert time.monotonic() < ends_s, answer
            await asyncio.sleep(0.3)

    async def _skill_runs(self, skill: str = "") -> list[types.SkillRun]:
        runs: list[types.SkillRun] = []
        token = ""
        while True:
            request = skills_pb.ListSkillRunsRequest(
                page_size=200, page_token=token, skill=f"skills/{skill}" if skill else ""
            )
            answer = await self._person.stub.ListSkillRuns(request, timeout=10)
            runs += answer.skill_runs
            token = answer.next_page_token
            if not token:
                return runs

    async def _exported(self, parent: str) -> AsyncIterator[dict[str, Any]]:
        request = experience_pb.ExportRunsRequest(parent=parent)
        async for answer in self._experience.ExportRuns(request, timeout=60):
            for run in answer.runs:
                yield MessageToDict(run, preserving_proto_field_name=True)


def _bare(run: dict[str, Any]) -> dict[str, Any]:
    """A run without what tells where and when it was stored."""
    bare = {key: value for key, value in run.items() if key not in {"name", "create_time"}}
    if "regeneration_of" in bare:
        bare["regeneration_of"] = bare["regeneration_of"].split("/")[-1]
    return bare


# On the stores of a plane that has stopped.


def check_stores(plane: RealPlane, journal: Journal) -> dict[str, int]:
    """Effects against commands against events; how many of which effect there were."""
    with (
        closing(_store(plane, "skills")) as skills,
        closing(_store(plane, "lab")) as lab,
        closing(_store(plane, "trainer")) as trainer,
        closing(_store(plane, "experience")) as experience,
    ):
        _check_requests(skills, journal)
        _check_calls(skills, lab, trainer)
        counts = _check_effects(skills, lab, trainer)
        _check_events(skills, {"lab": lab, "trainer": trainer, "experience": experience, "skills": skills})
        _check_feedback(experience, journal)
        open_intents = lab.execute("SELECT count(*) FROM kit_intents WHERE state NOT IN ('done')").fetchone()[
            0
        ]
        assert open_intents == 0
        for store in (skills, lab, trainer, experience):
            assert store.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    _check_events_of_acknowledged(plane, journal)
    return counts


def _store(plane: RealPlane, service: str) -> sqlite3.Connection:
    store = sqlite3.connect(f"file:{plane.database(service)}?mode=ro", uri=True)
    store.row_factory = sqlite3.Row
    return store


def _rows(store: sqlite3.Connection, query: str) -> list[sqlite3.Row]:
    return store.execute(query).fetchall()


def _check_requests(skills: sqlite3.Connection, journal: Journal) -> None:
    """A command makes one run, however often it was given, and no run is made by nobody."""
    told = {entry["request_id"]: entry["run"] for entry in journal.entries("ack", "RunSkill")}
    made = {row["request_id"]: f"skillRuns/{row['run']}" for row in _rows(skills, "SELECT * FROM requests")}
    for request_id, run in told.items():
        assert made[request_id] == run
    intended = {entry["request_id"] for entry in journal.entries("intent", "RunSkill")}
    assert made.keys() <= intended
    of_persons = _rows(skills, "SELECT id, skill FROM skill_runs WHERE initiator LIKE '%person%'")
    assert {f"skillRuns/{row['id']}" for row in of_persons} == set(made.values()) - _shared(skills, made)
    # A promotion or rollback is never shared: one command, one run.
    commanded = [row for row in of_persons if row["skill"] in ("promote_config", "rollback")]
    told_so = [
        entry
        for entry in journal.entries("intent", "RunSkill")
        if entry["skill"] in ("promote_config", "rollback")
    ]
    assert len(commanded) <= len(told_so)


def _shared(skills: sqlite3.Connection, made: Mapping[str, str]) -> set[str]:
    """Runs that a trigger had made already, and that a person's command for the same plan was given."""
    known = {row["id"] for row in _rows(skills, "SELECT id FROM skill_runs")}
    assert {run.removeprefix("skillRuns/") for run in made.values()} <= known
    triggered = _rows(skills, "SELECT id FROM skill_runs WHERE initiator NOT LIKE '%person%'")
    return set(made.values()) & {f"skillRuns/{row['id']}" for row in triggered}


def _check_calls(skills: sqlite3.Connection, lab: sqlite3.Connection, trainer: sqlite3.Connection) -> None:
    """Every redeemed grant belongs to one stored call, every answered call to one redeemed grant."""
    calls = {row["jti"]: row for row in _rows(skills, "SELECT * FROM calls")}
    redeemed = Counter(
        row["jti"] for store in (lab, trainer) for row in _rows(store, "SELECT jti FROM kit_redeemed")
    )
    assert max(redeemed.values(), default=1) == 1
    assert redeemed.keys() <= calls.keys()
    for jti, call in calls.items():
        settled = call["answer"] is not None or call["refusal"]
        assert settled, f"left open: {call['method']} of {call['run']}"
        if call["answer"] is not None:
            assert jti in redeemed, f"answered, but never done: {call['method']} of {call['run']}"
        elif jti in redeemed:
            raise AssertionError(f"done, but called refused ({call['refusal']}): {call['method']}")


def _check_effects(
    skills: sqlite3.Connection, lab: sqlite3.Connection, trainer: sqlite3.Connection
) -> dict[str, int]:
    """As many effects as runs that succeeded, each effect of another run."""
    succeeded = Counter(
        row["skill"] for row in _rows(skills, "SELECT skill FROM skill_runs WHERE state = 'SUCCEEDED'")
    )
    counts = {
        "propose_config": len(_rows(lab, "SELECT 1 FROM proposals")),
        "promote_config": len(_rows(lab, "SELECT 1 FROM promotions WHERE rolls_back = ''")),
        "rollback": len(_rows(lab, "SELECT 1 FROM promotions WHERE rolls_back <> ''")),
        "train_adapter": len(_rows(trainer, "SELECT 1 FROM adapters")),
    }
    for skill, count in counts.items():
        assert succeeded[skill] == count, f"{skill}: {succeeded[skill]} runs succeeded, {count} effects"
    jobs = len(_rows(trainer, "SELECT 1 FROM training_jobs"))
    assert jobs == counts["train_adapter"]
    jtis = [row["jti"] for row in _rows(lab, "SELECT jti FROM promotions")]
    assert len(set(jtis)) == len(jtis)
    undone = [
        row["rolls_back"] for row in _rows(lab, "SELECT rolls_back FROM promotions WHERE rolls_back <> ''")
    ]
    assert len(set(undone)) == len(undone), "a promotion was taken back twice"
    return counts


def _check_events(skills: sqlite3.Connection, stores: Mapping[str, sqlite3.Connection]) -> None:
    """Every effect has exactly one event, and every event is sealed once."""
    lab, trainer = stores["lab"], stores["trainer"]
    promoted = Counter(
        row["subject"]
        for row in _rows(
            lab, "SELECT subject FROM kit_outbox WHERE kind IN ('config.promoted', 'config.rolled_back')"
        )
    )
    assert promoted == Counter(
        f"promotions/{row['promotion_id']}" for row in _rows(lab, "SELECT promotion_id FROM promotions")
    )
    proposed = Counter(
        row["subject"] for row in _rows(lab, "SELECT subject FROM kit_outbox WHERE kind = 'proposal.created'")
    )
    assert proposed == Counter(
        f"proposals/{row['proposal_id']}" for row in _rows(lab, "SELECT proposal_id FROM proposals")
    )
    created = Counter(
        row["subject"]
        for row in _rows(trainer, "SELECT subject FROM kit_outbox WHERE kind = 'training.created'")
    )
    assert created == Counter(
        f"trainingJobs/{row['id']}" for row in _rows(trainer, "SELECT id FROM training_jobs")
    )
    for name in ("lab", "trainer", "experience"):
        written = [
            (row["seq"], row["hash"])
            for row in _rows(stores[name], "SELECT seq, hash FROM kit_outbox ORDER BY seq")
        ]
        sealed = [
            (row["source_seq"], row["source_hash"])
            for row in skills.execute(
                "SELECT source_seq, source_hash FROM sealed_events WHERE source = ? ORDER BY seq", (name,)
            )
        ]
        # The very last events come while the plane stops: skills stops first.
        assert written[: len(sealed)] == sealed, name
        assert len(written) - len(sealed) <= 2, (name, len(written), len(sealed))


def _check_feedback(experience: sqlite3.Connection, journal: Journal) -> None:
    told = Counter(
        (entry["run"].split("/")[-1], entry["feedback"], entry["at_s"] * 1_000_000)
        for entry in journal.entries("ack", "RecordFeedback")
    )
    stored = Counter(
        (row["run_id"], row["kind"], row["feedback_us"])
        for row in _rows(experience, "SELECT run_id, kind, feedback_us FROM feedback")
    )
    assert told == stored, (told - stored, stored - told)


def _check_events_of_acknowledged(plane: RealPlane, journal: Journal) -> None:
    """Each acknowledged decision and end is told once in skills' own outbox."""
    with closing(_store(plane, "skills")) as skills:
        events = Counter(
            (row["kind"], row["subject"]) for row in _rows(skills, "SELECT kind, subject FROM kit_outbox")
        )
    for entry in journal.entries("ack", "DecideApproval"):
        assert events["approval.decided", entry["approval"]] == 1, entry
    for entry in journal.entries("ack", "end"):
        if entry["state"] != "SKILL_RUN_STATE_NOTHING_TO_DO":
            assert events["run.ended", entry["run"]] == 1, entry


def log_problems(plane: RealPlane) -> Counter[str]:
    """Errors in the services' logs, by service and event."""
    found: Counter[str] = Counter()
    for path in sorted((plane.home / "logs").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                # A line that a kill cut short.
                continue
            if entry.get("level") in ("error", "critical"):
                found[f"{path.stem}: {entry.get('event')} {entry.get('reason', '')}".strip()] += 1
    return found

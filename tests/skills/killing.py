"""kill -9 inside effects: real skills, lab and trainer, three kinds of effects, and a person who insists.

Every round has one effect that a person wants, one victim and one moment. The person's commands are repeated
under their request ids until they are acknowledged, as any caller would; the run is followed to its end; so
each round ends with exactly one more effect, or something is lost or done twice. Questions stand open all
the while, and are looked at after each kill.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.tls import ensure_home, load_credential
from tests.chaos.flights import Flights
from tests.skills.skills_support import ENDED, FAST, Plane
from tests.skills.stand_ins import PROJECT, surroundings
from tests.support.forked import Fork, Forks
from tests.support.platform_server import Platform, platform_server

VICTIMS = ("skills", "lab", "trainer")
OPEN_QUESTIONS = 3
_EXAMPLE = Path(__file__).parents[2] / "examples" / "platform"
_SETTINGS = FAST | {
    "denied_rest_s": 0,
    "failed_rest_s": 60.0,
    "call_retry_s": 30.0,
    "cooldowns_s": {"cleanup_vram": 0},
}
_DEADLINE_S = 10.0
_LOOK_S = 0.01
_PATIENCE_S = 60.0
# Share of kills at any time of a round; the others wait for a run to be at work.
_ANY_TIME = 0.3


class Site:
    """Where it happens.

    Attributes:
        plane: Skills, with stand-ins of monitor and experience.
        lab, trainer: Stubs of the real ones.
        platform: The stand-in platform beside the trainer.
        flights: Calls that are repeated until they are answered.
    """

    def __init__(self, plane: Plane, forks: Forks, platform: Platform, root: Path) -> None:
        settings = plane.plane_settings
        self.plane = plane
        self.platform = platform
        self.root = root
        self.flights = Flights()
        self._forks = forks
        self._children: dict[str, Fork] = {}
        self._environment = {
            "NIGHTSHIFT_HOME": str(settings.home),
            "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
            "NIGHTSHIFT_PLATFORM_ROOT": str(root),
            "NIGHTSHIFT_TRAINER_GPU_SERVICE_URL": platform.gpu.url,
            "NIGHTSHIFT_TRAINER_GPU_HOST_TIMEOUT_S": "2",
            "NIGHTSHIFT_TRAINER_UNLOAD_SETTLE_S": "0.1",
        }
        plane.instead = {
            name: (settings.port(name), settings.control_port(name)) for name in ("lab", "trainer")
        }
        credential = load_credential(settings, f"person/{Path(settings.home).stat().st_uid}")
        self._channels = {
            name: channel_to(f"127.0.0.1:{settings.port(name)}", name, credential)
            for name in ("lab", "trainer")
        }
        lab: Any = lab_grpc.LabServiceStub(self._channels["lab"])
        trainer: Any = trainer_grpc.TrainerServiceStub(self._channels["trainer"])
        self.lab, self.trainer = lab, trainer

    async def start(self, name: str) -> None:
        """Starts a service, and waits until it answers."""
        self._children[name] = await self._forks.start(f"nightshift_{name}", self._environment)
        asked: dict[str, tuple[Any, Any]] = {
            "skills": (self.plane.stub().GetLock, pb.GetLockRequest()),
            "lab": (self.lab.ListConfigs, lab_pb.ListConfigsRequest(page_size=1)),
            "trainer": (self.trainer.ListAdapters, trainer_pb.ListAdaptersRequest(page_size=1)),
        }
        call, request = asked[name]
        await self.flights.insist(
            "start", lambda: call(request, timeout=_DEADLINE_S, wait_for_ready=True), quiet=True
        )

    async def kill(self, name: str) -> None:
        """SIGKILL; returns when it is dead."""
        await self._children[name].kill()

    async def close(self) -> None:
        """Stops what runs, in good order."""
        for name in VICTIMS:
            if name in self._children:
                await self._children[name].stop()
        for channel in self._channels.values():
            await channel.close()
        await self.plane.stop()


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """A running site in a folder."""
    home, base, root = folder / "home", find_free_base(), folder / "platform"
    shutil.copytree(_EXAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    forks = Forks([f"nightshift_{name}" for name in VICTIMS])
    with platform_server() as platform:
        async with surroundings(home) as around, forks:
            plane = Plane(home, around, base, _SETTINGS)
            ensure_home(plane.plane_settings)
            around.monitor.quiet_s = 0.02
            made = Site(plane, forks, platform, root)
            plane.write_settings()
            try:
                for name in ("lab", "trainer", "skills"):
                    await made.start(name)
                yield made
            finally:
                await made.close()


class Person:
    """Wants effects, and gives each command until it is acknowledged."""

    def __init__(self, here: Site, source: random.Random) -> None:
        self._here = here
        self._source = source

    async def run(self, skill: str, **parameters: Any) -> types.SkillRun:
        """RunSkill under one request id."""
        request = pb.RunSkillRequest(
            name=f"skills/{skill}", request_id=str(uuid.UUID(int=self._source.getrandbits(128), version=4))
        )
        request.parameters.update(parameters)
        answer: types.SkillRun
        answer, _ = await self._here.flights.insist(
            f"run {skill}", lambda: self._here.plane.stub().RunSkill(request, timeout=_DEADLINE_S)
        )
        return answer

    async def ask(self, skill: str, **parameters: Any) -> types.Approval:
        """The question of a new run; asked and not decided."""
        run = await self.run(skill, **parameters)
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, _told(run)
        return await self.question(run.approval)

    async def question(self, name: str) -> types.Approval:
        """An approval as it is now."""
        request = pb.GetApprovalRequest(name=name)
        answer: types.Approval
        answer, _ = await self._here.flights.insist(
            "look", lambda: self._here.plane.stub().GetApproval(request, timeout=_DEADLINE_S), quiet=True
        )
        return answer

    async def approve(self, approval: types.Approval) -> None:
        """Approves the very plan."""
        request = pb.DecideApprovalRequest(
            name=approval.name,
            decision=pb.DECISION_APPROVE,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
        )
        answer, _ = await self._here.flights.insist(
            "decide", lambda: self._here.plane.stub().DecideApproval(request, timeout=_DEADLINE_S)
        )
        assert answer.state == types.APPROVAL_STATE_APPROVED, answer

    async def ended(self, name: str) -> types.SkillRun:
        """The run once it has ended; it must have succeeded."""
        request = pb.GetSkillRunRequest(name=name)

        def look() -> Any:
            return self._here.plane.stub().GetSkillRun(request, timeout=_DEADLINE_S)

        async with asyncio.timeout(_PATIENCE_S):
            while True:
                run, _ = await self._here.flights.insist("look", look, quiet=True)
                if run.state in ENDED or run.HasField("end_time"):
                    assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, _told(run)
                    return run  # type: ignore[no-any-return]
                await asyncio.sleep(_LOOK_S)


class Proposing:
    """CONFIRM, a row in the lab: themes are asked about, wait over some kills, are approved and stored."""

    victims = ("skills", "lab")
    skills = ("propose_config",)
    event = "proposal.created"

    def __init__(self, here: Site, person: Person) -> None:
        self._here = here
        self._person = person
        self._themes = 0
        self.open: list[types.Approval] = []
        self.runs: list[str] = []
        self.made: list[str] = []

    async def prepare(self) -> None:
        """So many questions stand open."""
        if len(self.open) < OPEN_QUESTIONS:
            while len(self.open) < 2 * OPEN_QUESTIONS:
                self.open.append(await self._ask())
        await self._here.plane.open()

    async def act(self) -> list[types.SkillRun]:
        """The oldest question is approved, and now and then a new one asked meanwhile; the run."""
        approval = self.open.pop(0)
        if len(self.open) < OPEN_QUESTIONS:
            _, asked = await asyncio.gather(self._person.approve(approval), self._ask())
            self.open.append(asked)
        else:
            await self._person.approve(approval)
        run = await self._person.ended(approval.skill_run)
        self.runs.append(run.name)
        self.made.append(str(run.results[0]["name"]))
        return [run]

    async def still_open(self) -> None:
        """Every question is as it was asked."""
        for asked in self.open:
            now = await self._person.question(asked.name)
            assert now.state == types.APPROVAL_STATE_PENDING, now
            assert (now.nonce, now.plan.digest) == (asked.nonce, asked.plan.digest)

    async def check(self) -> None:
        """Each approved theme has its one proposal, and no other theme has one."""
        stored: list[lab_types.Proposal] = []
        request = lab_pb.ListProposalsRequest(page_size=100)
        while True:
            answer = await self._here.lab.ListProposals(request, timeout=_DEADLINE_S)
            stored += answer.proposals
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert sorted(one.name for one in stored) == sorted(self.made)
        assert len({one.opportunity for one in stored}) == len(stored) == len(set(self.runs))

    async def _ask(self) -> types.Approval:
        self._themes += 1
        name = f"{PROJECT}/opportunities/theme{self._themes}"
        word = _word(self._themes)
        self._here.plane.around.experience.opportunities[:] = [
            experience_types.Opportunity(
                name=name,
                kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
                label=f"{word} lanterns",
                keywords=[word, "wick", "brass"],
                nearest_configs=["nachbarblick", "materialprobe", "kartenhaus"],
                runs=60,
            ),
            *self._here.plane.around.experience.opportunities[: 3 * OPEN_QUESTIONS],
        ]
        return await self._person.ask("propose_config", opportunity=name)


class Promoting:
    """MANUAL, a file of production: one proposal goes there and is taken back, again and again."""

    victims = ("skills", "lab")
    skills = ("promote_config", "rollback")
    event = "config."

    def __init__(self, here: Site, person: Person, proposal: str) -> None:
        self._here = here
        self._person = person
        self._proposal = proposal
        self._before = _files(here.root)
        self.runs: list[str] = []
        self.made: list[str] = []

    async def prepare(self) -> None:
        """Nothing."""

    async def act(self) -> list[types.SkillRun]:
        """Promotes, and takes the promotion back; both runs."""
        promoted = await self._done("promote_config", proposal=self._proposal)
        there = _files(self._here.root)
        assert len(there) == len(self._before) + 1, sorted(set(there) ^ set(self._before))
        assert self._before.items() <= there.items()
        taken_back = await self._done("rollback", promotion=self.made[-1])
        assert _files(self._here.root) == self._before
        return [promoted, taken_back]

    async def _done(self, skill: str, **parameters: Any) -> types.SkillRun:
        run = await self._person.run(skill, **parameters)
        run = await self._person.ended(run.name)
        self.runs.append(run.name)
        self.made.append(str(run.results[0]["name"]))
        return run

    async def check(self) -> None:
        """As many promotions and rollbacks as were wanted."""
        assert len(set(self.made)) == len(self.made) == len(set(self.runs))
        stored: list[str] = []
        request = lab_pb.ListPromotionsRequest(page_size=100)
        while True:
            answer = await self._here.lab.ListPromotions(request, timeout=_DEADLINE_S)
            stored += [one.name for one in answer.promotions]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert sorted(stored) == sorted(self.made)


class Unloading:
    """CONFIRM, something outside of all stores: a model leaves the platform's GPU."""

    victims = ("skills", "trainer")
    skills = ("cleanup_vram",)
    event = "gpu.model_unloaded"

    def __init__(self, here: Site, person: Person) -> None:
        self._here = here
        self._person = person
        self.runs: list[str] = []
        self.made: list[str] = []

    async def prepare(self) -> None:
        """The gate is open."""
        await self._here.plane.open()

    async def act(self) -> list[types.SkillRun]:
        """One model fills the GPU, and is unloaded once that is approved; the run."""
        model = f"m{len(self.made)}"
        self._here.platform.gpu.load("diffusers", model, vram_mb=90_000, last_used=1.0)
        self.made.append(model)
        approval = await self._person.ask("cleanup_vram")
        await self._person.approve(approval)
        run = await self._person.ended(approval.skill_run)
        told = [MessageToDict(result)["outcome"] for result in run.results]
        assert told == ["UNLOAD_OUTCOME_UNLOADED"], (told, _told(run))
        self.runs.append(run.name)
        return [run]

    async def check(self) -> None:
        """Each went once, in order."""
        assert self._here.platform.gpu.unloaded == self.made
        assert len(self.platform_calls()) >= len(self.made) == len(set(self.runs))

    def platform_calls(self) -> Sequence[object]:
        """Unloads that the platform was asked for."""
        return self._here.platform.gpu.asked("/api/diffusers/unload")


Family = Proposing | Promoting | Unloading


@dataclass(frozen=True)
class Kill:
    """One kill: who, when, and the runs of the round."""

    victim: str
    family: str
    at: dt.datetime
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Usual:
    """How an undisturbed round goes, in seconds from its beginning: from when to when each run is at work."""

    at_work_s: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, began: dt.datetime, runs: Sequence[types.SkillRun]) -> Usual:
        """As a round went."""
        return cls(tuple((_since(began, run.start_time), _since(began, run.end_time)) for run in runs))

    @property
    def whole_s(self) -> float:
        """Until the last run has ended."""
        return self.at_work_s[-1][1]


@dataclass
class Killing:
    """Kills done, and how undisturbed rounds go."""

    kills: list[Kill] = field(default_factory=list)
    usual: dict[str, Usual] = field(default_factory=dict)

    async def calm(self, family: Family) -> None:
        """Three rounds without a kill; the one in the middle counts."""
        rounds = []
        for _ in range(3):
            await family.prepare()
            began = dt.datetime.now(dt.UTC)
            rounds.append(Usual.of(began, await family.act()))
        self.usual[type(family).__name__] = sorted(rounds, key=lambda one: one.whole_s)[1]

    async def round(self, here: Site, family: Family, chance: random.Random) -> None:
        """One effect and a kill; the victim is started again."""
        await family.prepare()
        name, victim = type(family).__name__, chance.choice(family.victims)
        began = dt.datetime.now(dt.UTC)
        work = asyncio.ensure_future(family.act())
        try:
            await self._moment(here, family, chance, work)
            await here.kill(victim)
            at = dt.datetime.now(dt.UTC)
            await here.start(victim)
            runs = await work
            self.kills.append(Kill(victim, name, at, tuple(run.name for run in runs)))
            if at > runs[-1].end_time.ToDatetime(tzinfo=dt.UTC):
                # Nothing was disturbed: so long it takes now, whatever else the machine does.
                self.usual[name] = Usual.of(began, runs)
        finally:
            work.cancel()

    async def _moment(
        self, here: Site, family: Family, chance: random.Random, work: asyncio.Future[Any]
    ) -> None:
        """Waits until it is time: at any time of the round, or so long after a run was seen to be at work."""
        usual = self.usual[type(family).__name__]
        number = chance.randrange(len(family.skills))
        begin_s, end_s = usual.at_work_s[number]
        share, any_time = chance.random(), chance.random() < _ANY_TIME
        if any_time:
            await asyncio.sleep(share * usual.whole_s)
            return
        request = pb.ListSkillRunsRequest(skill=f"skills/{family.skills[number]}", page_size=10)
        while not work.done():
            answer = await here.plane.call("ListSkillRuns", request)
            if any(run.state == types.SKILL_RUN_STATE_RUNNING for run in answer.skill_runs):
                break
            await asyncio.sleep(_LOOK_S / 4)
        await asyncio.sleep(share * (end_s - begin_s))

    def histogram(self, events: Sequence[types.AuditEvent]) -> str:
        """Kills by victim, family and what the run had reached, as the audit's times tell."""
        counted: Counter[tuple[str, str, str]] = Counter()
        told: dict[str, list[types.AuditEvent]] = {}
        for event in events:
            told.setdefault(event.subject, []).append(event)
        effects = {
            "Proposing": Proposing.event,
            "Promoting": Promoting.event,
            "Unloading": Unloading.event,
        }
        done = {
            name: [event for event in events if event.kind.startswith(prefix)]
            for name, prefix in effects.items()
        }
        for kill in self.kills:
            # Of two runs the one that was not over.
            of_run = next(
                (told[run] for run in kill.runs if kill.at < _when(told[run], "run.ended")),
                told[kill.runs[-1]],
            )
            began = _when(of_run, "run.started", "run.resumed")
            minted = _when(of_run, "grant.minted")
            ended = _when(of_run, "run.ended")
            effect = next((_at(one) for one in done[kill.family] if minted <= _at(one) <= ended), ended)
            if kill.at < began:
                phase = "1 run not begun"
            elif kill.at < minted:
                phase = "2 begun, no call stored"
            elif kill.at < effect:
                phase = "3 call stored, effect not done"
            elif kill.at < ended:
                phase = "4 effect done, run not ended"
            else:
                phase = "5 after its end"
            counted[kill.family, kill.victim, phase] += 1
        lines = [f"{count:>5}  {' / '.join(key)}" for key, count in sorted(counted.items())]
        inside = sum(count for key, count in counted.items() if key[2][0] in "234")
        lines.append(f"{inside} of {len(self.kills)} while a run was at work")
        return "\n".join(lines)


def _when(events: Sequence[types.AuditEvent], *kinds: str) -> dt.datetime:
    """Time of the first such event; the end of time where there is none."""
    never = dt.datetime.max.replace(tzinfo=dt.UTC)
    return min((_at(one) for one in events if one.kind in kinds), default=never)


def _at(event: types.AuditEvent) -> dt.datetime:
    return event.event_time.ToDatetime(tzinfo=dt.UTC)


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def _since(began: dt.datetime, stamp: Timestamp) -> float:
    return (stamp.ToDatetime(tzinfo=dt.UTC) - began).total_seconds()


def _told(run: types.SkillRun) -> str:
    state = types.SkillRunState.Name(run.state)
    return f"{run.name} of {run.skill} is {state}: {run.outcome} {run.failure.reason}"


def _word(number: int) -> str:
    """A word of its own for a theme."""
    letters = "bdfghklmnprstvwz"
    return "".join(letters[number // 16**place % 16] + "aeiou"[(number + place) % 5] for place in range(3))

"""Standing approvals under chance: asked for, given, used, armed, taken back, as the oracle foresees."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.skills.v1 import autonomy_service_pb2 as pb
from nightshift.skills.v1 import autonomy_service_pb2_grpc as pb_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1 import standing_approvals_pb2 as standing_types
from nightshift_kit.errors import NightshiftError
from nightshift_kit.rpc.channels import decode_error
from tests.adversary.oracle import Delegation, Oracle
from tests.skills.skills_support import Plane, eventually
from tests.skills.stand_ins import PROJECT

NAME = "nightshift.skills.v1.AutonomyService"
SETTINGS: dict[str, Any] = {
    "autonomy_min_runs": 1,
    # A theme after the other: without the week that lies between two proposals.
    "cooldowns_s": {"propose_config": 0},
    "approval_requests_per_hour": 1_000_000,
    "budget": {"runs_per_day": 1_000_000, "cost_usd_per_day": 1.0, "gpu_hours_per_day": 1.0},
    "skill_budget": {"runs_per_day": 1_000_000, "cost_usd_per_day": 1.0, "gpu_hours_per_day": 1.0},
}
_ASKED = ("propose_config",) * 9 + ("rollback", "train_adapter", "none")
_THEMES = f"{PROJECT}/opportunities/"
_COVERS = ("", f"{_THEMES}a", f"{_THEMES}b")
# Long enough for a machine that is busy with other things.
_PATIENCE_S = 120.0


@dataclass(slots=True)
class Standings:
    """Requests of AutonomyService, what must come of each, and the states that they rest on."""

    plane: Plane
    chance: random.Random
    oracle: Oracle
    policy_digest: str
    # Hears of each divergence.
    diverged: Callable[[str], object]
    promotions: list[str] = field(default_factory=lambda: ["promotions/none"])
    events: Counter[str] = field(default_factory=Counter)
    themes: int = 0

    # Requests by chance.

    def request(self, method: str, number: int) -> Message | None:
        """A request of one of its methods; None for another service's."""
        make = getattr(self, f"_{method}", None)
        made: Message | None = None if make is None else make(number)
        return made

    def _SetAutonomy(self, number: int) -> Message:  # noqa: N802 - the method's name
        fits = self.chance.random() < 0.85
        request = pb.SetAutonomyRequest(
            skill=f"skills/{self.chance.choice(_ASKED)}",
            max_uses=self.chance.choice((1, 1, 1, 2, 2, 3, 1000, 1000, 0, 1001)),
            policy_digest=self.policy_digest if fits else f"{number:064x}",
        )
        cover = self.chance.choice(_COVERS)
        if cover:
            request.scope.subjects.append(f"{cover}*")
        # Nobody's arguments are like another's.
        request.ttl.FromTimedelta(
            timedelta(hours=self.chance.choice((*[1] * 8, -1, 721)), microseconds=number)
        )
        return request

    def _UpdateAutonomy(self, number: int) -> Message:  # noqa: N802
        modes = (
            standing_types.AUTONOMY_MODE_MANUAL_ONLY,
            standing_types.AUTONOMY_MODE_BOUNDED_AUTO,
            standing_types.AUTONOMY_MODE_UNSPECIFIED,
        )
        return pb.UpdateAutonomyRequest(mode=self.chance.choice(modes))

    def _GetAutonomy(self, number: int) -> Message:  # noqa: N802
        return pb.GetAutonomyRequest(
            skill=self.chance.choice(("", "", "skills/propose_config", "skills/none"))
        )

    def _GetStandingApproval(self, number: int) -> Message:  # noqa: N802
        return pb.GetStandingApprovalRequest(name=self._some_name())

    def _RevokeStandingApproval(self, number: int) -> Message:  # noqa: N802
        return pb.RevokeStandingApprovalRequest(name=self._some_name())

    def _some_name(self) -> str:
        active = sorted(self.oracle.in_force())
        pool = [*active, *sorted(self.oracle.standing)[-3:], "standingApprovals/none", "none"]
        return self.chance.choice(pool)

    # What must come of them.

    def wish(self, request: Message) -> Delegation | None:
        """What a SetAutonomy asks for."""
        if not isinstance(request, pb.SetAutonomyRequest):
            return None
        ttl = request.ttl.ToTimedelta()
        return Delegation(
            valid=timedelta() < ttl <= timedelta(days=30) and 1 <= request.max_uses <= 1000,
            skill=request.skill.removeprefix("skills/"),
            policy_fits=request.policy_digest == self.policy_digest,
            max_uses=request.max_uses,
            covers=request.scope.subjects[0].removesuffix("*") if request.scope.subjects else "",
        )

    def own(self, request: Message) -> str | None:
        """Reason that a servicer itself must give, "" for none; None where it is not foreseen."""
        match request:
            case pb.UpdateAutonomyRequest():
                return {
                    standing_types.AUTONOMY_MODE_UNSPECIFIED: "ENUM_REQUIRED",
                    standing_types.AUTONOMY_MODE_BOUNDED_AUTO: "AUTONOMY_BY_SKILL",
                }.get(request.mode, "")
            case pb.GetStandingApprovalRequest() | pb.RevokeStandingApprovalRequest():
                if "/" not in request.name:
                    return "ID_INVALID"
                return "" if request.name in self.oracle.standing else "STANDING_APPROVAL_UNKNOWN"
            case pb.GetAutonomyRequest():
                return "SKILL_UNKNOWN" if request.skill == "skills/none" else ""
            case pb.ListStandingApprovalsRequest() | skills_pb.ListPluginsRequest():
                return ""
        return None

    def answered(self, request: Message, answer: bytes, *, again: bool) -> None:
        """A call that was let through has had its effect: tells the oracle, looks at the answer."""
        match request:
            case pb.SetAutonomyRequest():
                given = standing_types.StandingApproval.FromString(answer)
                wish = self.wish(request)
                assert wish is not None
                if not again:
                    self.oracle.gives(given.name, wish)
                    self.events["autonomy.given"] += 1
            case pb.UpdateAutonomyRequest():
                self._ends(lambda: self.oracle.back_to_manual())
            case pb.RevokeStandingApprovalRequest():
                self._ends(lambda: self.oracle.revokes(request.name))
            case pb.GetStandingApprovalRequest():
                told = standing_types.StandingApproval.FromString(answer)
                known = self.oracle.standing[request.name]
                state = standing_types.StandingApprovalState.Name(told.state)
                if (state.removeprefix("STANDING_APPROVAL_STATE_"), told.use_count) != (
                    known.state,
                    known.used,
                ):
                    self.diverged(f"{request.name} is {state}, used {told.use_count} times; expected {known}")

    def _ends(self, change: Callable[[], object]) -> None:
        before = len(self.oracle.in_force())
        change()
        self.events["autonomy.ended"] += before - len(self.oracle.in_force())

    # States.

    def readiness(self) -> None:
        """A fact of readiness holds no more, or again."""
        self.oracle.ready = not self.oracle.ready
        self.plane.around.monitor.probe_up = self.oracle.ready

    def promote_request(self, *, armed: bool) -> skills_pb.RunSkillRequest:
        """A person's promotion."""
        request = skills_pb.RunSkillRequest(name="skills/promote_config")
        proposal = next(iter(self.plane.around.lab.proposals))
        request.parameters.update({"proposal": proposal, "rollback_on_guardrail": armed})
        return request

    async def promoted(self, answer: bytes, *, armed: bool) -> None:
        """The promotion is over; finds what it has armed."""
        run = await self.plane.until(types.SkillRun.FromString(answer).name, timeout_s=_PATIENCE_S)
        if run.state != types.SKILL_RUN_STATE_SUCCEEDED:
            self.diverged(f"a promotion came to {run}")
            return
        promotion = str(run.results[0]["name"])
        self.promotions.append(promotion)
        found = [one.name for one in (await self._told()).standing_approvals if one.promotion == promotion]
        if len(found) != armed:
            self.diverged(f"{len(found)} rollbacks are armed for {promotion}, {int(armed)} expected")
        for name in found:
            self.oracle.arms(name, promotion)
            self.events["autonomy.armed"] += 1

    async def guardrail(self) -> str:
        """A guardrail falls for some promotion; what came of it."""
        promotion = self.chance.choice([*self.promotions[-4:], self.promotions[0]])
        effects = self.plane.around.lab.effects
        before = len(effects)
        reason = ""
        try:
            run = await self.plane.guardrail.execute(promotion)
        except NightshiftError as error:
            reason = error.reason
        else:
            done = await self.plane.until(f"skillRuns/{run.id}", timeout_s=_PATIENCE_S)
            if done.state != types.SKILL_RUN_STATE_SUCCEEDED:
                self.diverged(f"an armed rollback came to {done}")
        expected = ""

        def falls() -> None:
            nonlocal expected
            expected = self.oracle.guardrail(promotion)

        spent = sum(one.state == "SPENT" for one in self.oracle.standing.values())
        self._ends(falls)
        spent = sum(one.state == "SPENT" for one in self.oracle.standing.values()) - spent
        # What is used up ends by its use.
        self.events["autonomy.ended"] -= spent
        self.events["autonomy.used"] += spent
        if (reason, len(effects) - before) != (expected, int(not expected)):
            self.diverged(
                f"a guardrail for {promotion}: {reason or 'OK'} with {len(effects) - before} effects, "
                f"{expected or 'OK'} expected"
            )
        return f"guardrail {expected or 'rolled back'}"

    async def quiet_moment(self) -> str:
        """Nobody is there, and a new theme is: done without asking where that is covered, asked otherwise."""
        self.themes += 1
        subject = f"{_THEMES}{self.chance.choice('abc')}{self.themes}"
        around = self.plane.around
        theme = experience_types.Opportunity(
            name=subject,
            kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
            label=subject[-8:],
            keywords=["a", "b", "c"],
            runs=90,
        )
        around.experience.opportunities[:] = [theme]
        around.experience.state.detect_time.GetCurrentTime()
        if self.chance.random() < 0.6:
            await self._delegate()
        covering = self.oracle.covering("propose_config", subject)

        async def about_it() -> types.SkillRun | None:
            runs = await self.plane.runs("propose_config")
            return next((one for one in runs if one.plan.subject == subject), None)

        settled = (types.SKILL_RUN_STATE_AWAITING_APPROVAL, types.SKILL_RUN_STATE_SUCCEEDED)
        around.monitor.tell(idle=True)
        run = await eventually(about_it, lambda one: one is not None and one.state in settled, _PATIENCE_S)
        around.monitor.tell(idle=False)
        await self.plane.report()
        await self.at_rest()
        expected = types.SKILL_RUN_STATE_SUCCEEDED if covering else types.SKILL_RUN_STATE_AWAITING_APPROVAL
        if run.state != expected or (run.standing_approval in covering) != bool(covering):
            self.diverged(f"{run.standing_approval or 'asked'} for {subject}, covered by {covering}: {run}")
        elif covering:
            self.oracle.uses(run.standing_approval)
            self.events["autonomy.used"] += 1
        if run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL:
            await self.plane.decide(await self.plane.approval_of(run), approve=False)
        return f"quiet, {'covered' if covering else 'asked'}"

    async def _delegate(self) -> None:
        """An admin delegates, by the command that is there for it."""
        cover = self.chance.choice(_COVERS)
        uses = self.chance.choice((1, 2))
        request = skills_pb.RunSkillRequest(name="skills/set_autonomy")
        request.parameters.update({"skill": "propose_config", "max_uses": uses})
        if cover:
            request.parameters.update({"subjects": [f"{cover}*"]})
        reason = ""
        try:
            run = await self.plane.call("RunSkill", request, timeout_s=60)
        except grpc.aio.AioRpcError as error:
            reason = decode_error(error).reason
        expected = "" if self.oracle.ready else "NOT_READY"
        if reason != expected:
            self.diverged(f"set_autonomy: {reason or 'OK'}, {expected or 'OK'} expected")
        elif not reason:
            done = await self.plane.until(run.name, timeout_s=_PATIENCE_S)
            wish = Delegation(True, "propose_config", True, uses, cover)
            self.oracle.gives(str(done.results[0]["name"]), wish)
            self.events["autonomy.given"] += 1

    async def at_rest(self) -> None:
        """Waits until nothing is at work, and learns the fence that a user's coming has raised."""

        async def working() -> bool:
            return bool(self.plane.guardrail._gate.live())

        await eventually(working, lambda live: not live, _PATIENCE_S)
        fence = (await self.plane.call("GetSchedule", skills_pb.GetScheduleRequest())).fence
        if fence < self.oracle.fence:
            self.diverged(f"the fence fell from {self.oracle.fence} to {fence}")
        self.oracle.fence = fence

    # What the plane says.

    async def look(self) -> None:
        """Compares what is in force, and the mode, with what the oracle knows."""
        told = await self._told()
        theirs = {(one.name, one.skill, one.promotion, one.use_count) for one in told.standing_approvals}
        ours = {
            (name, f"skills/{one.skill}", one.promotion, one.used)
            for name, one in self.oracle.in_force().items()
        }
        bounded = told.mode == standing_types.AUTONOMY_MODE_BOUNDED_AUTO
        if theirs != ours or bounded != self.oracle.bounded():
            self.diverged(f"in force is {theirs ^ ours} more or less; bounded: {bounded}")

    async def audited(self) -> None:
        """Compares the audit's events with what has happened, one for one."""
        for kind in ("autonomy.given", "autonomy.armed", "autonomy.used", "autonomy.ended"):
            wanted = self.events[kind]
            try:
                await eventually(partial(self._count, kind), wanted.__eq__, 20)
            except AssertionError as error:
                self.diverged(f"{kind}: {wanted} expected; {error}")

    async def _count(self, kind: str) -> int:
        found, token = 0, ""
        while True:
            request = skills_pb.ListAuditEventsRequest(kind_prefix=kind, page_size=1000, page_token=token)
            answer = await self.plane.call("ListAuditEvents", request, timeout_s=60)
            found += len(answer.audit_events)
            token = answer.next_page_token
            if not token:
                return found

    async def _told(self) -> standing_types.Autonomy:
        stub: Any = pb_grpc.AutonomyServiceStub(self.plane.channel())
        answer: standing_types.Autonomy = await stub.GetAutonomy(pb.GetAutonomyRequest(), timeout=60)
        return answer


async def proven(plane: Plane) -> None:
    """One propose_config has succeeded under a person's approval; then somebody is there for good."""
    run = await plane.run("propose_config")
    await plane.decide(await plane.approval_of(run))
    done = await plane.until(run.name, timeout_s=_PATIENCE_S)
    assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
    plane.around.monitor.tell(idle=False)
    await plane.report()


async def policy_of(plane: Plane) -> str:
    """Digest of the policy in force."""
    stub: Any = pb_grpc.AutonomyServiceStub(plane.channel())
    answer = await stub.GetAutonomy(pb.GetAutonomyRequest(), timeout=60)
    return str(answer.policy_digest)

"""Sequences of calls by chance, over the wire, against what the oracle says must come of each."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.policies import MethodRule, rules_of
from tests.adversary.intruders import Forger, odd_certificate, send
from tests.adversary.oracle import DOOR, Caller, Oracle, Token, Verdict
from tests.adversary.standings import NAME as AUTONOMY
from tests.adversary.standings import Standings, policy_of
from tests.skills.skills_support import Plane

CALLERS = (
    Caller("person", "viewer", "viewer"),
    Caller("person", "approver", "approver"),
    Caller("person", "admin", "admin"),
    Caller("platform", "default"),
    *(Caller("service", name) for name in ("skills", "lab", "trainer", "experience", "monitor")),
    Caller("stranger", "nobody"),
)
FLAWS = (
    "missing",
    "signature",
    "expired",
    "audience",
    "method",
    "subject",
    "skill",
    "tier",
    "arguments",
)
# Requests whose servicers act in the stand-ins; what is not here is called with an empty one.
WORKING: dict[str, Any] = {
    "Aggregate": lambda n: experience_pb.AggregateRequest(parent="projects/default"),
    "EmbedPending": lambda n: experience_pb.EmbedPendingRequest(parent="projects/default", limit=n + 1),
    "DetectOpportunities": lambda n: experience_pb.DetectOpportunitiesRequest(parent="projects/default"),
    "CreateProposal": lambda n: lab_pb.CreateProposalRequest(config_id=f"config{n}"),
    "PromoteProposal": lambda n: lab_pb.PromoteProposalRequest(name=f"proposals/{n}", etag="1"),
    "RollbackPromotion": lambda n: lab_pb.RollbackPromotionRequest(name=f"promotions/{n}"),
    "CreateTrainingJob": lambda n: trainer_pb.CreateTrainingJobRequest(),
}
ACTING = ("experience", "lab", "trainer")
# Each so many sequences nobody is there for a moment, so that standing approvals are used.
QUIET_EACH = 60
TOKENS = "nightshift.skills.v1.TokensService"
CONTROL = ("nightshift.skills.v1.StopService", "nightshift.skills.v1.OutboxService")


@dataclass(frozen=True, slots=True)
class Target:
    """One method of one server."""

    service: str
    control: bool
    rule: MethodRule
    method: MethodDescriptor


@dataclass(slots=True)
class Fuzz:
    """One plane under calls by chance; `diverged` has each call with another answer than the oracle's."""

    plane: Plane
    chance: random.Random
    oracle: Oracle
    targets: list[Target] = field(default_factory=list)
    standings: Standings = field(init=False)
    seen: Counter[str] = field(default_factory=Counter)
    diverged: list[str] = field(default_factory=list)
    sequences: int = 0
    calls: int = 0
    _channels: dict[tuple[str, bool, Caller], grpc.aio.Channel] = field(default_factory=dict)
    _kept: list[tuple[Target, Token, str, int]] = field(default_factory=list)
    _requests: dict[str, Message] = field(default_factory=dict)
    # Answers of calls that had their effect, by the grant's jti.
    _answers: dict[str, bytes] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    async def prepare(self) -> None:
        """Finds the methods of all servers."""
        digest = await policy_of(self.plane)
        self.standings = Standings(self.plane, self.chance, self.oracle, digest, self.diverged.append)
        served: list[tuple[str, bool, tuple[str, ...]]] = [
            (name, False, (f"nightshift.{name}.v1.{name.capitalize()}Service",)) for name in ACTING
        ]
        served += [(name, True, CONTROL) for name in ACTING]
        served.append(("skills", False, ("nightshift.skills.v1.SkillsService", AUTONOMY, TOKENS)))
        served.append(("skills", True, ("nightshift.skills.v1.ControlService",)))
        served.append(("monitor", False, ("nightshift.monitor.v1.MonitorService",)))
        for service, control, names in served:
            for name in names:
                found = descriptor_pool.Default().FindServiceByName(name)
                for short, rule in rules_of(name).items():
                    self.targets.append(Target(service, control, rule, found.methods_by_name[short]))

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()

    async def sequence(self, length: int) -> None:
        """One sequence; begins without the lock."""
        self.sequences += 1
        self._kept.clear()
        self._requests.clear()
        self._answers.clear()
        if self.oracle.locked:
            await self.plane.call("ReleaseLock", pb.ReleaseLockRequest())
            self.oracle.unlocks()
        if self.sequences % QUIET_EACH == 0:
            self.seen[await self.standings.quiet_moment()] += 1
            await self._told()
        for _ in range(length):
            kind = self.chance.random()
            if kind < 0.08 and self._kept:
                await self._again(*self.chance.choice(self._kept))
            elif kind < 0.16:
                await self._change_state()
            else:
                await self._call()
        await self.standings.look()

    async def _call(self) -> None:
        acting = self.chance.random() < 0.6
        pool = [one for one in self.targets if (one.rule.tier is not None) is acting]
        if self.chance.random() < 0.2:
            # Few methods, on which much rests.
            pool = [one for one in pool if one.rule.name.startswith(AUTONOMY)]
        target = self.chance.choice(pool)
        token = self._token(target)
        likely = acting and self.chance.random() < 0.6
        caller = Caller("service", "skills") if likely else self.chance.choice(CALLERS)
        number = next(self._numbers)
        await self._try(target, caller, token, number)

    async def _again(self, target: Target, token: Token, text: str, number: int) -> None:
        """A grant that was used, for the same call or for another one."""
        same = self.chance.random() < 0.5
        if same or target.method.name == "CreateTrainingJob":
            await self._try(target, Caller("service", "skills"), token, number, text=text)
            return
        other = next(self._numbers)
        request = self._request(target, other)
        use = self._use(target, other)
        anew = replace(token, flaw="", use=use)
        rebound = self._forger(target).fitting(request, **self._claims(anew))
        await self._try(target, Caller("service", "skills"), anew, other, text=rebound)

    async def _change_state(self) -> None:
        """A user, the lock, its lifting or a promotion, by somebody who may or may not; or a fact changes."""
        kind = self.chance.random()
        if kind < 0.1:
            self.standings.readiness()
            return
        if kind < 0.2:
            self.seen[await self.standings.guardrail()] += 1
            return
        if kind < 0.35:
            await self._promote()
            return
        method = self.chance.choice(("ReportActivity", "EngageLock", "ReleaseLock"))
        control = method != "ReleaseLock" and self.chance.random() < 0.5
        target = next(
            one
            for one in self.targets
            if one.service == "skills" and one.control is control and one.method.name == method
        )
        await self._try(target, self.chance.choice(CALLERS), Token("missing"), 0)

    async def _promote(self) -> None:
        target = next(one for one in self.targets if one.method.name == "RunSkill")
        caller = self.chance.choice(CALLERS)
        armed = self.chance.random() < 0.7
        request = self.standings.promote_request(armed=armed)
        verdict = self.oracle.judge(target.method, caller, Token("missing"), deadline=True, use="")
        verdict = replace(verdict, own="GLOBAL_LOCK" if self.oracle.locked else "")
        before = self._effects()
        reason, answer = await self._send(target, caller, request, timeout_s=60)
        self.calls += 1
        if not reason:
            await self.standings.promoted(answer, armed=armed)
            if self._effects() - before != 1:
                self.diverged.append(f"a promotion had {self._effects() - before} effects")
            before = self._effects()
        await self._compare(target, caller, Token("missing"), verdict, reason, before)

    async def _try(
        self, target: Target, caller: Caller, token: Token, number: int, *, text: str | None = None
    ) -> None:
        deadline = target.rule.server_streaming or self.chance.random() < 0.9
        request = self._request(target, number)
        use = self._use(target, number)
        if target.rule.tier is not None and token.flaw != "missing" and text is None:
            token, text = self._mint(target, token, request, use)
        before = self._effects()
        wish = self.standings.wish(request)
        verdict = self.oracle.judge(target.method, caller, token, deadline=deadline, use=use, wish=wish)
        if not verdict.reason and verdict.own is None:
            verdict = replace(verdict, own="" if verdict.effect and wish else self.standings.own(request))
        # A stream that gets through may have nothing to say for ever; a refusal is waited for.
        brief = target.rule.server_streaming and not verdict.reason
        timeout_s = (0.2 if brief else 30) if deadline else None
        reason, answer = await self._send(target, caller, request, text=text, timeout_s=timeout_s)
        self.calls += 1
        await self._compare(target, caller, token, verdict, reason, before)
        if verdict.repeat and answer != self._answers.get(token.jti):
            self.diverged.append(f"{target.rule.name} {token}: another answer than the first time")
        acts = verdict.effect and not reason
        if text is not None and acts and target.rule.single_use and (wish or target.method.name in WORKING):
            self.oracle.acted(token, use)
            self._answers[token.jti] = answer
            self._kept.append((target, token, text, number))
        if not verdict.reason and not reason:
            self.standings.answered(request, answer, again=verdict.repeat)
        through = not verdict.reason
        if through and target.method.name == "EngageLock":
            self.oracle.locks()
            await self._told()
        elif through and target.method.name == "ReleaseLock":
            self.oracle.unlocks()

    async def _send(
        self,
        target: Target,
        caller: Caller,
        request: Message,
        *,
        timeout_s: float | None,
        text: str | None = None,
    ) -> tuple[str, bytes]:
        """Reason of the refusal, "" for none, and the answer."""
        metadata = () if text is None else (("nightshift-grant", text),)
        channel = self._channel(target, caller)
        data = request.SerializeToString()
        try:
            answer = await send(channel, target.rule, data, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            told = decode_error(error)
            # A stream that had nothing to say within its time; nothing else may end without a reason.
            return told.reason or ("" if target.rule.server_streaming else told.code.name), b""
        return "", answer or b""

    async def _compare(
        self, target: Target, caller: Caller, token: Token, verdict: Verdict, reason: str, before: int
    ) -> None:
        acted = self._effects() - before
        works = target.method.name in WORKING
        # Only its own work may refuse what has got through; a stale fence of Stop or RenewLease is such work.
        own = target.control and reason == "PREEMPTED"
        let_through = (reason not in DOOR or own) if verdict.own is None else reason == verdict.own
        agrees = reason == verdict.reason if verdict.reason else let_through
        wanted = int(verdict.effect and works)
        through = "effect" if wanted else "repeat" if verdict.repeat else "through"
        self.seen[verdict.reason or verdict.own or through] += 1
        if not agrees or acted != wanted or (works and verdict.effect and reason):
            self.diverged.append(
                f"{caller} {target.rule.name} {token}: {reason or 'OK'} with {acted} effects, "
                f"{verdict} with {wanted} expected"
            )

    async def _told(self) -> None:
        """Waits until every service has heard of the lock: until then the oracle cannot know."""
        ends_s = time.monotonic() + 10
        for name in ACTING:
            hub = self.plane.around.serving[name].hub
            assert hub is not None
            while hub.gate.highest < self.oracle.fence:
                assert time.monotonic() < ends_s, f"{name} was not told"
                await asyncio.sleep(0.002)

    def _token(self, target: Target) -> Token:
        if target.rule.tier is None or self.chance.random() < 0.1:
            return Token("missing")
        if self.chance.random() < 0.5:
            bound = target.rule.tier > Tier.AUTO
            flaws = [flaw for flaw in FLAWS if bound or flaw not in ("tier", "arguments")]
            return Token(self.chance.choice(flaws))
        old = self.chance.random() < 0.25
        fence = self.chance.randint(0, self.oracle.fence) if old else self.oracle.fence
        # A plug-in plans, and a person approves: its grants are CONFIRM at least, and so are the method's.
        plugin = self.chance.random() < 0.15
        admin = self.chance.random() < 0.85
        return Token("", fence, self.chance.random() < 0.5, plugin=plugin, admin=admin)

    @staticmethod
    def _claims(token: Token) -> dict[str, Any]:
        claims: dict[str, Any] = {"jti": token.jti, "fence": token.fence, "on_purpose": token.on_purpose}
        if token.plugin:
            claims["skill"] = "skills/plugin_anything"
        claims["initiator"] = f"spiffe://nightshift.local/person/{'admin' if token.admin else 'approver'}/x"
        return claims

    def _mint(self, target: Target, token: Token, request: Message, use: str) -> tuple[Token, str]:
        forger, jti = self._forger(target), f"jti-{next(self._numbers)}"
        if token.flaw:
            token = replace(token, fence=self.oracle.fence, on_purpose=True)
        token = replace(token, jti=jti, use=use)
        claims = self._claims(token)
        if token.flaw == "signature":
            return token, forger.other_key(request)
        if token.flaw == "expired":
            return token, forger.changed(request, iat=time.time() - 40, exp=time.time() - 10)
        wrong: dict[str, dict[str, Any]] = {
            "audience": {"audience": "monitor"},
            "method": {"methods": ["nightshift.lab.v1.LabService/GetConfig"]},
            "subject": {"thumbprint": "A" * 43},
            "skill": {"skill": "skills/none"},
            "tier": {"tier": Tier.AUTO},
            "arguments": {"arguments_digest": "0" * 64},
        }
        return token, forger.fitting(request, **(claims | wrong.get(token.flaw, {})))

    def _forger(self, target: Target) -> Forger:
        settings = self.plane.plane_settings
        thumbprint = self.plane.around.serving["lab"].credential("service/skills").thumbprint
        return Forger(settings, target.rule, thumbprint)

    def _request(self, target: Target, number: int) -> Message:
        use = self._use(target, number)
        if use not in self._requests:
            name = target.method.name
            ours = target.rule.name.startswith(AUTONOMY)
            made = self.standings.request(name, number) if ours else None
            if name in WORKING:
                made = WORKING[name](number)
            self._requests[use] = target.rule.request_class() if made is None else made
        return self._requests[use]

    @staticmethod
    def _use(target: Target, number: int) -> str:
        return f"{target.rule.name} {number}"

    def _effects(self) -> int:
        around = self.plane.around
        return sum(len(one.effects) for one in (around.experience, around.lab, around.trainer))

    def _channel(self, target: Target, caller: Caller) -> grpc.aio.Channel:
        key = (target.service, target.control, caller)
        if key not in self._channels:
            if target.service == "skills":
                settings = self.plane.plane_settings
                port = settings.control_port("skills") if target.control else settings.port("skills")
            else:
                serving = self.plane.around.serving[target.service]
                port = serving.control_port if target.control else serving.port
            self._channels[key] = channel_to(f"127.0.0.1:{port}", target.service, self._credential(caller))
        return self._channels[key]

    def _credential(self, caller: Caller) -> Any:
        if caller.kind == "stranger":
            return odd_certificate(self.plane.home, ["spiffe://nightshift.local/person/root/x"])
        name = caller.name if caller.kind == "person" else f"{caller.kind}/{caller.name}"
        return self.plane.around.serving["lab"].credential(name)

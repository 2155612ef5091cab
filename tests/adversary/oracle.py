"""Who may do what: from governance's rules and the methods' options, with nothing of the guard's code.

An oracle knows the fence, the lock's fence and which grants were used; told a call, it says with which reason
the call must be refused, or that it must get through to the servicer, and whether it must have an effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.descriptor import MethodDescriptor

from nightshift.type.v1 import policy_pb2

# The way from a person who may only look to one who may lift the lock.
ROLES = ("viewer", "approver", "admin")

# What may be delegated; everything else of the catalogue always asks.
DELEGABLE = frozenset({"propose_config"})
SKILLS = DELEGABLE | {"rollback", "promote_config", "train_adapter", "set_autonomy", "aggregate_experience"}

# Reasons that only the way to a servicer gives. A call that the oracle lets through has none of them.
DOOR = frozenset(
    {
        "IDENTITY_INVALID",
        "IDENTITY_MISSING",
        "CALLER_NOT_ALLOWED",
        "ROLE_INSUFFICIENT",
        "GRANT_MISSING",
        "GRANT_INVALID",
        "GRANT_EXPIRED",
        "GRANT_SCOPE",
        "GRANT_SUBJECT",
        "GRANT_ARGS",
        "GRANT_REPLAYED",
        "TIER_INSUFFICIENT",
        "DEADLINE_REQUIRED",
        "PREEMPTED",
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls; a "stranger" has a certificate of the plane's CA without a usable name."""

    kind: str
    name: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a grant by whoever made it: one thing at most is wrong with it.

    Attributes:
        flaw: "" for none; "missing", "signature", "expired", "audience", "method", "subject", "skill",
            "tier", "arguments".
        fence: Of the grant.
        on_purpose: Whether it is of a person's own doing.
        jti: Of the grant.
        use: Which call it was made for (method and arguments).
        plugin: Whether it is of a plug-in's run.
        admin: Whether it is of an admin's run.
    """

    flaw: str
    fence: int = 0
    on_purpose: bool = False
    jti: str = ""
    use: str = ""
    plugin: bool = False
    admin: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes of a call.

    Attributes:
        reason: Of the refusal on the way to the servicer; "" where it gets through.
        effect: Whether it acts.
        repeat: Whether it acted before, and the same answer comes again.
        own: What the servicer itself answers, "" for no refusal; None where the oracle does not know.
    """

    reason: str = ""
    effect: bool = False
    repeat: bool = False
    own: str | None = None


@dataclass(frozen=True, slots=True)
class Delegation:
    """What a SetAutonomy asks for: `valid` in form; `covers` is the beginning of subjects, "" for any."""

    valid: bool
    skill: str
    policy_fits: bool
    max_uses: int
    covers: str


@dataclass(slots=True)
class Standing:
    """A standing approval that was given. `promotion` for an armed rollback."""

    skill: str
    left: int
    covers: str = ""
    promotion: str = ""
    state: str = "ACTIVE"
    used: int = 0


_FLAWS = {
    "missing": "GRANT_MISSING",
    "signature": "GRANT_INVALID",
    "expired": "GRANT_EXPIRED",
    "audience": "GRANT_SCOPE",
    "method": "GRANT_SCOPE",
    "subject": "GRANT_SUBJECT",
    "skill": "GRANT_SUBJECT",
    "tier": "TIER_INSUFFICIENT",
    "arguments": "GRANT_ARGS",
}


@dataclass(slots=True)
class Oracle:
    """What has happened so far.

    Attributes:
        fence: In force.
        lock_fence: Below which a person's own grants are void, too: the lock's, or the first since the start.
        used: jti → use, of grants that had their effect.
        ready: Whether all facts hold without which nothing is delegated, but for the lock.
        standing: Name → standing approval, whatever became of it.
    """

    fence: int
    lock_fence: int = 0
    locked: bool = False
    ready: bool = True
    used: dict[str, str] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)

    def may_call(self, callers: Iterable[str], caller: Caller) -> str:
        """Why a caller may not call a method that names these; "" where it may."""
        if caller.kind == "stranger":
            return "IDENTITY_INVALID"
        patterns = [pattern.partition(":") for pattern in callers]
        if not patterns:
            return ""
        for kind, _, rest in patterns:
            if kind == "any":
                return ""
            if kind != caller.kind:
                continue
            if kind == "person" and ROLES.index(caller.role) >= ROLES.index(rest):
                return ""
            if kind != "person" and rest in ("", caller.name):
                return ""
        by_role = caller.kind == "person" and any(kind == "person" for kind, _, _ in patterns)
        return "ROLE_INSUFFICIENT" if by_role else "CALLER_NOT_ALLOWED"

    def judge(
        self,
        method: MethodDescriptor,
        caller: Caller,
        token: Token,
        *,
        deadline: bool,
        use: str,
        wish: Delegation | None = None,
    ) -> Verdict:
        """What must come of a call; `wish` is what a SetAutonomy asks for."""
        policy = method.GetOptions().Extensions[policy_pb2.policy]
        refusal = self.may_call(policy.callers, caller)
        if refusal:
            return Verdict(refusal)
        if policy.kind != policy_pb2.METHOD_KIND_ACTING:
            return Verdict()
        # A grant is skills' own, whoever else presents it; a thief is not told what it would be good for.
        stolen = (caller.kind, caller.name) != ("service", "skills")
        if token.flaw and not (stolen and token.flaw in ("tier", "arguments")):
            return Verdict(_FLAWS[token.flaw])
        if stolen or (token.plugin and not policy.plugins):
            return Verdict("GRANT_SUBJECT")
        if policy.tier != policy_pb2.TIER_AUTO and use != token.use:
            return Verdict("GRANT_ARGS")
        if token.fence < (self.lock_fence if token.on_purpose else self.fence):
            return Verdict("PREEMPTED")
        if not deadline:
            return Verdict("DEADLINE_REQUIRED")
        if wish is not None and not wish.valid:
            return Verdict(own="FIELD_INVALID")
        if policy.single_use and token.jti in self.used:
            same = self.used[token.jti] == use
            return Verdict(repeat=True) if same else Verdict("GRANT_REPLAYED")
        refused = "" if wish is None else self._why_not(wish, token)
        return Verdict(own=refused) if refused else Verdict(effect=True)

    # Standing approvals: governance.md, "Autonomy", and the comments of their contract.

    def _why_not(self, wish: Delegation, token: Token) -> str:
        """Why nothing is delegated; "" where it is."""
        if not token.admin:
            return "ROLE_INSUFFICIENT"
        if self.locked:
            return "GLOBAL_LOCK"
        if not wish.policy_fits:
            return "POLICY_CHANGED"
        if wish.skill not in SKILLS:
            return "SKILL_UNKNOWN"
        if wish.skill not in DELEGABLE:
            return "NOT_DELEGABLE"
        return "" if self.ready else "NOT_READY"

    def in_force(self) -> dict[str, Standing]:
        """Those of which a use is left."""
        return {name: one for name, one in self.standing.items() if one.state == "ACTIVE"}

    def bounded(self) -> bool:
        """Whether anything runs without asking: armed rollbacks only ever take something back."""
        return any(not one.promotion for one in self.in_force().values())

    def gives(self, name: str, wish: Delegation) -> None:
        """An admin has delegated."""
        self.standing[name] = Standing(wish.skill, wish.max_uses, wish.covers)

    def arms(self, name: str, promotion: str) -> None:
        """Somebody has promoted, and armed the one rollback."""
        self.standing[name] = Standing("rollback", 1, promotion=promotion)

    def back_to_manual(self) -> None:
        """All ends but armed rollbacks."""
        for one in self.in_force().values():
            if not one.promotion:
                one.state = "REVOKED"

    def revokes(self, name: str) -> str:
        """Reason of the refusal; what has ended stays as it is."""
        if name not in self.standing:
            return "STANDING_APPROVAL_UNKNOWN"
        if self.standing[name].state == "ACTIVE":
            self.standing[name].state = "REVOKED"
        return ""

    def covering(self, skill: str, subject: str) -> set[str]:
        """Names of those under which a plan about a subject runs without asking."""
        return {
            name
            for name, one in self.in_force().items()
            if not one.promotion and one.skill == skill and subject.startswith(one.covers)
        }

    def uses(self, name: str) -> None:
        """A run has begun under it."""
        one = self.standing[name]
        one.used += 1
        one.left -= 1
        if not one.left:
            one.state = "SPENT"

    def guardrail(self, promotion: str) -> str:
        """A guardrail fell: reason why nothing is rolled back, "" where it is."""
        self.back_to_manual()
        if self.locked:
            return "GLOBAL_LOCK"
        armed = [name for name, one in self.in_force().items() if one.promotion == promotion]
        if not armed:
            return "NOT_ARMED"
        self.uses(armed[0])
        return ""

    def acted(self, token: Token, use: str) -> None:
        """A single-use call has had its effect, and its grant is used up."""
        self.used[token.jti] = use

    def locks(self) -> None:
        """Somebody who may set the lock has."""
        if not self.locked:
            self.fence += 1
            self.lock_fence = self.fence
        self.locked = True

    def unlocks(self) -> None:
        """An admin has lifted it."""
        self.locked = False

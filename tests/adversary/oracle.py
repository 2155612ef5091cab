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
    """

    flaw: str
    fence: int = 0
    on_purpose: bool = False
    jti: str = ""
    use: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` of the refusal, "" where it gets through; `effect` where it acts, `repeat` not once more."""

    reason: str = ""
    effect: bool = False
    repeat: bool = False


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
    """

    fence: int
    lock_fence: int = 0
    locked: bool = False
    used: dict[str, str] = field(default_factory=dict)

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
        self, method: MethodDescriptor, caller: Caller, token: Token, *, deadline: bool, use: str
    ) -> Verdict:
        """What must come of a call."""
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
        if stolen:
            return Verdict("GRANT_SUBJECT")
        if policy.tier != policy_pb2.TIER_AUTO and use != token.use:
            return Verdict("GRANT_ARGS")
        if token.fence < (self.lock_fence if token.on_purpose else self.fence):
            return Verdict("PREEMPTED")
        if not deadline:
            return Verdict("DEADLINE_REQUIRED")
        if policy.single_use and token.jti in self.used:
            same = self.used[token.jti] == use
            return Verdict(repeat=True) if same else Verdict("GRANT_REPLAYED")
        return Verdict(effect=True)

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

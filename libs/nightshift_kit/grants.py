"""Grants: the signed right of one skill run to call named methods, and what makes it count once.

    skills                              acting service
    GrantMinter.mint(…) ── metadata ──▶ GrantVerifier.verify(…)    signature, time, scope, caller, skill, tier
                                        FenceGate.check(grant)     no background work under an old fence
                                        Effect.begin(connection)   fence again, single use, stored answer
                                        … the change …
                                        Effect.finish(connection, answer)

A grant is an EdDSA JWT (`typ` grant+jwt) in the metadata key `nightshift-grant`. AUTO grants hold for 60 s and
many calls; CONFIRM and MANUAL grants must begin their one call within 30 s and are bound to its arguments.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Self

import jwt
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nightshift_kit.clock import Clock
from nightshift_kit.errors import (
    Code,
    GrantArgs,
    GrantExpired,
    GrantInvalid,
    GrantMissing,
    GrantReplayed,
    GrantScope,
    GrantSubject,
    NightshiftError,
    Preempted,
    TierInsufficient,
)
from nightshift_kit.ids import new_id
from nightshift_kit.storage import KIT, Database

METADATA_KEY: Final = "nightshift-grant"
ISSUER: Final = "spiffe://nightshift.local/service/skills"

_TYPE: Final = "grant+jwt"
_ALGORITHM: Final = "EdDSA"
_REQUIRED: Final = ("iss", "aud", "sub", "jti", "iat", "exp", "scp", "tier", "fence", "run", "cnf", "ini")
# Clocks of two services on two hosts may differ that much.
_SKEW_S: Final = 5.0

# Row of kit_fence that belongs to background work.
_FENCE_NAME: Final = "background"


class Tier(IntEnum):
    """How much permission something needs (nightshift.type.v1.Tier)."""

    AUTO = 1
    CONFIRM = 2
    MANUAL = 3

    @property
    def lifetime_s(self) -> float:
        """How long a grant of this tier may be used to begin a call."""
        return 60.0 if self is Tier.AUTO else 30.0


class EffectUnfinished(NightshiftError):
    """The same call has been done by another process in this very moment."""

    code = Code.UNAVAILABLE
    reason = "EFFECT_UNFINISHED"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified grant says.

    Attributes:
        skill: "skills/promote_config".
        skill_digest: Digest of the skill's code and version.
        skill_run: "skillRuns/…".
        methods: Full names ("nightshift.lab.v1.LabService/PromoteProposal").
        fence: Under which it was minted.
        jti: Unique id.
        expires_at: Until when a call may begin (UTC).
        audience: Service that it is for ("lab").
        thumbprint: Of the certificate that may present it (x5t#S256).
        approval: "approvals/…", "" for AUTO.
        arguments_digest: SHA-256 (hex) of the one request it allows, "" for AUTO.
        on_purpose: Started by a person, so no user's arrival stops it.
        initiator: Who caused the run ("service/skills", "person/admin/1000").
    """

    skill: str
    skill_digest: str
    skill_run: str
    tier: Tier
    methods: frozenset[str]
    fence: int
    jti: str
    expires_at: dt.datetime
    audience: str
    thumbprint: str
    approval: str = ""
    arguments_digest: str = ""
    on_purpose: bool = False
    initiator: str = ""


class GrantMinter:
    """Signs grants; lives in skills alone."""

    def __init__(self, private_key: Ed25519PrivateKey, clock: Clock) -> None:
        self._key = private_key
        self._clock = clock

    def mint(
        self,
        *,
        skill: str,
        skill_digest: str,
        skill_run: str,
        tier: Tier,
        methods: Sequence[str],
        fence: int,
        audience: str,
        thumbprint: str,
        initiator: str,
        approval: str = "",
        arguments_digest: str = "",
        on_purpose: bool = False,
        jti: str = "",
    ) -> str:
        """A token, valid from now on for the tier's lifetime. Arguments as in Grant.

        Args:
            jti: Give the same one again to repeat a call whose answer was lost; "" makes a new one.

        Raises:
            ValueError: a CONFIRM or MANUAL grant without an approval or without an arguments digest, or
                without a method.
        """
        if tier > Tier.AUTO and not (approval and arguments_digest):
            raise ValueError(f"a {tier.name} grant needs an approval and the arguments' digest")
        if not methods:
            raise ValueError("a grant needs at least one method")
        issued_at = self._clock.now().timestamp()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": audience,
            "sub": f"{skill}@{skill_digest}",
            "jti": jti or new_id(),
            "iat": issued_at,
            "exp": issued_at + tier.lifetime_s,
            "scp": sorted(methods),
            "tier": tier.name,
            "fence": fence,
            "run": skill_run,
            "cnf": {"x5t#S256": thumbprint},
            "ini": initiator,
        }
        if approval:
            claims["apr"] = approval
        if arguments_digest:
            claims["arg"] = arguments_digest
        if on_purpose:
            claims["onp"] = True
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"typ": _TYPE})


class GrantVerifier:
    """Checks grants for one service. Safe to use from several threads."""

    def __init__(self, public_key: Ed25519PublicKey, audience: str, clock: Clock) -> None:
        self._key = public_key
        self._audience = audience
        self._clock = clock
        # A renewable grant comes back with each call; a signature costs about 0.1 ms to check.
        self._seen: OrderedDict[str, Grant] = OrderedDict()
        self._lock = threading.Lock()

    def verify(
        self, token: str | None, *, method: str, tier: Tier, skills: frozenset[str], thumbprint: str
    ) -> Grant:
        """Checks a token against the method that is called and the certificate that calls.

        Args:
            token: From the metadata, None where there was none.
            method: Full name of the method.
            tier: Lowest tier that the method asks for.
            skills: Resource names of the skills that may reach it.
            thumbprint: Of the caller's certificate.

        Raises:
            GrantMissing, GrantInvalid, GrantExpired, GrantScope, GrantSubject, TierInsufficient.
        """
        if not token:
            raise GrantMissing(
                "This method acts; it needs a grant of skills. Ask skills: nightshift skills run …",
                metadata={"method": method},
            )
        grant = self._parse(token)
        if self._clock.now() >= grant.expires_at:
            raise GrantExpired(
                "The grant has expired; ask skills for a new one.", metadata={"jti": grant.jti}
            )
        if grant.audience != self._audience:
            raise GrantScope(
                f"The grant is for {grant.audience}, not for {self._audience}.",
                metadata={"audience": grant.audience},
            )
        if method not in grant.methods:
            raise GrantScope("The grant does not name this method.", metadata={"method": method})
        if not thumbprint or grant.thumbprint != thumbprint:
            raise GrantSubject("The grant belongs to another certificate.", metadata={"jti": grant.jti})
        if grant.skill not in skills:
            raise GrantSubject(
                "The grant's skill may not reach this method.", metadata={"skill": grant.skill}
            )
        if grant.tier < tier:
            raise TierInsufficient(
                f"The method needs {tier.name}, the grant is {grant.tier.name}.",
                metadata={"needed": tier.name, "granted": grant.tier.name},
            )
        return grant

    @staticmethod
    def check_arguments(grant: Grant, arguments_digest: str) -> None:
        """Raises GrantArgs where the grant is bound to other arguments."""
        if grant.arguments_digest and grant.arguments_digest != arguments_digest:
            raise GrantArgs(
                "The arguments differ from those that were approved.", metadata={"approval": grant.approval}
            )

    def _parse(self, token: str) -> Grant:
        with self._lock:
            grant = self._seen.get(token)
            if grant is not None:
                self._seen.move_to_end(token)
                return grant
        grant = self._decode(token)
        if grant.tier is Tier.AUTO:
            with self._lock:
                self._seen[token] = grant
                if len(self._seen) > 256:
                    self._seen.popitem(last=False)
        return grant

    def _decode(self, token: str) -> Grant:
        try:
            # Times are checked against our own clock. PyJWT checks neither `typ` nor that a claim is present.
            decoded = jwt.decode_complete(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=ISSUER,
                options={
                    "require": list(_REQUIRED),
                    "verify_aud": False,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise GrantInvalid("The grant is not signed by skills, or is damaged.") from error
        if decoded["header"].get("typ") != _TYPE:
            raise GrantInvalid("The token is signed, but it is no grant.")
        try:
            return self._grant_of(decoded["payload"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise GrantInvalid("The grant is signed, but its claims do not fit.") from error

    def _grant_of(self, claims: dict[str, Any]) -> Grant:
        skill, _, digest = str(claims["sub"]).partition("@")
        tier = Tier[claims["tier"]]
        issued_at, expires_at = float(claims["iat"]), float(claims["exp"])
        if not 0 < expires_at - issued_at <= tier.lifetime_s:
            raise ValueError("lives longer than its tier may")
        if issued_at > self._clock.now().timestamp() + _SKEW_S:
            raise ValueError("comes from the future")
        grant = Grant(
            skill=skill,
            skill_digest=digest,
            skill_run=_text(claims["run"]),
            tier=tier,
            methods=frozenset(map(_text, claims["scp"])),
            fence=int(claims["fence"]),
            jti=_text(claims["jti"]),
            expires_at=dt.datetime.fromtimestamp(expires_at, dt.UTC),
            audience=_text(claims["aud"]),
            thumbprint=_text(claims["cnf"]["x5t#S256"]),
            approval=_text(claims.get("apr", "")),
            arguments_digest=_text(claims.get("arg", "")),
            on_purpose=claims.get("onp", False) is True,
            initiator=_text(claims["ini"]),
        )
        if not (grant.jti and grant.skill and grant.skill_run and grant.thumbprint):
            raise ValueError("an empty claim")
        if tier > Tier.AUTO and not (grant.arguments_digest and grant.approval):
            raise ValueError("a bound tier without its bindings")
        return grant


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a claim that should be text is none")
    return value


class FenceGate:
    """Highest fence that this service has seen, in memory and durably. Safe to use from any thread.

    Background grants of a lower fence are refused. After a start everything in the background is refused until
    skills has told the fence in force (Stop or RenewLease). Grants of a person's own doing pass.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._highest = db.read_sync(read_fence)
        self._open = False

    @property
    def highest(self) -> int:
        """Highest fence seen, 0 before the first."""
        return self._highest

    @property
    def is_open(self) -> bool:
        """Whether skills has told the fence since the start."""
        return self._open

    def raise_in_memory(self, fence: int) -> bool:
        """Voids all background grants below the fence from now on, without waiting for a disk.

        Returns:
            Whether the fence is at least the highest seen; a lower one comes from a stale skills and changes
            nothing.
        """
        with self._lock:
            if fence < self._highest:
                return False
            self._highest = fence
            self._open = True
            return True

    async def raise_to(self, fence: int) -> bool:
        """As raise_in_memory, and durable when it returns. Raises the storage's typed errors."""
        known = self.raise_in_memory(fence)
        if known:
            await self._db.write(store_fence, fence, self._clock.now())
        return known

    def check(self, grant: Grant) -> None:
        """Raises Preempted for a background grant of a lower fence, or while the gate is closed."""
        if grant.on_purpose:
            return
        with self._lock:
            is_open, highest = self._open, self._highest
            if is_open and grant.fence > highest:
                # Signed by skills, so that fence is in force already; the news has not come here yet.
                self._highest = grant.fence
        if not is_open:
            raise Preempted(
                "This service has just started and waits for skills to tell the fence in force.",
                metadata={"fence": str(grant.fence)},
                retry_after_s=1.0,
            )
        if grant.fence < highest:
            raise Preempted(
                "Background work of this fence was stopped for a user.",
                metadata={"fence": str(grant.fence), "highest": str(highest)},
            )


def read_fence(connection: sa.Connection) -> int:
    """Highest fence in the store, 0 if none."""
    table = KIT.fence
    found = connection.execute(sa.select(table.c.fence).where(table.c.name == _FENCE_NAME))
    return found.scalar_one_or_none() or 0


def store_fence(connection: sa.Connection, fence: int, now: dt.datetime) -> None:
    """Raises the stored fence; a lower one changes nothing."""
    table = KIT.fence
    found = connection.execute(
        sa.select(table.c.fence).where(table.c.name == _FENCE_NAME)
    ).scalar_one_or_none()
    if found is None:
        connection.execute(table.insert().values(name=_FENCE_NAME, fence=fence, at=now))
    elif fence > found:
        connection.execute(table.update().where(table.c.name == _FENCE_NAME).values(fence=fence, at=now))


@dataclass(frozen=True, slots=True)
class Effect:
    """One acting call's right to its effect, used inside the transaction of that effect.

    `begin` first, `finish` last, both on the transaction's connection: either everything of the call is
    committed (change, audit event, redeemed grant, answer) or nothing.
    """

    grant: Grant
    method: str
    arguments_digest: str
    single_use: bool
    actor: str
    now: Callable[[], dt.datetime]
    gate: FenceGate | None = field(default=None, compare=False)

    @classmethod
    def for_tests(
        cls,
        *,
        skill: str = "skills/test",
        skill_run: str = "skillRuns/test",
        tier: Tier = Tier.MANUAL,
        method: str = "nightshift.test.v1.TestService/Act",
        fence: int = 0,
        jti: str = "",
        arguments_digest: str = "0" * 64,
        single_use: bool = True,
        on_purpose: bool = True,
        initiator: str = "person/admin/tester",
        gate: FenceGate | None = None,
    ) -> Self:
        """An effect without a call, for tests of a core."""
        grant = Grant(
            skill=skill,
            skill_digest="test",
            skill_run=skill_run,
            tier=tier,
            methods=frozenset({method}),
            fence=fence,
            jti=jti or new_id(),
            expires_at=dt.datetime.max.replace(tzinfo=dt.UTC),
            audience="test",
            thumbprint="test",
            approval="approvals/test",
            arguments_digest=arguments_digest,
            on_purpose=on_purpose,
            initiator=initiator,
        )
        return cls(
            grant, method, arguments_digest, single_use, initiator, lambda: dt.datetime.now(dt.UTC), gate
        )

    def begin(self, connection: sa.Connection) -> bytes | None:
        """Checks the fence again, and whether the grant was redeemed already.

        Returns:
            None when the effect may take place; the stored answer where this very call has taken place already.

        Raises:
            Preempted: a user has come since the call began.
            GrantReplayed: the grant was used for another method or other arguments.
        """
        self._check_fence(connection)
        if not self.single_use:
            return None
        table = KIT.redeemed
        row = connection.execute(
            sa.select(table.c.arguments_digest, table.c.answer).where(table.c.jti == self.grant.jti)
        ).one_or_none()
        if row is None:
            return None
        if row.arguments_digest != self._call_digest:
            raise GrantReplayed(
                "The grant was used already, for something else.", metadata={"jti": self.grant.jti}
            )
        return bytes(row.answer)

    def finish(self, connection: sa.Connection, answer: bytes) -> None:
        """Redeems the grant and stores the answer (serialised) for an identical retry.

        Raises:
            EffectUnfinished: another process is doing the same; this transaction must not commit.
        """
        if not self.single_use:
            return
        try:
            connection.execute(
                KIT.redeemed.insert().values(
                    jti=self.grant.jti, arguments_digest=self._call_digest, answer=answer, at=self.now()
                )
            )
        except sa.exc.IntegrityError as error:
            raise EffectUnfinished(
                "The same call has just been done elsewhere; ask again for its answer.",
                metadata={"jti": self.grant.jti},
                retry_after_s=0.5,
            ) from error

    @property
    def _call_digest(self) -> str:
        # A grant may name several methods, so the arguments alone do not say which call it was.
        return f"{self.method} {self.arguments_digest}"

    def _check_fence(self, connection: sa.Connection) -> None:
        if self.gate is not None:
            self.gate.check(self.grant)
        if not self.grant.on_purpose and self.grant.fence < (stored := read_fence(connection)):
            raise Preempted(
                "Background work of this fence was stopped for a user.",
                metadata={"fence": str(self.grant.fence), "highest": str(stored)},
            )

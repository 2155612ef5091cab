"""The token: what it says, how it is signed, how it is checked."""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nightshift_kit.clock import Clock
from nightshift_kit.errors import (
    GrantArgs,
    GrantExpired,
    GrantInvalid,
    GrantMissing,
    GrantScope,
    GrantSubject,
    TierInsufficient,
)
from nightshift_kit.ids import new_id

METADATA_KEY: Final = "nightshift-grant"
# Resource names of plug-in skills begin so, and no others: skills names them.
PLUGIN_PREFIX: Final = "skills/plugin_"
ISSUER: Final = "spiffe://nightshift.local/service/skills"

_TYPE: Final = "grant+jwt"
_ALGORITHM: Final = "EdDSA"
_REQUIRED: Final = ("iss", "aud", "sub", "jti", "iat", "exp", "scp", "tier", "fence", "run", "cnf", "ini")
# Clocks of two services on two hosts may differ that much.
_SKEW_S: Final = 5.0


class Tier(IntEnum):
    """How much permission something needs (nightshift.type.v1.Tier)."""

    AUTO = 1
    CONFIRM = 2
    MANUAL = 3

    @property
    def lifetime_s(self) -> float:
        """How long a grant of this tier may be used to begin a call."""
        return 60.0 if self is Tier.AUTO else 30.0


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
        """A token, valid from now on for the tier's lifetime.

        The arguments are as in Grant. Give the same `jti` again to repeat a call whose answer was lost; ""
        makes a new one.

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
        self,
        token: str | None,
        *,
        method: str,
        tier: Tier,
        skills: frozenset[str],
        thumbprint: str,
        plugins: bool = False,
    ) -> Grant:
        """Checks a token against the method that is called and the certificate that calls.

        Args:
            token: From the metadata, None where there was none.
            method: Full name of the method.
            tier: Lowest tier that the method asks for.
            skills: Resource names of the skills that may reach it.
            thumbprint: Of the caller's certificate.
            plugins: Whether plug-in skills may reach it too.

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
        if grant.skill not in skills and not (plugins and grant.skill.startswith(PLUGIN_PREFIX)):
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
        # Sums of doubles are off by fractions of a microsecond.
        if not 0 < expires_at - issued_at <= tier.lifetime_s + 1e-3:
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

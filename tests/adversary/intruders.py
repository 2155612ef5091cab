"""What an attacker of the plane may have: foreign and odd certificates, forged and stolen grants."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from nightshift_kit.canonical import digest_message
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import GrantMinter, Tier
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.rpc.identity import Identity
from nightshift_kit.rpc.policies import MethodRule
from nightshift_kit.rpc.tls import Credential, load_private_key
from nightshift_kit.settings import PlaneSettings

Claims = dict[str, Any]


async def refusal(awaitable: Any) -> RichError:
    """What a call is refused with; OK with reason "" where it is not refused."""
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return decode_error(error)
    return RichError(grpc.StatusCode.OK, "", "", {}, (), None)


def send(channel: grpc.aio.Channel, rule: MethodRule, data: bytes = b"", **options: Any) -> Any:
    """One call of any method with raw bytes; the first answer of a stream counts."""
    options.setdefault("timeout", 30)
    if rule.client_streaming:

        async def requests() -> Any:
            yield data

        call: Any = channel.stream_unary(rule.path)
        return call(requests(), **options)
    if rule.server_streaming:

        async def first() -> Any:
            stream: Any = channel.unary_stream(rule.path)
            answers = stream(data, **options)
            try:
                async for answer in answers:
                    return answer
            finally:
                answers.cancel()
            return None

        return first()
    unary: Any = channel.unary_unary(rule.path)
    return unary(data, **options)


def odd_certificate(home: Path, uris: list[str]) -> Credential:
    """A certificate that the plane's own CA signed, with these URIs among its names."""
    authority_key = load_pem_private_key((home / "ca" / "ca.key").read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    ca_pem = (home / "ca" / "ca.pem").read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.UniformResourceIdentifier(uri) for uri in uris]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service/skills")]))
        .issuer_name(x509.load_pem_x509_certificate(ca_pem).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Credential(
        Identity("person", "nobody", "viewer"),
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ca_pem,
    )


@dataclass(frozen=True)
class Forger:
    """Makes grants for one method of one service.

    Attributes:
        settings: Names the home whose keys it has stolen.
        fence: In force.
    """

    settings: PlaneSettings
    rule: MethodRule
    thumbprint: str
    fence: int = 0

    @property
    def audience(self) -> str:
        return self.rule.name.split(".")[1]

    def fitting(self, request: Message, **claims: Any) -> str:
        """As skills would mint it, but for the named claims of GrantMinter.mint."""
        assert self.rule.tier is not None
        chosen: Claims = {
            "skill": sorted(self.rule.skills)[0],
            "skill_digest": "adversary",
            "skill_run": "skillRuns/adversary",
            "tier": self.rule.tier,
            "methods": [self.rule.name],
            "fence": self.fence,
            "audience": self.audience,
            "thumbprint": self.thumbprint,
            "initiator": "person/admin/adversary",
            "on_purpose": True,
        } | claims
        if chosen["tier"] > Tier.AUTO:
            chosen = {"approval": "approvals/a", "arguments_digest": digest_message(request)} | chosen
        return self._minter().mint(**chosen)

    def changed(self, request: Message, *, typ: str = "grant+jwt", **claims: Any) -> str:
        """Signed with the true key; claims as in the token, None leaves one out."""
        merged = {k: v for k, v in (self.claims(request) | claims).items() if v is not None}
        key = load_private_key(self.settings, "grant")
        return jwt.encode(merged, key, "EdDSA", headers={"typ": typ})

    def claims(self, request: Message) -> Claims:
        found: Claims = jwt.decode(self.fitting(request), options={"verify_signature": False})
        return found

    def other_key(self, request: Message) -> str:
        key = Ed25519PrivateKey.generate()
        return jwt.encode(self.claims(request), key, "EdDSA", headers={"typ": "grant+jwt"})

    def unsigned(self, request: Message, algorithm: str = "none") -> str:
        return f"{_segment({'alg': algorithm, 'typ': 'grant+jwt'})}.{_segment(self.claims(request))}."

    def symmetric(self, request: Message, algorithm: str = "HS256") -> str:
        """The old confusion: the public key's file as the secret of an HMAC."""
        secret = (self.settings.home / "keys" / "grant.pub").read_bytes()
        head = f"{_segment({'alg': algorithm, 'typ': 'grant+jwt'})}.{_segment(self.claims(request))}"
        return f"{head}.{_encoded(hmac.new(secret, head.encode(), hashlib.sha256).digest())}"

    def own_key_in_header(self, request: Message) -> str:
        """Signed with a key that the token itself brings along."""
        key = Ed25519PrivateKey.generate()
        brought = {"kty": "OKP", "crv": "Ed25519", "x": _encoded(key.public_key().public_bytes_raw())}
        headers = {
            "typ": "grant+jwt",
            "jwk": brought,
            "kid": "../../../../dev/null",
            "jku": "http://127.0.0.1",
        }
        return jwt.encode(self.claims(request), key, "EdDSA", headers=headers)

    def _minter(self) -> GrantMinter:
        return GrantMinter(load_private_key(self.settings, "grant"), SystemClock())


@dataclass(frozen=True)
class Attack:
    """One way to call an acting method without the right to."""

    reason: str
    token: Callable[[Forger, Message], str | None]
    identity: str = "service/skills"
    timeout_s: float | None = 10
    # Only methods of a tier above AUTO bind their arguments.
    bound_only: bool = False
    # Only methods of a tier above AUTO can be called with too low a one.
    lower: Tier | None = None


def attacks() -> Iterator[tuple[str, Attack]]:
    """Every attack on a grant, by name."""
    yield "no grant", Attack("GRANT_MISSING", lambda f, r: None)
    yield "no grant, an admin", Attack("GRANT_MISSING", lambda f, r: None, "admin")
    yield "no grant, a platform", Attack("GRANT_MISSING", lambda f, r: None, "platform/default")
    yield "no grant, no deadline", Attack("GRANT_MISSING", lambda f, r: None, timeout_s=None)
    yield "empty grant", Attack("GRANT_MISSING", lambda f, r: "")
    yield "nonsense", Attack("GRANT_INVALID", lambda f, r: "eyJ.a.b")
    yield (
        "expired",
        Attack("GRANT_EXPIRED", lambda f, r: f.changed(r, iat=time.time() - 40, exp=time.time() - 10)),
    )
    yield (
        "expired a moment ago",
        Attack("GRANT_EXPIRED", lambda f, r: f.changed(r, iat=time.time() - 20, exp=time.time() - 0.01)),
    )
    yield (
        "from the future",
        Attack("GRANT_INVALID", lambda f, r: f.changed(r, iat=time.time() + 3600, exp=time.time() + 3610)),
    )
    yield "lives too long", Attack("GRANT_INVALID", lambda f, r: f.changed(r, exp=time.time() + 86400))
    yield "bad signature", Attack("GRANT_INVALID", lambda f, r: f.other_key(r))
    yield "cut signature", Attack("GRANT_INVALID", lambda f, r: f.fitting(r)[:-3])
    yield "alg none", Attack("GRANT_INVALID", lambda f, r: f.unsigned(r))
    yield "alg None in other letters", Attack("GRANT_INVALID", lambda f, r: f.unsigned(r, "nOnE"))
    yield "HS256 with the public key", Attack("GRANT_INVALID", lambda f, r: f.symmetric(r))
    yield "EdDSA said, HS256 done", Attack("GRANT_INVALID", lambda f, r: f.symmetric(r, "EdDSA"))
    yield "key in the header", Attack("GRANT_INVALID", lambda f, r: f.own_key_in_header(r))
    yield "wrong typ", Attack("GRANT_INVALID", lambda f, r: f.changed(r, typ="JWT"))
    yield (
        "wrong issuer",
        Attack("GRANT_INVALID", lambda f, r: f.changed(r, iss="spiffe://nightshift.local/service/lab")),
    )
    for claim in ("exp", "iat", "jti", "sub", "aud", "scp", "tier", "fence", "run", "cnf", "ini", "iss"):
        yield f"without {claim}", Attack("GRANT_INVALID", _without(claim))
    yield "wrong audience", Attack("GRANT_SCOPE", lambda f, r: f.fitting(r, audience="monitor"))
    yield "audience is a list", Attack("GRANT_INVALID", lambda f, r: f.changed(r, aud=[f.audience]))
    yield (
        "other method",
        Attack("GRANT_SCOPE", lambda f, r: f.fitting(r, methods=["nightshift.lab.v1.LabService/GetConfig"])),
    )
    yield (
        "method in other letters",
        Attack("GRANT_SCOPE", lambda f, r: f.fitting(r, methods=[f.rule.name.upper(), f.rule.path, "*"])),
    )
    yield "methods are one text", Attack("GRANT_SCOPE", lambda f, r: f.changed(r, scp=f.rule.name))
    yield "unknown skill", Attack("GRANT_SUBJECT", lambda f, r: f.fitting(r, skill="skills/none"))
    yield "stolen by an admin", Attack("GRANT_SUBJECT", lambda f, r: f.fitting(r), "admin")
    yield "stolen by a service", Attack("GRANT_SUBJECT", lambda f, r: f.fitting(r), "service/monitor")
    yield "other caller's thumbprint", Attack("GRANT_SUBJECT", lambda f, r: f.fitting(r, thumbprint="A" * 43))
    yield "old fence", Attack("PREEMPTED", lambda f, r: f.fitting(r, fence=0, on_purpose=False))
    yield "negative fence", Attack("PREEMPTED", lambda f, r: f.fitting(r, fence=-1, on_purpose=False))
    yield "purpose that is no boolean", Attack("PREEMPTED", lambda f, r: f.changed(r, onp="true", fence=0))
    yield "no deadline", Attack("DEADLINE_REQUIRED", lambda f, r: f.fitting(r), timeout_s=None)
    yield (
        "other arguments",
        Attack("GRANT_ARGS", lambda f, r: f.fitting(r, arguments_digest="0" * 64), bound_only=True),
    )
    yield "bound to nothing", Attack("GRANT_INVALID", lambda f, r: f.changed(r, arg=None), bound_only=True)
    yield "approved by nothing", Attack("GRANT_INVALID", lambda f, r: f.changed(r, apr=None), bound_only=True)
    for tier in (Tier.AUTO, Tier.CONFIRM):
        yield (
            f"lower tier {tier.name}",
            Attack("TIER_INSUFFICIENT", _of_tier(tier), lower=tier),
        )
    yield "unknown tier", Attack("GRANT_INVALID", lambda f, r: f.changed(r, tier="ROOT"))


def _without(claim: str) -> Callable[[Forger, Message], str]:
    absent: Claims = {claim: None}
    return lambda forger, request: forger.changed(request, **absent)


def _of_tier(tier: Tier) -> Callable[[Forger, Message], str]:
    return lambda forger, request: forger.fitting(request, tier=tier)


def with_unknown_field(request: Message) -> bytes:
    """The request's bytes with a field that no contract has: it would act unseen by a digest."""
    return request.SerializeToString() + b"\xfa\x7f\x01x"


def _segment(value: Claims) -> str:
    return _encoded(json.dumps(value).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

"""Who calls: SPIFFE ids in certificates, roles, and the patterns by which a method names its callers."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

TRUST_DOMAIN: Final = "nightshift.local"
ROLES: Final = ("viewer", "approver", "admin")

Kind = Literal["service", "platform", "person"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATTERN = re.compile(
    rf"any|platform|service(:{_NAME.pattern})?|person:(viewer|approver|admin)",
)


class SpiffeInvalid(ValueError):
    """A SPIFFE id that is none of ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.

    Attributes:
        kind: "service", "platform" or "person".
        name: Letters, digits, dot, dash and underscore, at most 64.
        role: "viewer", "approver" or "admin" for a person, "" for the others.
        thumbprint: SHA-256 of the certificate in base64url without padding (RFC 8705, x5t#S256);
            "" for a caller without a certificate.
        token: UUID of the local token that it came with, "" for none.
        vouched_by: The person who issued that token, by name; "" without one.
    """

    kind: Kind
    name: str
    role: str = ""
    thumbprint: str = ""
    token: str = ""
    vouched_by: str = ""

    @property
    def spiffe(self) -> str:
        """The SPIFFE id, as it stands in the certificate."""
        return format_spiffe(self.kind, self.name, self.role)

    @property
    def actor(self) -> str:
        """Short form for audit events and logs ("person/admin/1000", "service/skills")."""
        return self.spiffe.removeprefix(f"spiffe://{TRUST_DOMAIN}/")


INSECURE_VIEWER: Final = Identity("person", "insecure-loopback", "viewer")


def format_spiffe(kind: str, name: str, role: str = "") -> str:
    """SPIFFE id of a caller. Raises SpiffeInvalid for what parse_spiffe would refuse."""
    path = f"{kind}/{role}/{name}" if kind == "person" else f"{kind}/{name}"
    spiffe = f"spiffe://{TRUST_DOMAIN}/{path}"
    parse_spiffe(spiffe)
    return spiffe


def parse_spiffe(spiffe: str, thumbprint: str = "") -> Identity:
    """Identity of a SPIFFE id. Raises SpiffeInvalid."""
    prefix = f"spiffe://{TRUST_DOMAIN}/"
    parts = spiffe.removeprefix(prefix).split("/")
    if not spiffe.startswith(prefix) or not _NAME.fullmatch(parts[-1]):
        raise SpiffeInvalid(f"not a SPIFFE id of {TRUST_DOMAIN}: {spiffe[:200]!r}")
    match parts:
        case [("service" | "platform") as kind, name]:
            return Identity(cast("Kind", kind), name, "", thumbprint)
        case ["person", role, name] if role in ROLES:
            return Identity("person", name, role, thumbprint)
        case _:
            raise SpiffeInvalid(f"unknown kind of identity: {spiffe[:200]!r}")


def thumbprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form in base64url without padding."""
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


# A connection presents the same certificate with each of its calls.
@functools.lru_cache(maxsize=512)
def identity_of_certificate(pem: bytes) -> Identity:
    """Identity in a PEM certificate that TLS has verified already.

    Raises:
        SpiffeInvalid: there is not exactly one URI among its names, or it is none of ours.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise SpiffeInvalid("the certificate carries no SPIFFE id") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise SpiffeInvalid(f"the certificate carries {len(uris)} URIs instead of one SPIFFE id")
    return parse_spiffe(uris[0], thumbprint_of(certificate))


@functools.lru_cache(maxsize=512)
def _not_after(pem: bytes) -> dt.datetime:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def identity_of_peer(
    auth_context: Mapping[str, Iterable[bytes]], *, insecure_allowed: bool, now: dt.datetime | None = None
) -> Identity | None:
    """Identity of a gRPC peer, None where it has none.

    Args:
        auth_context: Of the call.
        insecure_allowed: Whether a peer without a certificate is a viewer.
        now: TLS looks at a certificate's end at the handshake alone, and a connection may live for ever;
            given the time, it is looked at with each call.

    Raises:
        SpiffeInvalid: a certificate without a SPIFFE id of ours, or one that has run out.
    """
    for pem in auth_context.get("x509_pem_cert", ()):
        identity = identity_of_certificate(pem)
        if now is not None and now >= _not_after(pem):
            raise SpiffeInvalid("it has run out; connect again with a new one")
        return identity
    return INSECURE_VIEWER if insecure_allowed else None


def is_pattern(pattern: str) -> bool:
    """Whether a method may name its callers so."""
    return _PATTERN.fullmatch(pattern) is not None


def allows(callers: Sequence[str], identity: Identity) -> bool:
    """Whether one of the patterns covers the caller. No pattern at all means anybody known."""
    return not callers or any(_covers(pattern, identity) for pattern in callers)


def lacks_role_only(callers: Sequence[str], identity: Identity) -> bool:
    """Whether a person would be let in with a higher role."""
    return identity.kind == "person" and any(pattern.startswith("person:") for pattern in callers)


def _covers(pattern: str, identity: Identity) -> bool:
    if pattern == "any":
        return True
    kind, _, rest = pattern.partition(":")
    if kind != identity.kind:
        return False
    if kind == "person":
        return ROLES.index(identity.role) >= ROLES.index(rest)
    return not rest or rest == identity.name

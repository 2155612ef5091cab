"""Who a caller is that shows a local token: never more than its certificate or its connection allows.

- TLS without a certificate: the token's person, in the token's role.
- With a certificate of that person: that person, in the lower one of the two roles.
- With any other certificate: nobody (TOKEN_SUBJECT); a service or the platform is never a person.
- Without TLS on this machine (insecure_loopback): the token's person, as a viewer.
- Without TLS from elsewhere: nobody (TOKEN_PLAINTEXT).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from nightshift_kit.clock import Clock
from nightshift_kit.errors import Code, NightshiftError, TokenInvalid, TokenPlaintext, TokenSubject
from nightshift_kit.rpc.identity import ROLES, Identity
from nightshift_kit.rpc.passage import Passage
from nightshift_kit.rpc.tls import load_public_key
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.tokens import RefusedUses, TokenRegister, TokenVerifier, plane_id
from nightshift_kit.tokens.register import REGISTER

_REFUSALS = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})


class TokenDoor:
    """Where tokens are looked at, on all servers of a process.

    Args:
        verifier: Of the service.
        refused: Takes what was refused into the audit; None where a server has no outbox.
    """

    def __init__(self, verifier: TokenVerifier, refused: RefusedUses | None = None) -> None:
        self._verifier = verifier
        self._refused = refused

    @classmethod
    def of(cls, settings: PlaneSettings, clock: Clock, refused: RefusedUses | None = None) -> TokenDoor:
        """The door of a home."""
        plane = plane_id((settings.home / "ca" / "ca.pem").read_bytes())
        register = TokenRegister(settings.home / REGISTER, plane, load_public_key(settings, "token"))
        return cls(TokenVerifier(register, plane, clock), refused)

    def admit(
        self,
        tokens: Sequence[str],
        identity: Identity | None,
        *,
        auth_context: Mapping[str, Iterable[bytes]],
        peer: str,
    ) -> Identity:
        """Who calls.

        Args:
            tokens: As they came in the metadata; at least one.
            identity: Who it is without them.
            auth_context: Of the connection.
            peer: Its other end as gRPC names it ("ipv4:127.0.0.1:4711").

        Raises:
            TokenInvalid, TokenForeign, TokenUnknown, TokenExpired, TokenRevoked, TokenUnverifiable,
            TokenSubject, TokenPlaintext.
        """
        encrypted = b"ssl" in auth_context.get("transport_security_type", ())
        if not encrypted and (identity is None or not is_loopback(peer)):
            # Said before the token is looked at: whether it was good matters no more.
            raise TokenPlaintext(
                "The token came over a network without encryption: revoke it, and take the TLS port."
            )
        if len(tokens) != 1:
            raise TokenInvalid(f"{len(tokens)} tokens came; one call takes one.")
        entry = self._verifier.verify(tokens[0])
        role = entry.role
        if identity is not None:
            if encrypted and (identity.kind, identity.name) != ("person", entry.person):
                raise TokenSubject(
                    f"The token was issued for {entry.person}, the certificate is that of {identity.actor}.",
                    metadata={"token": f"tokens/{entry.id}", "person": entry.person},
                )
            role = min(role, identity.role, key=ROLES.index)
        thumbprint = "" if identity is None else identity.thumbprint
        return Identity("person", entry.person, role, thumbprint, entry.id, entry.issuer)

    def check(self, identity: Identity) -> None:
        """Whether a call that began well may go on; nothing to do for callers without a token.

        Raises:
            TokenUnknown, TokenExpired, TokenRevoked, TokenUnverifiable.
        """
        if identity.token:
            self._verifier.check(identity.token)

    def note(self, passage: Passage, error: NightshiftError) -> None:
        """Takes a refusal of a call that came with a token into the audit."""
        if self._refused is None or not passage.tokens or error.code not in _REFUSALS:
            return
        token, actor = error.metadata.get("token", ""), ""
        if passage.identity is not None:
            token = f"tokens/{passage.identity.token}" if passage.identity.token else token
            actor = passage.identity.spiffe
        elif person := error.metadata.get("person", ""):
            actor = f"person/{person}"
        self._refused.note(token=token, actor=actor, reason=error.reason, method=passage.rule.name)


def is_loopback(peer: str) -> bool:
    """Whether a gRPC peer is on this machine."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return True
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""A token's text: what its holder keeps, and the digest that everybody else keeps of it."""

from __future__ import annotations

import hashlib
import re
import secrets
import ssl
import uuid
from dataclasses import dataclass
from typing import Final

from nightshift_kit.errors import TokenInvalid

# The value of this key is a secret: nothing may print a call's metadata.
METADATA_KEY: Final = "nightshift-token"

# Only lower-case hex between fixed marks: each token has one spelling, and a cut one never parses.
_FORM: Final = re.compile(r"nst1_([0-9a-f]{16})_([0-9a-f]{32})_([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class LocalToken:
    """One token with its secret. Its text is told once, to whoever issues it.

    Attributes:
        plane: Which plane made it, see `plane_id`.
        id: UUID, the last part of "tokens/{token}".
        secret: 256 random bits, hex.
    """

    plane: str
    id: str
    secret: str

    @classmethod
    def new(cls, plane: str, token_id: str) -> LocalToken:
        """A token with a fresh secret."""
        return cls(plane, token_id, secrets.token_hex(32))

    @classmethod
    def parse(cls, text: str) -> LocalToken:
        """Reads a token's text. Raises TokenInvalid, which does not repeat it."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise TokenInvalid("That is no token of a plane: it is cut, or altered.")
        return cls(found[1], str(uuid.UUID(hex=found[2])), found[3])

    @property
    def text(self) -> str:
        """The whole token, secret included."""
        return f"nst1_{self.plane}_{self.id.replace('-', '')}_{self.secret}"

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hex. The secret has 256 bits of its own: nothing slower would add to it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"LocalToken({self.id})"


def plane_id(ca_pem: bytes) -> str:
    """What tells planes apart in tokens: the beginning of the SHA-256 of the CA's certificate, hex."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem.decode("ascii"))).hexdigest()[:16]

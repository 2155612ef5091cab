"""A local token as skills keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from nightshift_kit.tokens import TokenEntry
from nightshift_skills.approvals import person_of


class TokenState(StrEnum):
    """State of a token; the names of the contract's enum without its prefix."""

    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as it is kept: without its secret. `issuer` and `revoker` are SPIFFE ids."""

    id: str
    digest: str
    person: str
    role: str
    display_name: str
    issuer: str
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None = None
    revoker: str = ""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"tokens/{self.id}"

    def state(self, now: datetime) -> TokenState:
        """At an instant."""
        if self.revoke_time is not None:
            return TokenState.REVOKED
        return TokenState.ACTIVE if now < self.expire_time else TokenState.EXPIRED

    def entry(self) -> TokenEntry:
        """What the services must know of it."""
        return TokenEntry(
            self.id,
            self.digest,
            self.person,
            self.role,
            person_of(self.issuer),
            self.expire_time,
            self.revoke_time,
        )

"""Whether a token is good at this moment."""

from __future__ import annotations

import hmac
from typing import Final

from nightshift_kit.clock import Clock
from nightshift_kit.errors import TokenExpired, TokenForeign, TokenRevoked, TokenUnknown
from nightshift_kit.tokens.register import TokenEntry, TokenRegister
from nightshift_kit.tokens.secret import LocalToken

_NOBODYS: Final = "0" * 64


class TokenVerifier:
    """Checks tokens for one service. Safe to use from several threads."""

    def __init__(self, register: TokenRegister, plane: str, clock: Clock) -> None:
        self._register = register
        self._plane = plane
        self._clock = clock

    def verify(self, text: str) -> TokenEntry:
        """What a token's text entitles to.

        That a token has expired or was revoked is told to its holder alone; whoever guesses ids learns that
        there is no such token.

        Raises:
            TokenInvalid, TokenForeign, TokenUnknown, TokenExpired, TokenRevoked, TokenUnverifiable.
        """
        token = LocalToken.parse(text)
        if token.plane != self._plane:
            raise TokenForeign("The token is another plane's.")
        entry = self._register.find(token.id)
        fits = hmac.compare_digest(token.digest, _NOBODYS if entry is None else entry.digest)
        if entry is None or not fits:
            raise TokenUnknown("There is no such token.")
        return self._good(entry)

    def check(self, token_id: str) -> TokenEntry:
        """A token that was good when its call began, once more.

        Raises:
            TokenUnknown, TokenExpired, TokenRevoked, TokenUnverifiable.
        """
        entry = self._register.find(token_id)
        if entry is None:
            raise TokenUnknown("There is no such token any more.")
        return self._good(entry)

    def _good(self, entry: TokenEntry) -> TokenEntry:
        metadata = {"token": f"tokens/{entry.id}", "person": entry.person}
        if entry.revoke_time is not None:
            raise TokenRevoked(
                f"The token was revoked at {entry.revoke_time:%Y-%m-%d %H:%M} UTC.", metadata=metadata
            )
        if self._clock.now() >= entry.expire_time:
            raise TokenExpired(
                f"The token expired at {entry.expire_time:%Y-%m-%d %H:%M} UTC; an admin issues another.",
                metadata=metadata,
            )
        return entry

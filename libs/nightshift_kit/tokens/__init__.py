"""Local tokens: who a person on this machine is, where no certificate says it.

skills issues and revokes them; every service checks them by itself with the register that skills writes.
"""

from nightshift_kit.tokens.refusals import RefusedUses
from nightshift_kit.tokens.register import RegisterWriter, TokenEntry, TokenRegister
from nightshift_kit.tokens.secret import METADATA_KEY, LocalToken, plane_id
from nightshift_kit.tokens.verifier import TokenVerifier

__all__ = [
    "METADATA_KEY",
    "LocalToken",
    "RefusedUses",
    "RegisterWriter",
    "TokenEntry",
    "TokenRegister",
    "TokenVerifier",
    "plane_id",
]

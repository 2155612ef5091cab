"""Grants: the signed right of one skill run to call named methods, and what makes it count once.

    skills                              acting service
    GrantMinter.mint(…) ── metadata ──▶ GrantVerifier.verify(…)    signature, time, scope, caller, skill, tier
                                        FenceGate.check(grant)     no background work under an old fence
                                        Effect.begin(connection)   fence again, single use, stored answer
                                        … the change …
                                        Effect.finish(connection, answer)

A grant is an EdDSA JWT (`typ` grant+jwt) in the metadata key `nightshift-grant`. AUTO grants hold for 60 s
and many calls; CONFIRM and MANUAL grants must begin their one call within 30 s and are bound to its
arguments.
"""

from nightshift_kit.grants.effects import Effect, EffectUnfinished, FenceGate, read_fence, store_fence
from nightshift_kit.grants.tokens import ISSUER, METADATA_KEY, Grant, GrantMinter, GrantVerifier, Tier

__all__ = [
    "ISSUER",
    "METADATA_KEY",
    "Effect",
    "EffectUnfinished",
    "FenceGate",
    "Grant",
    "GrantMinter",
    "GrantVerifier",
    "Tier",
    "read_fence",
    "store_fence",
]

"""What only the transport can find wrong; the rest stands in `nightshift_kit.errors`.

CallerNotAllowed (PERMISSION_DENIED)
└── RoleInsufficient    a person of a higher role might
IdentityMissing (UNAUTHENTICATED)
└── IdentityInvalid     a certificate of our CA that carries no identity of ours
DeadlinePassed          the call took longer than its deadline
MethodUnimplemented     the servicer lacks the method
NonFinite               NaN or an infinity in the arguments of an acting call
DependencyUnavailable   another service did not answer
"""

from __future__ import annotations

from nightshift_kit.errors import CallerNotAllowed, Code, FieldInvalid, IdentityMissing, NightshiftError


class RoleInsufficient(CallerNotAllowed):
    """The person's role is too low for this method."""

    reason = "ROLE_INSUFFICIENT"


class IdentityInvalid(IdentityMissing):
    """The certificate carries no identity of ours."""

    reason = "IDENTITY_INVALID"


class DeadlinePassed(NightshiftError):
    """The answer was not ready when the deadline came."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class MethodUnimplemented(NightshiftError):
    """The method stands in the contract, but this server does not have it."""

    code = Code.UNIMPLEMENTED
    reason = "METHOD_UNIMPLEMENTED"


class NonFinite(FieldInvalid):
    """NaN or an infinity where arguments must have one canonical form."""

    reason = "NON_FINITE"


class DependencyUnavailable(NightshiftError):
    """Another service that this call needs did not answer."""

    code = Code.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"
    default_retry_after_s = 1.0

"""Errors of the skills service.

NightshiftError
├── SkillUnknown, SkillRunUnknown, ApprovalUnknown, PreemptionUnknown    NOT_FOUND
├── StandingApprovalUnknown, LocalTokenUnknown                           NOT_FOUND
├── ParametersInvalid                                                    INVALID_ARGUMENT
├── PlanChanged, ApprovalDecided, ApprovalExpired                        FAILED_PRECONDITION
├── SkillModified, SkillRunEnded, SkillRunTransition, Cooldown           FAILED_PRECONDITION
├── BudgetExceeded, PlanOutOfBounds                                      FAILED_PRECONDITION
├── NotReady, PolicyChanged, NotArmed, AutonomyBySkill                   FAILED_PRECONDITION
├── StandingApprovalEnded, StandingScopeExceeded                         FAILED_PRECONDITION
├── SelfApproval, TierLoosened, AdminRequired, NotDelegable,
│   CertificateRequired                                                  PERMISSION_DENIED
├── PluginRefused, PluginFailed                                          FAILED_PRECONDITION
├── PluginKilled                                                         ABORTED
├── PluginViolation                                                      PERMISSION_DENIED
├── UserActive, Standby, LeadershipLost, TokensNotPublished              UNAVAILABLE
├── StoreInUse                                                           FAILED_PRECONDITION
├── ApprovalRate, TokenLimit                                             RESOURCE_EXHAUSTED
├── SeqGone                                                              OUT_OF_RANGE
└── Upstream                                                             as the asked service said
    └── PluginStopped                                                    UNAVAILABLE
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from nightshift_kit.errors import Code, FieldViolation, NightshiftError


class SkillUnknown(NightshiftError):
    """No such skill."""

    code = Code.NOT_FOUND
    reason = "SKILL_UNKNOWN"


class SkillRunUnknown(NightshiftError):
    """No such run."""

    code = Code.NOT_FOUND
    reason = "SKILL_RUN_UNKNOWN"


class ApprovalUnknown(NightshiftError):
    """No such approval."""

    code = Code.NOT_FOUND
    reason = "APPROVAL_UNKNOWN"


class StandingApprovalUnknown(NightshiftError):
    """No such standing approval."""

    code = Code.NOT_FOUND
    reason = "STANDING_APPROVAL_UNKNOWN"


class LocalTokenUnknown(NightshiftError):
    """No such local token, or it is not the caller's."""

    code = Code.NOT_FOUND
    reason = "LOCAL_TOKEN_UNKNOWN"


class CertificateRequired(NightshiftError):
    """A token issues no token: that takes the certificate of an admin."""

    code = Code.PERMISSION_DENIED
    reason = "CERTIFICATE_REQUIRED"


class TokenLimit(NightshiftError):
    """As many local tokens as there may be are good already."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TOKEN_LIMIT"


class TokensNotPublished(NightshiftError):
    """The change is stored, but not in the register that the services read; it is tried again."""

    code = Code.UNAVAILABLE
    reason = "TOKENS_NOT_PUBLISHED"
    default_retry_after_s = 1.0


class NotReady(NightshiftError):
    """A fact without which nothing is delegated is missing; metadata names each."""

    code = Code.FAILED_PRECONDITION
    reason = "NOT_READY"


class PolicyChanged(NightshiftError):
    """The policy is not the one that was shown."""

    code = Code.FAILED_PRECONDITION
    reason = "POLICY_CHANGED"


class NotArmed(NightshiftError):
    """No armed rollback is in force."""

    code = Code.FAILED_PRECONDITION
    reason = "NOT_ARMED"


class AutonomyBySkill(NightshiftError):
    """More autonomy is given through the skill set_autonomy alone."""

    code = Code.FAILED_PRECONDITION
    reason = "AUTONOMY_BY_SKILL"


class StandingApprovalEnded(NightshiftError):
    """The standing approval is not in force any more."""

    code = Code.FAILED_PRECONDITION
    reason = "STANDING_APPROVAL_ENDED"


class StandingScopeExceeded(NightshiftError):
    """The plan goes beyond what was approved in advance."""

    code = Code.FAILED_PRECONDITION
    reason = "STANDING_SCOPE"


class AdminRequired(NightshiftError):
    """The command takes an admin."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_INSUFFICIENT"


class NotDelegable(NightshiftError):
    """The skill always asks a person."""

    code = Code.PERMISSION_DENIED
    reason = "NOT_DELEGABLE"


class ParametersInvalid(NightshiftError):
    """The parameters do not fit the skill's schema."""

    code = Code.INVALID_ARGUMENT
    reason = "PARAMETERS_INVALID"


class PlanChanged(NightshiftError):
    """The plan is not the one that was shown or approved."""

    code = Code.FAILED_PRECONDITION
    reason = "PLAN_CHANGED"


class ApprovalDecided(NightshiftError):
    """Somebody decided already."""

    code = Code.FAILED_PRECONDITION
    reason = "APPROVAL_DECIDED"


class ApprovalExpired(NightshiftError):
    """Nobody decided in time."""

    code = Code.FAILED_PRECONDITION
    reason = "APPROVAL_EXPIRED"


class SkillModified(NightshiftError):
    """The skill's code is not the code that was there at the start."""

    code = Code.FAILED_PRECONDITION
    reason = "SKILL_MODIFIED"


class SkillRunEnded(NightshiftError):
    """The run has ended."""

    code = Code.FAILED_PRECONDITION
    reason = "SKILL_RUN_ENDED"


class SkillRunTransition(NightshiftError):
    """No way leads between the two states: somebody else was faster."""

    code = Code.FAILED_PRECONDITION
    reason = "SKILL_RUN_STATE"


class Cooldown(NightshiftError):
    """The skill rests on this subject."""

    code = Code.FAILED_PRECONDITION
    reason = "COOLDOWN"


class BudgetExceeded(NightshiftError):
    """The plan needs more than is left of today's budget."""

    code = Code.FAILED_PRECONDITION
    reason = "BUDGET_EXCEEDED"


class PlanOutOfBounds(NightshiftError):
    """A skill planned more than its declaration or its tier allows."""

    code = Code.FAILED_PRECONDITION
    reason = "PLAN_OUT_OF_BOUNDS"


class SelfApproval(NightshiftError):
    """Two persons are asked for."""

    code = Code.PERMISSION_DENIED
    reason = "SELF_APPROVAL"


class TierLoosened(NightshiftError):
    """A setting would give a skill more freedom than it was built with."""

    code = Code.PERMISSION_DENIED
    reason = "TIER_LOOSENED"


class PluginRefused(NightshiftError):
    """A plug-in is not run: not enabled, not pinned, no manifest, or this machine lacks a layer."""

    code = Code.FAILED_PRECONDITION
    reason = "PLUGIN_REFUSED"


class PluginFailed(NightshiftError):
    """The plug-in's own code raised."""

    code = Code.FAILED_PRECONDITION
    reason = "PLUGIN_FAILED"


class PluginKilled(NightshiftError):
    """The plug-in died or was killed before it answered."""

    code = Code.ABORTED
    reason = "PLUGIN_KILLED"


class PluginViolation(NightshiftError):
    """The plug-in tried what it must not."""

    code = Code.PERMISSION_DENIED
    reason = "PLUGIN_VIOLATION"


class UserActive(NightshiftError):
    """A user is here, or the machine is not idle yet."""

    code = Code.UNAVAILABLE
    reason = "USER_ACTIVE"


class Standby(NightshiftError):
    """This replica does not act: another one leads; metadata `leader_address` says where."""

    code = Code.UNAVAILABLE
    reason = "STANDBY"


class LeadershipLost(NightshiftError):
    """Another replica leads by now; the process ends, and stands by when it is started again."""

    code = Code.UNAVAILABLE
    reason = "LEADERSHIP_LOST"


class StoreInUse(NightshiftError):
    """Another process has the SQLite file."""

    code = Code.FAILED_PRECONDITION
    reason = "STORE_IN_USE"


class ApprovalRate(NightshiftError):
    """A skill has asked persons often enough for now."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "APPROVAL_RATE"


class SeqGone(NightshiftError):
    """Too far behind, or from another life of the store: read the state anew."""

    code = Code.OUT_OF_RANGE
    reason = "SEQ_GONE"


class Upstream(NightshiftError):
    """Another service refused or could not be reached; subclasses carry that service's code and reason."""

    @property
    def outcome_unknown(self) -> bool:
        """Whether the call may have had its effect unseen, or may succeed when tried again."""
        return self.code in _TRY_AGAIN_CODES or self.reason in _TRY_AGAIN_REASONS


class PluginStopped(Upstream):
    """STOP ended the plug-in; its run goes on after quiet like any other."""

    code = Code.UNAVAILABLE
    reason = "PREEMPTED"


_TRY_AGAIN_CODES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN})
# A service that was just started refuses with PREEMPTED until it has heard the fence.
_TRY_AGAIN_REASONS = frozenset({"PREEMPTED", "GRANT_EXPIRED", "OVERLOADED", "DB_BUSY"})


def upstream(
    message: str,
    *,
    code: Code,
    reason: str,
    metadata: Mapping[str, str] | None = None,
    violations: Sequence[FieldViolation] = (),
    retry_after_s: float | None = None,
) -> Upstream:
    """An error of another service, to be passed on as it is."""
    return _upstream_class(code, reason)(
        message, metadata=metadata, violations=violations, retry_after_s=retry_after_s
    )


@lru_cache(maxsize=512)
def _upstream_class(code_: Code, reason_: str) -> type[Upstream]:
    # Code and reason belong to a class in the kit; what others say is only known at run time.
    return type("Upstream", (Upstream,), {"code": code_, "reason": reason_})

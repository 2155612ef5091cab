"""Standing approvals: what a person lets a skill do in advance, and whether a plan lies within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from nightshift_kit.canonical import digest_json
from nightshift_skills.budgets import Budgets
from nightshift_skills.errors import StandingApprovalEnded, StandingScopeExceeded
from nightshift_skills.plans import Plan
from nightshift_skills.proposals import ApprovalRule
from nightshift_skills.registry import Registry
from nightshift_skills.skill import Limits
from nightshift_skills.standing_scope import Bound, Scope

__all__ = ["Bound", "Scope", "StandingApproval", "StandingState", "policy_digest"]


class StandingState(StrEnum):
    """State of a standing approval; the names of the contract's enum without its prefix."""

    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"
    SPENT = "SPENT"
    VOID = "VOID"


@dataclass(frozen=True, slots=True)
class StandingApproval:
    """A person's approval in advance. `promotion` names the promotion whose one rollback it arms."""

    id: str
    skill: str
    scope: Scope
    policy_digest: str
    approver: str
    create_time: datetime
    expire_time: datetime
    max_uses: int
    run: str
    promotion: str = ""
    state: StandingState = StandingState.ACTIVE
    use_count: int = 0
    end_time: datetime | None = None
    ended_by: str = ""
    end_detail: str = ""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"standingApprovals/{self.id}"

    def problem(self, policy_digest: str, now: datetime) -> str:
        """Why it is not in force; "" if it is."""
        if self.state is not StandingState.ACTIVE:
            return f"it is {self.state.value.lower()}"
        if now >= self.expire_time:
            return "it has expired"
        if self.policy_digest != policy_digest:
            return "the policy is not the one that it is bound to"
        return ""

    def used(self, plan: Plan, policy_digest: str, now: datetime) -> StandingApproval:
        """It after one more use.

        Raises:
            StandingApprovalEnded: it is not in force.
            StandingScopeExceeded: the plan goes beyond it.
        """
        if problem := self.problem(policy_digest, now):
            raise StandingApprovalEnded(f"{self.name} allows nothing any more: {problem}.")
        if plan.skill != f"skills/{self.skill}":
            raise StandingScopeExceeded(f"{self.name} is for another skill.")
        if problem := self.scope.problem(plan):
            raise StandingScopeExceeded(f"{self.name} does not cover the plan: {problem}.")
        used = replace(self, use_count=self.use_count + 1)
        if used.use_count >= self.max_uses:
            return used.ended(StandingState.SPENT, now, "service/skills", "Used as often as it may be.")
        return used

    def ended(self, state: StandingState, now: datetime, by: str, why: str) -> StandingApproval:
        """It after its end; itself if it has ended already."""
        if self.state is not StandingState.ACTIVE:
            return self
        return replace(self, state=state, end_time=now, ended_by=by, end_detail=why)

    def check_goes_on(self, now: datetime) -> None:
        """Whether a run that was begun under it may make its next call. Its last use may have spent it.

        Raises:
            StandingApprovalEnded: it was revoked, or is void or expired.
        """
        spent = self.state is StandingState.SPENT
        if self.state is not StandingState.ACTIVE and not spent:
            raise StandingApprovalEnded(f"{self.name} is {self.state.value.lower()}: {self.end_detail}")
        if now >= self.expire_time:
            raise StandingApprovalEnded(f"{self.name} has expired.")


def policy_digest(
    registry: Registry, limits: Limits, rule: ApprovalRule, budgets: Budgets, max_background_runs: int
) -> str:
    """SHA-256, hex, over all that a standing approval rests on.

    Tiers, cooldowns, methods and code of all skills, their thresholds and budgets, and how persons are asked.
    """
    return digest_json(
        {
            "skills": {
                skill.id: {
                    "tier": skill.tier.name,
                    "cooldown_s": float(skill.cooldown_s),
                    "digest": registry.digest(skill.id),
                }
                for skill in registry
            },
            "limits": _plain(asdict(limits)),
            "approvals": _plain(asdict(rule)),
            "budgets": budgets.described([skill.id for skill in registry]),
            "max_background_runs": max_background_runs,
        }
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in values.items()
    }

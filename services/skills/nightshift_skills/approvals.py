"""Approvals: a person's decision on one plan, bound to its digest and a single-use nonce."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from nightshift_skills.errors import ApprovalDecided, ApprovalExpired, PlanChanged, SelfApproval
from nightshift_skills.plans import Plan

_SAME = "Two persons are asked for: somebody else must approve this plan."
_ALONE = (
    "Two persons are asked for, and one issued the token of the other (or both tokens): somebody must "
    "approve who comes with a certificate, or with a token of another admin."
)


class ApprovalState(StrEnum):
    """State of an approval; the names of the contract's enum without its prefix."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Approval:
    """A decision on one plan, or the question for it.

    `proposer` is who or what made the plan, `proposer_vouched_by` who issued the token that it came with, ""
    for none.
    """

    id: str
    run: str
    skill: str
    subject: str
    state: ApprovalState
    plan: Plan
    nonce: str
    proposer: str
    create_time: datetime
    expire_time: datetime
    decide_time: datetime | None = None
    decider: str = ""
    comment: str = ""
    seq: int = 0
    proposer_vouched_by: str = ""

    def expired(self, now: datetime) -> bool:
        """Whether nobody decided in time."""
        return self.state is ApprovalState.PENDING and now >= self.expire_time

    def decided(
        self,
        *,
        approve: bool,
        plan_digest: str,
        nonce: str,
        decider: str,
        comment: str,
        two_person: bool,
        now: datetime,
        vouched_by: str = "",
    ) -> Approval:
        """The approval after a decision; itself if the same actor decided the same before.

        `vouched_by` is who issued the token that the decider came with, "" for none.

        Raises:
            PlanChanged: digest or nonce are not those of this approval.
            ApprovalDecided: it is decided otherwise, or by somebody else.
            ApprovalExpired: too late.
            SelfApproval: two persons are asked for, and one is behind both plan and decision, as their maker
                or as the issuer of a maker's token.
        """
        wanted = ApprovalState.APPROVED if approve else ApprovalState.DENIED
        # Both are compared before anything is told about the approval's state: neither is secret from a
        # person who may read approvals, they only prove which plan was seen.
        if plan_digest != self.plan.digest or nonce != self.nonce:
            raise PlanChanged("The decision does not name this plan (plan_digest or nonce differ).")
        if self.state in (ApprovalState.APPROVED, ApprovalState.DENIED):
            if self.state is wanted and self.decider == decider:
                return self
            raise ApprovalDecided(
                f"The approval is decided already: {self.state} by {self.decider}.",
                metadata={"state": self.state.value, "decider": self.decider},
            )
        if self.state is ApprovalState.EXPIRED or self.expired(now):
            raise ApprovalExpired("The approval has expired; ask for the plan anew.")
        if approve and two_person:
            behind = persons_behind(decider, vouched_by)
            if behind & persons_behind(self.proposer, self.proposer_vouched_by):
                raise SelfApproval(_ALONE if vouched_by or self.proposer_vouched_by else _SAME)
        return replace(self, state=wanted, decide_time=now, decider=decider, comment=comment)


def by_person(initiator: str) -> bool:
    """Whether a person, no trigger, is behind a wish."""
    return "/person/" in initiator


def is_admin(actor: str) -> bool:
    """Whether a SPIFFE id, or its short form, is an admin's."""
    return actor.removeprefix("spiffe://nightshift.local/").startswith("person/admin/")


def person_of(actor: str) -> str:
    """Name of the person that a SPIFFE id, or its short form, is of; "" for services and platforms."""
    _, found, rest = f"/{actor}".partition("/person/")
    return rest.partition("/")[2] if found else ""


def persons_behind(actor: str, vouched_by: str) -> frozenset[str]:
    """Who stands behind an act: a person in whatever role, and the issuer of the token that says who it is.

    An admin may issue a token for anybody, and so could be two persons alone. Names that differ in case alone
    are one.
    """
    return frozenset(name.casefold() for name in (person_of(actor), vouched_by) if name)

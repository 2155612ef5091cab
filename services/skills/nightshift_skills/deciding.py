"""Deciding: a person's yes or no to one plan, and what follows from it. Within transactions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from nightshift_skills.approvals import Approval
from nightshift_skills.asking import ApprovalRule
from nightshift_skills.books import Books
from nightshift_skills.budgets import Budgets
from nightshift_skills.plans import Plan
from nightshift_skills.runs import RunState
from nightshift_skills.store import decisions


class Deciding:
    """Decisions, and the budgets that they commit."""

    def __init__(
        self,
        books: Books,
        rule: ApprovalRule,
        cooldown_s: Callable[[str], float],
        budgets: Budgets | None = None,
    ) -> None:
        """Args: store, rule, the cooldown in seconds of each skill by id, and budgets (None: no limits)."""
        self._books = books
        self._rule = rule
        self._cooldown_s = cooldown_s
        self._budgets = budgets

    def decided(
        self,
        connection: sa.Connection,
        approval: Approval,
        approve: bool,
        plan_digest: str,
        nonce: str,
        decider: str,
        comment: str,
        vouched_by: str = "",
    ) -> Approval:
        """The approval after the decision; its run is queued, or ends and its skill rests on the subject.

        Raises:
            ApprovalDecided, ApprovalExpired, PlanChanged, SelfApproval, BudgetExceeded.
        """
        now = self._books.clock.now()
        decided = approval.decided(
            approve=approve,
            plan_digest=plan_digest,
            nonce=nonce,
            decider=decider,
            comment=comment,
            two_person=self._rule.two_person,
            now=now,
            vouched_by=vouched_by,
        )
        if decided is approval:
            return approval
        if approve:
            # Money is committed by the decision, not when the run begins: two approvals cannot both count on
            # what is left.
            self.charge(connection, approval.skill, approval.plan, person=True)
        decided = decisions.save_approval(connection, decided)
        run = decisions.get_run(connection, approval.run)
        if approve:
            run = run.moved(RunState.QUEUED, now, outcome="Approved; starts when nothing stands in its way.")
        else:
            run = run.moved(RunState.DENIED, now, outcome=f"Denied by {decider}.")
            rest_s = max(self._cooldown_s(approval.skill), self._rule.denied_rest_s)
            rest = decisions.Rest(now + timedelta(seconds=rest_s), "denied")
            decisions.set_rest(connection, approval.skill, approval.subject, rest)
        decisions.save_run(connection, run)
        self._books.event(
            connection,
            "approval.decided",
            decider,
            f"approvals/{approval.id}",
            decision=decided.state.value,
            run=f"skillRuns/{run.id}",
            skill=f"skills/{approval.skill}",
            plan_digest=approval.plan.digest,
        )
        return decided

    def charge(self, connection: sa.Connection, skill: str, plan: Plan, *, person: bool) -> None:
        """Counts a run and its cost. Raises BudgetExceeded."""
        if self._budgets is not None:
            self._budgets.charge(connection, skill, plan, self._books.clock.now(), person=person)

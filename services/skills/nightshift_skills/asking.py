"""Asking persons: the plans that wait for a decision, and how often triggers may ask. Within transactions."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from nightshift_skills.approvals import Approval, ApprovalState, by_person
from nightshift_skills.books import Books
from nightshift_skills.errors import ApprovalRate
from nightshift_skills.plans import Plan
from nightshift_skills.runs import Run, RunState
from nightshift_skills.skill import Skill
from nightshift_skills.store import asking, decisions

_HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """How approvals are asked for.

    Attributes:
        ttl_s: Until when a plan can be decided on.
        two_person: Whether somebody else than the plan's maker must approve it.
        denied_rest_s: Least rest of a skill on a subject after a denial.
        per_hour: Questions that triggers may ask for a skill within an hour.
        max_pending: Questions of a skill that may wait at once before triggers ask no more.
    """

    ttl_s: float = 259_200.0
    two_person: bool = False
    denied_rest_s: float = 86_400.0
    per_hour: int = 6
    max_pending: int = 3


@dataclass(frozen=True, slots=True)
class Request:
    """An idempotent request of a person; `id` "" for triggers."""

    id: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """A planned wish: who wants which plan of which skill.

    `vouched_by` issued the token that the initiator came with ("" for none); `on_made` is called in the
    transaction that makes a run for it.
    """

    skill: Skill
    plan: Plan
    parameters: Mapping[str, Any]
    initiator: str
    request: Request = Request()
    comment: str = ""
    vouched_by: str = ""
    on_made: Callable[[sa.Connection, Run], None] | None = None

    @property
    def by_person(self) -> bool:
        """Whether a person wants it, and no trigger."""
        return by_person(self.initiator)


class Asking:
    """Open questions: found again, asked anew, limited."""

    def __init__(self, books: Books, rule: ApprovalRule) -> None:
        self._books = books
        self._rule = rule

    def limits(self, connection: sa.Connection, skills: Iterable[str]) -> dict[str, ApprovalRate]:
        """Why triggers ask no further question for a skill now, for each of these that has asked enough."""
        now = self._books.clock.now()
        pending = asking.pending_counts(connection)
        asked = asking.asked_times(connection, now - _HOUR)
        limits = (
            (skill, self._limit(skill, pending.get(skill, 0), asked.get(skill, ()), now)) for skill in skills
        )
        return {skill: limit for skill, limit in limits if limit is not None}

    def waiting(self, connection: sa.Connection, wish: Wish) -> Run | None:
        """Run that waits with the identical plan; outdated plans for the same subject are voided.

        A trigger's plan voids no person's: they may have asked with other parameters, and one question about
        a subject is enough. What the person's plan says is looked at again before it runs.
        """
        now = self._books.clock.now()
        found: Run | None = None
        for approval in decisions.pending_approvals(connection, wish.skill.id):
            if approval.expired(now):
                self.void(connection, approval, "Nobody decided in time.")
            elif approval.plan.digest == wish.plan.digest:
                found = decisions.get_run(connection, approval.run)
            elif approval.subject != wish.plan.subject:
                continue
            elif by_person(approval.proposer) and not wish.by_person:
                found = decisions.get_run(connection, approval.run)
            else:
                self.void(connection, approval, "The plan has changed meanwhile; it was made anew.")
        return found

    def ask(self, connection: sa.Connection, wish: Wish) -> tuple[Run, Approval]:
        """A new question, and the run that waits with it."""
        now = self._books.clock.now()
        approval_id = self._books.ids()
        run = self.make(connection, wish, approval=approval_id, outcome="Waits for a person's approval.")
        approval = Approval(
            id=approval_id,
            run=run.id,
            skill=wish.skill.id,
            subject=wish.plan.subject,
            state=ApprovalState.PENDING,
            plan=wish.plan,
            nonce=secrets.token_urlsafe(16),
            proposer=wish.initiator,
            proposer_vouched_by=wish.vouched_by,
            create_time=now,
            expire_time=now + timedelta(seconds=self._rule.ttl_s),
        )
        approval = decisions.save_approval(connection, approval)
        self._books.event(
            connection,
            "approval.requested",
            wish.initiator,
            f"approvals/{approval.id}",
            run=f"skillRuns/{run.id}",
            skill=wish.skill.name,
            plan_digest=wish.plan.digest,
        )
        return run, approval

    def make(self, connection: sa.Connection, wish: Wish, **values: Any) -> Run:
        """A run that differs in `values` from one that waits for a person; stored, and told to who wished."""
        run = decisions.save_run(connection, replace(self.new_run(wish), **values))
        if wish.on_made is not None:
            wish.on_made(connection, run)
        return run

    def new_run(self, wish: Wish) -> Run:
        """A run that waits for a person; not stored."""
        return Run(
            id=self._books.ids(),
            skill=wish.skill.id,
            subject=wish.plan.subject,
            state=RunState.AWAITING_APPROVAL,
            plan=wish.plan,
            parameters=wish.parameters,
            initiator=wish.initiator,
            on_purpose=wish.skill.on_purpose,
            create_time=self._books.clock.now(),
        )

    def void(self, connection: sa.Connection, approval: Approval, why: str) -> None:
        """Ends a question, and its run, without a decision."""
        now = self._books.clock.now()
        decisions.save_approval(
            connection, replace(approval, state=ApprovalState.EXPIRED, decide_time=now, comment=why)
        )
        run = decisions.get_run(connection, approval.run)
        decisions.save_run(connection, run.moved(RunState.DENIED, now, outcome=why))
        self._books.event(
            connection,
            "approval.expired",
            "service/skills",
            f"approvals/{approval.id}",
            run=f"skillRuns/{run.id}",
            plan_digest=approval.plan.digest,
        )

    def expire(self, connection: sa.Connection) -> int:
        """Ends what nobody decided in time; how many."""
        now = self._books.clock.now()
        expired = [a for a in decisions.pending_approvals(connection) if a.expired(now)]
        for approval in expired:
            self.void(connection, approval, "Nobody decided in time.")
        return len(expired)

    def withdraw(self, connection: sa.Connection, run_id: str, actor: str) -> None:
        """Ends the question that a cancelled run waits with; nothing happens where none is open."""
        run = decisions.get_run(connection, run_id)
        if run.state is not RunState.AWAITING_APPROVAL:
            return
        now = self._books.clock.now()
        approval = decisions.get_approval(connection, run.approval)
        decisions.save_approval(
            connection,
            replace(
                approval,
                state=ApprovalState.EXPIRED,
                decide_time=now,
                comment=f"The run was cancelled by {actor}.",
            ),
        )

    def _limit(
        self, skill: str, pending: int, asked: Sequence[datetime], now: datetime
    ) -> ApprovalRate | None:
        if pending >= self._rule.max_pending:
            return ApprovalRate(
                f"{pending} plans of it wait for a person; it asks no more until some are decided.",
                metadata={"skill": f"skills/{skill}", "pending": str(pending)},
            )
        if len(asked) < self._rule.per_hour:
            return None
        again = asked[len(asked) - self._rule.per_hour] + _HOUR if self._rule.per_hour else now + _HOUR
        return ApprovalRate(
            f"It has asked {len(asked)} times within an hour, and may ask {self._rule.per_hour} times; "
            f"again after {again:%Y-%m-%d %H:%M:%S} UTC.",
            metadata={"skill": f"skills/{skill}", "asked": str(len(asked))},
            retry_after_s=max(1.0, (again - now).total_seconds()),
        )

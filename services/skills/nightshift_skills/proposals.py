"""From a plan to a run that may start: proposing, confirming, commanding, deciding. One transaction each."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from nightshift_skills.approvals import Approval, ApprovalState, by_person
from nightshift_skills.books import Books
from nightshift_skills.budgets import Budgets
from nightshift_skills.errors import ApprovalRate, SelfApproval
from nightshift_skills.plans import Plan
from nightshift_skills.runs import Run, RunState
from nightshift_skills.skill import Skill
from nightshift_skills.store import decisions

_HOUR = timedelta(hours=1)
# Counts one use of a standing approval for a plan, in the caller's transaction, or refuses it.
UseStanding = Callable[[sa.Connection, str, Plan], object]


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

    `on_made` is called in the transaction that makes a run for it.
    """

    skill: Skill
    plan: Plan
    parameters: Mapping[str, Any]
    initiator: str
    request: Request = Request()
    comment: str = ""
    on_made: Callable[[sa.Connection, Run], None] | None = None

    @property
    def by_person(self) -> bool:
        """Whether a person wants it, and no trigger."""
        return by_person(self.initiator)


class Proposals:
    """Approvals and the runs that wait for them."""

    def __init__(
        self,
        books: Books,
        rule: ApprovalRule,
        cooldown_s: Callable[[str], float],
        budgets: Budgets | None = None,
    ) -> None:
        """Args: store, rule, the cooldown in seconds of each skill by id, and budgets (None: no limits)."""
        self._budgets = budgets
        self._books = books
        self._rule = rule
        self._cooldown_s = cooldown_s

    async def earlier(self, request: Request) -> Run | None:
        """Run that the same request made before.

        Raises:
            RequestIdReused: the id was used for another request.
        """
        if not request.id:
            return None
        return await self._books.read(self._earlier, request)

    async def propose(self, wish: Wish) -> Run:
        """A run that waits for a person; an identical plan that waits already is given back instead.

        Raises:
            ApprovalRate: a trigger asks, and this skill has asked often enough. Persons are not limited.
        """
        asked = await self._books.change(self._propose, wish)
        if isinstance(asked, ApprovalRate):
            # Raised after the commit: outdated questions stay withdrawn.
            raise asked
        return asked

    async def limited(self, skill: str) -> ApprovalRate | None:
        """Why triggers ask no further question for a skill now; None if they may."""
        return await self._books.read(self._limited, skill)

    async def confirm(self, wish: Wish) -> Run:
        """A run whose very plan the initiator has seen and approves.

        Raises:
            SelfApproval: two persons are asked for, and nobody else proposed this plan.
            BudgetExceeded: it costs more than is left today.
            ApprovalExpired, ApprovalDecided: as for a decision.
        """
        return await self._books.change(self._confirm, wish)

    async def command(self, wish: Wish) -> Run:
        """A run that its initiator's command approves (MANUAL). Raises BudgetExceeded."""
        return await self._books.change(self._command, wish)

    async def start_unasked(self, wish: Wish) -> Run:
        """A run of an AUTO skill, at work from the beginning.

        Raises:
            BudgetExceeded: today's budget does not allow it.
        """
        return await self._books.change(self._start_unasked, wish)

    async def start_standing(self, wish: Wish, standing: str, use: UseStanding) -> Run:
        """A run under a standing approval, whose use is counted in the same transaction.

        Raises:
            StandingApprovalEnded, StandingScopeExceeded.
        """
        return await self._books.change(self._start_standing, wish, standing, use)

    async def nothing(self, wish: Wish, reason: str) -> Run:
        """Keeps that there was nothing to do for a person's wish."""
        return await self._books.change(self._nothing, wish, reason)

    async def decide(
        self, approval_id: str, *, approve: bool, plan_digest: str, nonce: str, decider: str, comment: str
    ) -> Approval:
        """A person's decision; the approval as it is afterwards.

        Raises:
            ApprovalUnknown, ApprovalDecided, ApprovalExpired, PlanChanged, SelfApproval, BudgetExceeded.
        """
        return await self._books.change(
            self._decide, approval_id, approve, plan_digest, nonce, decider, comment
        )

    async def expire(self) -> int:
        """Ends what nobody decided in time; how many."""
        pending = await self._books.read(decisions.pending_approvals)
        now = self._books.clock.now()
        if not any(approval.expired(now) for approval in pending):
            return 0
        return await self._books.change(self._expire)

    async def withdraw(self, run_id: str, actor: str) -> None:
        """Ends the question that a cancelled run waits with; nothing happens where none is open."""
        await self._books.change(self._withdraw, run_id, actor)

    # Within transactions.

    def _earlier(self, connection: sa.Connection, request: Request) -> Run | None:
        run_id = decisions.run_of_request(connection, request.id, request.digest)
        return None if run_id is None else decisions.get_run(connection, run_id)

    def _propose(self, connection: sa.Connection, wish: Wish) -> Run | ApprovalRate:
        # Looked up again here: two retries of one request may be on their way at once.
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        waiting = self._waiting(connection, wish)
        if waiting is None:
            limit = None if wish.by_person else self._limited(connection, wish.skill.id)
            if limit is not None:
                return limit
            waiting, _ = self._ask(connection, wish)
        self._note(connection, wish.request, waiting.id)
        return waiting

    def _limited(self, connection: sa.Connection, skill: str) -> ApprovalRate | None:
        pending = len(decisions.pending_approvals(connection, skill))
        if pending >= self._rule.max_pending:
            return ApprovalRate(
                f"{pending} plans of it wait for a person; it asks no more until some are decided.",
                metadata={"skill": f"skills/{skill}", "pending": str(pending)},
            )
        now = self._books.clock.now()
        asked = decisions.asked_since(connection, skill, now - _HOUR)
        if len(asked) < self._rule.per_hour:
            return None
        again = asked[len(asked) - self._rule.per_hour] + _HOUR if self._rule.per_hour else now + _HOUR
        return ApprovalRate(
            f"It has asked {len(asked)} times within an hour, and may ask {self._rule.per_hour} times; "
            f"again after {again:%Y-%m-%d %H:%M:%S} UTC.",
            metadata={"skill": f"skills/{skill}", "asked": str(len(asked))},
            retry_after_s=max(1.0, (again - now).total_seconds()),
        )

    def _confirm(self, connection: sa.Connection, wish: Wish) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        waiting = self._waiting(connection, wish)
        if waiting is None:
            if self._rule.two_person:
                raise SelfApproval(
                    "Two persons are asked for: propose the plan, and let somebody else approve."
                )
            waiting, _ = self._ask(connection, wish)
        approval = decisions.get_approval(connection, waiting.approval)
        self._decided(
            connection, approval, True, approval.plan.digest, approval.nonce, wish.initiator, wish.comment
        )
        self._note(connection, wish.request, waiting.id)
        return decisions.get_run(connection, waiting.id)

    def _command(self, connection: sa.Connection, wish: Wish) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        self._charge(connection, wish.skill.id, wish.plan, person=True)
        run, approval = self._ask(connection, wish)
        # A command is its own approval: two persons are never asked for it.
        now = self._books.clock.now()
        decisions.save_approval(
            connection,
            replace(
                approval,
                state=ApprovalState.APPROVED,
                decide_time=now,
                decider=wish.initiator,
                comment=wish.comment,
            ),
        )
        run = decisions.save_run(connection, run.moved(RunState.QUEUED, now, outcome=""))
        self._books.event(
            connection,
            "approval.commanded",
            wish.initiator,
            f"approvals/{approval.id}",
            run=f"skillRuns/{run.id}",
            plan_digest=run.plan.digest,
        )
        self._note(connection, wish.request, run.id)
        return run

    def _start_unasked(self, connection: sa.Connection, wish: Wish) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        now = self._books.clock.now()
        self._charge(connection, wish.skill.id, wish.plan, person=wish.by_person)
        run = self._make(connection, wish, state=RunState.RUNNING, start_time=now)
        self._books.event(
            connection,
            "run.started",
            wish.initiator,
            f"skillRuns/{run.id}",
            skill=wish.skill.name,
            plan_digest=wish.plan.digest,
        )
        self._note(connection, wish.request, run.id)
        return run

    def _start_standing(self, connection: sa.Connection, wish: Wish, standing: str, use: UseStanding) -> Run:
        use(connection, standing, wish.plan)
        self._charge(connection, wish.skill.id, wish.plan, person=wish.by_person)
        run = self._make(
            connection,
            wish,
            state=RunState.QUEUED,
            standing=standing,
            outcome="Approved in advance; starts when nothing stands in its way.",
        )
        self._books.event(
            connection,
            "autonomy.used",
            wish.initiator,
            f"standingApprovals/{standing}",
            run=f"skillRuns/{run.id}",
            skill=wish.skill.name,
            plan_digest=wish.plan.digest,
        )
        return run

    def _nothing(self, connection: sa.Connection, wish: Wish, reason: str) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        now = self._books.clock.now()
        run = decisions.save_run(
            connection,
            replace(self._new_run(wish), state=RunState.NOTHING_TO_DO, end_time=now, outcome=reason),
        )
        self._books.event(
            connection, "run.empty", wish.initiator, f"skillRuns/{run.id}", skill=wish.skill.name
        )
        self._note(connection, wish.request, run.id)
        return run

    def _decide(
        self,
        connection: sa.Connection,
        approval_id: str,
        approve: bool,
        plan_digest: str,
        nonce: str,
        decider: str,
        comment: str,
    ) -> Approval:
        approval = decisions.get_approval(connection, approval_id)
        return self._decided(connection, approval, approve, plan_digest, nonce, decider, comment)

    def _decided(
        self,
        connection: sa.Connection,
        approval: Approval,
        approve: bool,
        plan_digest: str,
        nonce: str,
        decider: str,
        comment: str,
    ) -> Approval:
        now = self._books.clock.now()
        decided = approval.decided(
            approve=approve,
            plan_digest=plan_digest,
            nonce=nonce,
            decider=decider,
            comment=comment,
            two_person=self._rule.two_person,
            now=now,
        )
        if decided is approval:
            return approval
        if approve:
            # Money is committed by the decision, not when the run begins: two approvals cannot both count on
            # what is left.
            self._charge(connection, approval.skill, approval.plan, person=True)
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

    def _expire(self, connection: sa.Connection) -> int:
        now = self._books.clock.now()
        expired = [a for a in decisions.pending_approvals(connection) if a.expired(now)]
        for approval in expired:
            self._void(connection, approval, "Nobody decided in time.")
        return len(expired)

    def _withdraw(self, connection: sa.Connection, run_id: str, actor: str) -> None:
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

    def _void(self, connection: sa.Connection, approval: Approval, why: str) -> None:
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

    def _waiting(self, connection: sa.Connection, wish: Wish) -> Run | None:
        """Run that waits with the identical plan; outdated plans for the same subject are voided.

        A trigger's plan voids no person's: they may have asked with other parameters, and one question about
        a subject is enough. What the person's plan says is looked at again before it runs.
        """
        now = self._books.clock.now()
        found: Run | None = None
        for approval in decisions.pending_approvals(connection, wish.skill.id):
            if approval.expired(now):
                self._void(connection, approval, "Nobody decided in time.")
            elif approval.plan.digest == wish.plan.digest:
                found = decisions.get_run(connection, approval.run)
            elif approval.subject != wish.plan.subject:
                continue
            elif by_person(approval.proposer) and not wish.by_person:
                found = decisions.get_run(connection, approval.run)
            else:
                self._void(connection, approval, "The plan has changed meanwhile; it was made anew.")
        return found

    def _ask(self, connection: sa.Connection, wish: Wish) -> tuple[Run, Approval]:
        now = self._books.clock.now()
        approval_id = self._books.ids()
        run = self._make(connection, wish, approval=approval_id, outcome="Waits for a person's approval.")
        approval = Approval(
            id=approval_id,
            run=run.id,
            skill=wish.skill.id,
            subject=wish.plan.subject,
            state=ApprovalState.PENDING,
            plan=wish.plan,
            nonce=secrets.token_urlsafe(16),
            proposer=wish.initiator,
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

    def _make(self, connection: sa.Connection, wish: Wish, **values: Any) -> Run:
        """A run that differs in `values` from one that waits for a person; stored, and told to who wished."""
        run = decisions.save_run(connection, replace(self._new_run(wish), **values))
        if wish.on_made is not None:
            wish.on_made(connection, run)
        return run

    def _new_run(self, wish: Wish) -> Run:
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

    def _charge(self, connection: sa.Connection, skill: str, plan: Plan, *, person: bool) -> None:
        if self._budgets is not None:
            self._budgets.charge(connection, skill, plan, self._books.clock.now(), person=person)

    def _note(self, connection: sa.Connection, request: Request, run_id: str) -> None:
        if request.id:
            decisions.save_request(connection, request.id, request.digest, run_id, self._books.clock.now())

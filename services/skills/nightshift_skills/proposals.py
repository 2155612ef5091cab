"""From a plan to a run that may start: proposing, confirming, commanding, deciding. One transaction each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import sqlalchemy as sa

from nightshift_skills.approvals import Approval, ApprovalState
from nightshift_skills.asking import ApprovalRule, Asking, Request, Wish
from nightshift_skills.books import Books
from nightshift_skills.budgets import Budgets
from nightshift_skills.deciding import Deciding
from nightshift_skills.errors import ApprovalRate, SelfApproval
from nightshift_skills.plans import Plan
from nightshift_skills.runs import WAITING, Failure, Run, RunState
from nightshift_skills.store import decisions

__all__ = ["ApprovalRule", "Proposals", "Request", "UseStanding", "Wish"]

# Counts one use of a standing approval for a plan, in the caller's transaction, or refuses it.
UseStanding = Callable[[sa.Connection, str, Plan], object]


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
        self._books = books
        self._rule = rule
        self._asking = Asking(books, rule)
        self._deciding = Deciding(books, rule, cooldown_s, budgets)

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

    def limits(self, connection: sa.Connection, skills: Iterable[str]) -> dict[str, ApprovalRate]:
        """Why triggers ask no further question now, for those of these skills that have asked enough.

        Within the caller's transaction, so that it is told of the same moment as everything else.
        """
        return self._asking.limits(connection, skills)

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
        self,
        approval_id: str,
        *,
        approve: bool,
        plan_digest: str,
        nonce: str,
        decider: str,
        comment: str,
        vouched_by: str = "",
    ) -> Approval:
        """A person's decision; the approval as it is afterwards. `vouched_by` as for a wish.

        Raises:
            ApprovalUnknown, ApprovalDecided, ApprovalExpired, PlanChanged, SelfApproval, BudgetExceeded.
        """
        return await self._books.change(
            self._decide, approval_id, approve, plan_digest, nonce, decider, comment, vouched_by
        )

    async def expire(self) -> int:
        """Ends what nobody decided in time; how many."""
        pending = await self._books.read(decisions.pending_approvals)
        now = self._books.clock.now()
        if not any(approval.expired(now) for approval in pending):
            return 0
        return await self._books.change(self._asking.expire)

    async def withdraw(self, run_id: str, actor: str) -> None:
        """Ends the question that a cancelled run waits with; nothing happens where none is open."""
        await self._books.change(self._asking.withdraw, run_id, actor)

    async def forsake(self, known: Collection[str]) -> None:
        """After a start: ends what waits for a skill that is not there any more (a plug-in taken away)."""
        await self._books.change(self._forsake, known)

    # Within transactions.

    def _earlier(self, connection: sa.Connection, request: Request) -> Run | None:
        run_id = decisions.run_of_request(connection, request.id, request.digest)
        return None if run_id is None else decisions.get_run(connection, run_id)

    def _propose(self, connection: sa.Connection, wish: Wish) -> Run | ApprovalRate:
        # Looked up again here: two retries of one request may be on their way at once.
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        waiting = self._asking.waiting(connection, wish)
        if waiting is None:
            skill = wish.skill.id
            if not wish.by_person and (limit := self._asking.limits(connection, [skill]).get(skill)):
                return limit
            waiting, _ = self._asking.ask(connection, wish)
        self._note(connection, wish.request, waiting.id)
        return waiting

    def _confirm(self, connection: sa.Connection, wish: Wish) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        waiting = self._asking.waiting(connection, wish)
        if waiting is None:
            if self._rule.two_person:
                raise SelfApproval(
                    "Two persons are asked for: propose the plan, and let somebody else approve."
                )
            waiting, _ = self._asking.ask(connection, wish)
        approval = decisions.get_approval(connection, waiting.approval)
        self._deciding.decided(
            connection,
            approval,
            True,
            approval.plan.digest,
            approval.nonce,
            wish.initiator,
            wish.comment,
            wish.vouched_by,
        )
        self._note(connection, wish.request, waiting.id)
        return decisions.get_run(connection, waiting.id)

    def _command(self, connection: sa.Connection, wish: Wish) -> Run:
        if wish.request.id and (earlier := self._earlier(connection, wish.request)):
            return earlier
        self._deciding.charge(connection, wish.skill.id, wish.plan, person=True)
        run, approval = self._asking.ask(connection, wish)
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
        self._deciding.charge(connection, wish.skill.id, wish.plan, person=wish.by_person)
        run = self._asking.make(connection, wish, state=RunState.RUNNING, start_time=now)
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
        self._deciding.charge(connection, wish.skill.id, wish.plan, person=wish.by_person)
        run = self._asking.make(
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
            replace(self._asking.new_run(wish), state=RunState.NOTHING_TO_DO, end_time=now, outcome=reason),
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
        vouched_by: str = "",
    ) -> Approval:
        approval = decisions.get_approval(connection, approval_id)
        return self._deciding.decided(
            connection, approval, approve, plan_digest, nonce, decider, comment, vouched_by
        )

    def _forsake(self, connection: sa.Connection, known: Collection[str]) -> None:
        why = "Its skill is not installed or not enabled any more."
        for run in decisions.runs_in(connection, [*WAITING, RunState.AWAITING_APPROVAL]):
            if run.skill in known:
                continue
            if run.state is RunState.AWAITING_APPROVAL:
                self._asking.void(connection, decisions.get_approval(connection, run.approval), why)
                continue
            failure = Failure("SKILL_UNKNOWN", why)
            now = self._books.clock.now()
            decisions.save_run(connection, run.moved(RunState.FAILED, now, outcome=why, failure=failure))
            self._books.event(
                connection,
                "run.ended",
                "service/skills",
                f"skillRuns/{run.id}",
                skill=f"skills/{run.skill}",
                state=RunState.FAILED.value,
                reason=failure.reason,
            )

    def _note(self, connection: sa.Connection, request: Request, run_id: str) -> None:
        if request.id:
            decisions.save_request(connection, request.id, request.digest, run_id, self._books.clock.now())

"""Armed rollbacks: given with a promotion, executed once when a guardrail says so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from nightshift_kit.errors import GlobalLock
from nightshift_skills.autonomy import Autonomy
from nightshift_skills.books import Books
from nightshift_skills.catalogue import promote_config, rollback
from nightshift_skills.errors import NotArmed
from nightshift_skills.executor import Executor
from nightshift_skills.gate import Gate
from nightshift_skills.planner import Planner
from nightshift_skills.plans import NothingToDo
from nightshift_skills.proposals import Proposals, Wish
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run, RunState
from nightshift_skills.standing import Bound, Scope, StandingApproval
from nightshift_skills.store.decisions import CallRecord

GUARDRAIL = "trigger:guardrail"


class Arming:
    """Keeps the one rollback of a promotion ready."""

    def __init__(self, books: Books, autonomy: Autonomy) -> None:
        self._books = books
        self._autonomy = autonomy

    def answered(
        self, connection: sa.Connection, run: Run, call: CallRecord, answer: Mapping[str, Any]
    ) -> None:
        """Arms the rollback where that was asked for, when the promotion's answer is stored."""
        ttl_s = run.plan.limits.get(promote_config.ARMED_LIMIT, "")
        if call.method != promote_config.METHOD or not ttl_s:
            return
        now = self._books.clock.now()
        promotion = str(answer["name"])
        self._autonomy.arm(
            connection,
            StandingApproval(
                id=self._books.ids(),
                skill="rollback",
                scope=Scope(
                    subjects=(promotion,),
                    methods=(rollback.METHOD,),
                    # What was promoted must still lie there.
                    bounds=(Bound(path="current_digest", allowed=(str(answer.get("digest", "")),)),),
                ),
                policy_digest=self._autonomy.policy_digest,
                approver=run.initiator,
                create_time=now,
                expire_time=now + timedelta(seconds=float(ttl_s)),
                max_uses=1,
                run=run.id,
                promotion=promotion,
            ),
        )


class GuardrailRollback:
    """The internal entry for guardrails: no person asks here, so only an armed rollback is ever executed."""

    def __init__(
        self,
        *,
        autonomy: Autonomy,
        registry: Registry,
        planner: Planner,
        proposals: Proposals,
        executor: Executor,
        gate: Gate,
    ) -> None:
        self._autonomy = autonomy
        self._registry = registry
        self._planner = planner
        self._proposals = proposals
        self._executor = executor
        self._gate = gate

    async def execute(self, promotion: str) -> Run:
        """Rolls a promotion back under its armed approval, and takes the plane back to manual_only.

        Args:
            promotion: "promotions/{promotion}".

        Raises:
            NotArmed: no armed rollback of it is in force. GlobalLock: the lock stops this, too.
            StandingScopeExceeded, StandingApprovalEnded: production is not what was promoted; used already.
            Upstream: the lab cannot be asked.
        """
        # Whatever comes of the rollback: a guardrail that fell ends autonomy.
        await self._autonomy.back_to_manual(GUARDRAIL, f"A guardrail fell for {promotion}.")
        if self._gate.locked:
            raise GlobalLock("The global lock is on; the rollback stays armed.")
        standing = await self._autonomy.armed(promotion)
        if standing is None:
            raise NotArmed(f"No rollback of {promotion} is armed.", metadata={"promotion": promotion})
        skill = self._registry.get("rollback")
        parameters = {"promotion": promotion}
        plan = await self._planner.plan(skill, parameters)
        if isinstance(plan, NothingToDo):
            raise NotArmed(f"There is nothing to roll back: {plan.reason}", metadata={"promotion": promotion})
        run = await self._proposals.start_standing(
            Wish(skill, plan, parameters, GUARDRAIL), standing.id, self._autonomy.use
        )
        if run.state is RunState.QUEUED:
            self._executor.start(run, fresh=True)
        return run

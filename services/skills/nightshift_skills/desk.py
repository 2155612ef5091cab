"""What persons ask for: planning, running, deciding, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nightshift_kit.canonical import digest_json
from nightshift_kit.errors import GlobalLock, NightshiftError
from nightshift_kit.grants import Tier
from nightshift_skills.approvals import Approval, is_admin
from nightshift_skills.books import Books
from nightshift_skills.errors import AdminRequired, Cooldown, PlanChanged, SkillRunEnded, UserActive
from nightshift_skills.executor import Executor
from nightshift_skills.gate import Gate
from nightshift_skills.planner import Planner
from nightshift_skills.plans import NothingToDo, Plan
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import Proposals, Request, Wish
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Failure, Run, RunState
from nightshift_skills.scheduler import Scheduler
from nightshift_skills.store import decisions

# A command that is quick answers with its outcome; a long one answers that it is at work.
SETTLE_S = 3.0
STARTED_S = 0.3
_LOCKED = "The global lock is on; an admin lifts it with: nightshift unlock."


class Desk:
    """The commands of SkillsService."""

    def __init__(
        self,
        *,
        registry: Registry,
        planner: Planner,
        proposals: Proposals,
        progress: Progress,
        executor: Executor,
        scheduler: Scheduler,
        gate: Gate,
        books: Books,
        stop_run: Callable[[str], Awaitable[object]],
    ) -> None:
        self._registry = registry
        self._planner = planner
        self._proposals = proposals
        self._progress = progress
        self._executor = executor
        self._scheduler = scheduler
        self._gate = gate
        self._books = books
        self._stop_run = stop_run

    async def plan(self, name: str, parameters: Mapping[str, Any]) -> Plan | NothingToDo:
        """Dry run. Raises as `Planner.plan`."""
        return await self._planner.plan(self._registry.get(name), parameters)

    async def run(
        self,
        name: str,
        parameters: Mapping[str, Any],
        *,
        initiator: str,
        plan_digest: str = "",
        request_id: str = "",
        comment: str = "",
        wait_s: float = SETTLE_S,
        vouched_by: str = "",
    ) -> Run:
        """Plans a skill and runs it as far as its tier allows.

        Args:
            name: "skills/{skill}".
            parameters: As its schema says.
            initiator: SPIFFE id of the person.
            plan_digest: Of the plan that the person was shown; "" proposes only (CONFIRM).
            request_id: Idempotency key, "" for none.
            comment: What the person says to it.
            wait_s: How long to wait for the end of a run that starts.
            vouched_by: Who issued the token that the person came with, "" for none.

        Raises:
            SkillUnknown, ParametersInvalid, SkillModified, GlobalLock, Cooldown, PlanChanged, UserActive,
            SelfApproval, RequestIdReused; Upstream where a service that has to be asked refuses.
        """
        skill = self._registry.get(name)
        if skill.admin_only and not is_admin(initiator):
            raise AdminRequired(f"{skill.name} takes the role admin.", metadata={"caller": initiator})
        asked = {"skill": name, "parameters": dict(parameters), "plan": plan_digest, "by": initiator}
        request = Request(request_id, digest_json(asked) if request_id else "")
        earlier = await self._proposals.earlier(request)
        if earlier is not None:
            return earlier
        if self._gate.locked:
            raise GlobalLock(_LOCKED)
        plan = await self._planner.plan(skill, parameters)
        if isinstance(plan, NothingToDo):
            empty = Plan(skill=skill.name, subject=skill.name, summary=plan.reason, calls=())
            return await self._proposals.nothing(
                Wish(skill, empty, parameters, initiator, request, comment), plan.reason
            )
        if plan_digest and plan_digest != plan.digest:
            raise PlanChanged(
                "The plan is another one by now; look at it again.", metadata={"plan_digest": plan.digest}
            )
        wish = Wish(skill, plan, parameters, initiator, request, comment, vouched_by)
        match skill.tier:
            case Tier.AUTO:
                run = await self._run_unasked(wish)
            case Tier.CONFIRM:
                run = await self._run_confirmed(wish, confirmed=bool(plan_digest))
            case Tier.MANUAL:
                run = await self._run_commanded(wish)
        # A training lasts hours: its caller is told at once that it is at work.
        await self._executor.wait(run.id, min(wait_s, STARTED_S) if skill.follows_job else wait_s)
        return await self._progress.get(run.id)

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
        """Decides one approval; an approved run starts as soon as nothing stands in its way.

        Raises:
            ApprovalUnknown, ApprovalDecided, ApprovalExpired, PlanChanged, SelfApproval; GlobalLock for
            approving, since saying no is always safe.
        """
        if approve and self._gate.locked:
            raise GlobalLock(_LOCKED)
        approval = await self._proposals.decide(
            approval_id,
            approve=approve,
            plan_digest=plan_digest,
            nonce=nonce,
            decider=decider,
            comment=comment,
            vouched_by=vouched_by,
        )
        self._scheduler.poke()
        return approval

    async def cancel(self, run_id: str, *, initiator: str) -> Run:
        """Stops a run for good; a training of it is cancelled by a cancel_training of the same person.

        Raises:
            SkillRunUnknown, SkillRunEnded.
        """
        run = await self._progress.get(run_id)
        if run.ended:
            raise SkillRunEnded(f"The run has ended ({run.state}).")
        live = self._gate.get(run_id)
        if live is not None:
            live.stop("cancel")
        await asyncio.gather(self._stop_run(run_id), self._executor.wait(run_id, SETTLE_S))
        await self._proposals.withdraw(run_id, initiator)
        run = await self._progress.ended(
            run_id, RunState.CANCELLED, "Cancelled by a person.", actor=initiator
        )
        if run.job:
            await self._cancel_job(run, initiator)
        self._scheduler.poke()
        return await self._progress.get(run_id)

    async def _cancel_job(self, run: Run, initiator: str) -> None:
        others = await self._books.read(decisions.runs_of_job, run.job)
        if others:
            # Somebody resumed it under an approval of its own: that run has the say now.
            return
        try:
            await self.run("skills/cancel_training", {"training_job": run.job}, initiator=initiator)
        except NightshiftError as error:
            await self._books.change(
                decisions.save_outcome,
                run.id,
                f"Cancelled by a person; {run.job} stays paused ({error.reason}): cancel_training ends it.",
            )

    async def _run_unasked(self, wish: Wish) -> Run:
        was_open = self._gate.is_open
        if wish.skill.background and not was_open:
            situation = await self._scheduler.reconsider()
            if self._gate.is_open:
                return await self._begin_unasked(wish)
            why = " ".join(situation.blocking()) or "The machine is not idle yet."
            raise UserActive(
                f"{wish.skill.name} runs while nobody needs the machine: {why}",
                retry_after_s=await self._scheduler.quiet_remaining_s(),
            )
        return await self._begin_unasked(wish)

    async def _begin_unasked(self, wish: Wish) -> Run:
        run = await self._proposals.start_unasked(wish)
        if run.state is RunState.RUNNING:
            try:
                self._executor.start(run, fresh=True)
            except (UserActive, GlobalLock):
                # A user came between the look and the start; the run goes on after quiet.
                return await self._progress.stopped(run.id, "user")
        return run

    async def _run_confirmed(self, wish: Wish, *, confirmed: bool) -> Run:
        rest = await self._planner.rest(wish.skill, wish.plan.subject)
        if rest is not None and rest.cause != "failed":
            now = self._books.clock.now()
            raise Cooldown(
                f"{wish.skill.name} rests on {wish.plan.subject} until {rest.until:%Y-%m-%d %H:%M:%S} UTC "
                f"({rest.cause}).",
                metadata={"until": rest.until.isoformat(), "cause": rest.cause},
                retry_after_s=max(1.0, (rest.until - now).total_seconds()),
            )
        if not confirmed:
            return await self._proposals.propose(wish)
        run = await self._proposals.confirm(wish)
        if run.state is RunState.QUEUED and await self._scheduler.may_start(wish.skill, wish.plan):
            try:
                self._executor.start(run, fresh=True)
            except (UserActive, GlobalLock):
                return run
        else:
            self._scheduler.poke()
        return run

    async def _run_commanded(self, wish: Wish) -> Run:
        run = await self._proposals.command(wish)
        if run.state is not RunState.QUEUED:
            return run
        try:
            self._executor.start(run, fresh=True)
        except GlobalLock as error:
            await self._progress.ended(
                run.id, RunState.FAILED, error.message, failure=Failure(error.reason, error.message)
            )
            raise
        return run

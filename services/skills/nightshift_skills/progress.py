"""A run on its way: begun, called, stopped, ended. One transaction each, the audit event inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from nightshift_skills.books import Books
from nightshift_skills.plans import Plan
from nightshift_skills.runs import WAITING, Failure, Run, RunState
from nightshift_skills.store import decisions
from nightshift_skills.store.decisions import CallRecord, Rest
from nightshift_skills.store.standing import get_standing

OnAnswered = Callable[[sa.Connection, Run, CallRecord, Mapping[str, Any]], None]
ACTOR = "service/skills"


class Progress:
    """Writes down how runs fare."""

    def __init__(
        self, books: Books, *, failed_rest_s: float, on_answered: OnAnswered = lambda *_: None
    ) -> None:
        """Args: the store, how long triggers leave a subject alone after a failure, and who hears of answers.

        `on_answered` is called in the transaction that stores the answer to a single-use call.
        """
        self._books = books
        self._on_answered = on_answered
        self._failed_rest_s = failed_rest_s

    async def get(self, run_id: str) -> Run:
        """A run as it is now. Raises SkillRunUnknown."""
        return await self._books.read(decisions.get_run, run_id)

    async def calls(self, run_id: str) -> list[CallRecord]:
        """Single-use calls of a run so far."""
        return await self._books.read(decisions.list_calls, run_id)

    async def begin(self, run_id: str, plan: Plan | None = None) -> Run:
        """A waiting run goes to work; with a plan made anew where one is given.

        Raises:
            SkillRunEnded, SkillRunTransition: somebody cancelled it meanwhile.
        """
        return await self._books.change(self._begin, run_id, plan)

    async def begin_call(self, run: Run, call: CallRecord, fence: int) -> None:
        """Stores a call, its jti and arguments, before it is made."""
        await self._books.change(self._begin_call, run, call, fence)

    async def answered(
        self, run_id: str, call: CallRecord, answer: Mapping[str, Any], *, job: str = ""
    ) -> Run:
        """Stores the answer to a single-use call; `job` is the training job that it names."""
        return await self._books.change(self._answered, run_id, call, answer, job)

    async def refused(self, call: CallRecord, reason: str) -> None:
        """Stores that a single-use call was refused for good."""
        await self._books.change(
            lambda connection: decisions.settle_call(
                connection, call, self._books.clock.now(), refusal=reason
            )
        )

    async def noted(self, run_id: str, answer: Mapping[str, Any]) -> Run:
        """Keeps the answer to a call that may be repeated."""
        return await self._books.change(self._noted, run_id, answer)

    async def ended(
        self,
        run_id: str,
        state: RunState,
        outcome: str,
        *,
        failure: Failure | None = None,
        rest_s: float = 0.0,
        actor: str = ACTOR,
    ) -> Run:
        """A run is over; nothing happens if it is already."""
        return await self._books.change(self._ended, run_id, state, outcome, failure, rest_s, actor)

    async def stopped(self, run_id: str, cause: str) -> Run:
        """A run at work was stopped: for a user, by the lock, because the plane goes down."""
        return await self._books.change(self._stopped, run_id, cause)

    async def waiting(self, run_id: str, state: RunState, outcome: str, *, held: bool = False) -> Run:
        """A run waits: PREEMPTED or INTERRUPTED; `held` until a person resumes its job."""
        return await self._books.change(self._waiting, run_id, state, outcome, held)

    async def orphaned(self) -> list[Run]:
        """After a start: runs that were at work when the plane went down become INTERRUPTED."""
        return await self._books.change(self._orphaned)

    async def recorded_check(self, run: Run, answer: Mapping[str, Any]) -> Run:
        """Keeps a health check: a new run where its verdict changed, else the last one is renewed."""
        return await self._books.change(self._recorded_check, run, answer)

    # Within transactions.

    def _begin(self, connection: sa.Connection, run_id: str, plan: Plan | None) -> Run:
        now = self._books.clock.now()
        run = decisions.get_run(connection, run_id)
        resumed = run.state is not RunState.QUEUED
        changes: dict[str, Any] = {"held": False}
        if plan is not None:
            changes["plan"] = plan
        run = decisions.save_run(connection, run.moved(RunState.RUNNING, now, outcome="", **changes))
        self._books.event(
            connection,
            "run.resumed" if resumed else "run.started",
            run.initiator,
            f"skillRuns/{run.id}",
            skill=f"skills/{run.skill}",
            plan_digest=run.plan.digest,
        )
        return run

    def _begin_call(self, connection: sa.Connection, run: Run, call: CallRecord, fence: int) -> None:
        now = self._books.clock.now()
        if run.standing:
            # Read here, in the very transaction: who takes it back stops each call that has not begun.
            get_standing(connection, run.standing).check_goes_on(now)
        decisions.begin_call(connection, call, now)
        self._books.event(
            connection,
            "grant.minted",
            run.initiator,
            f"skillRuns/{run.id}",
            jti=call.jti,
            method=call.method,
            arguments_digest=call.arguments_digest,
            fence=fence,
            **({"standing_approval": f"standingApprovals/{run.standing}"} if run.standing else {}),
        )

    def _answered(
        self, connection: sa.Connection, run_id: str, call: CallRecord, answer: Mapping[str, Any], job: str
    ) -> Run:
        decisions.settle_call(connection, call, self._books.clock.now(), answer=answer)
        run = decisions.get_run(connection, run_id)
        run = replace(run, done_calls=run.done_calls + 1, results=(*run.results, answer), job=job or run.job)
        run = decisions.save_run(connection, run)
        self._on_answered(connection, run, call, answer)
        return run

    def _noted(self, connection: sa.Connection, run_id: str, answer: Mapping[str, Any]) -> Run:
        run = decisions.get_run(connection, run_id)
        return decisions.save_run(
            connection, replace(run, done_calls=run.done_calls + 1, results=(*run.results, answer))
        )

    def _ended(
        self,
        connection: sa.Connection,
        run_id: str,
        state: RunState,
        outcome: str,
        failure: Failure | None,
        rest_s: float,
        actor: str,
    ) -> Run:
        now = self._books.clock.now()
        run = decisions.get_run(connection, run_id)
        if run.ended:
            return run
        run = decisions.save_run(connection, run.moved(state, now, outcome=outcome, failure=failure))
        if state is RunState.FAILED:
            rest = Rest(now + timedelta(seconds=self._failed_rest_s), "failed")
            decisions.set_rest(connection, run.skill, run.subject, rest)
        elif state is RunState.SUCCEEDED and rest_s > 0:
            rest = Rest(now + timedelta(seconds=rest_s), "succeeded")
            decisions.set_rest(connection, run.skill, run.subject, rest)
        self._books.event(
            connection,
            "run.ended",
            actor,
            f"skillRuns/{run.id}",
            skill=f"skills/{run.skill}",
            state=state.value,
            reason=failure.reason if failure else "",
        )
        return run

    def _stopped(self, connection: sa.Connection, run_id: str, cause: str) -> Run:
        now = self._books.clock.now()
        run = decisions.get_run(connection, run_id)
        if run.state is not RunState.RUNNING:
            return run
        if cause == "shutdown":
            run = self._interrupted(run)
        elif cause == "cancel":
            run = run.moved(RunState.CANCELLED, now, outcome="Cancelled by a person.")
        else:
            run = run.moved(RunState.PREEMPTED, now, outcome=_STOPPED.get(cause, f"Stopped: {cause}."))
        run = decisions.save_run(connection, run)
        self._books.event(
            connection, "run.stopped", ACTOR, f"skillRuns/{run.id}", cause=cause, state=run.state.value
        )
        return run

    def _waiting(
        self, connection: sa.Connection, run_id: str, state: RunState, outcome: str, held: bool
    ) -> Run:
        run = decisions.get_run(connection, run_id)
        if run.ended or run.state in WAITING:
            return run
        run = decisions.save_run(
            connection, run.moved(state, self._books.clock.now(), outcome=outcome, held=held)
        )
        self._books.event(
            connection, "run.stopped", ACTOR, f"skillRuns/{run.id}", cause=outcome, state=state.value
        )
        return run

    def _orphaned(self, connection: sa.Connection) -> list[Run]:
        orphans = []
        for run in decisions.runs_in(connection, [RunState.RUNNING]):
            orphan = decisions.save_run(connection, self._interrupted(run))
            self._books.event(
                connection, "run.interrupted", ACTOR, f"skillRuns/{run.id}", skill=f"skills/{run.skill}"
            )
            orphans.append(orphan)
        return orphans

    def _interrupted(self, run: Run) -> Run:
        now = self._books.clock.now()
        if run.approved:
            return run.moved(
                RunState.INTERRUPTED,
                now,
                outcome="The plane went down meanwhile; goes on under its approval.",
            )
        # Nothing is owed to anybody: its trigger plans anew what remains.
        return run.moved(
            RunState.INTERRUPTED, now, outcome="The plane went down meanwhile; planned anew.", end_time=now
        )

    def _recorded_check(self, connection: sa.Connection, run: Run, answer: Mapping[str, Any]) -> Run:
        last = decisions.last_run(connection, run.skill)
        if last is not None and last.state is RunState.SUCCEEDED and last.results[-1:] == (answer,):
            return decisions.save_run(
                connection, replace(last, done_calls=last.done_calls + 1, end_time=self._books.clock.now())
            )
        run = decisions.save_run(connection, replace(run, results=(answer,)))
        self._books.event(
            connection, "health.changed", ACTOR, f"skillRuns/{run.id}", platform_up=answer.get("platform_up")
        )
        return run


_STOPPED = {
    "user": "Stopped for a user; goes on after quiet.",
    "lock": "Stopped by the global lock; goes on once it is lifted and the machine is idle.",
    "platform_gone": "Stopped because the platform is gone; goes on when it is back.",
}

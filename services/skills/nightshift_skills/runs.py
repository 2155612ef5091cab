"""Skill runs: their states and the only ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from nightshift_skills.errors import SkillRunEnded, SkillRunTransition
from nightshift_skills.plans import Plan


class RunState(StrEnum):
    """State of a skill run; the names of the contract's enum without its prefix."""

    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PREEMPTED = "PREEMPTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"
    DENIED = "DENIED"
    NOTHING_TO_DO = "NOTHING_TO_DO"


ENDED = frozenset(
    {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.DENIED, RunState.NOTHING_TO_DO}
)
# Waiting for the scheduler, not for a person.
WAITING = frozenset({RunState.QUEUED, RunState.PREEMPTED, RunState.INTERRUPTED})

_ALLOWED: Mapping[RunState, frozenset[RunState]] = {
    RunState.AWAITING_APPROVAL: frozenset({RunState.QUEUED, RunState.DENIED, RunState.CANCELLED}),
    RunState.QUEUED: frozenset(
        {RunState.RUNNING, RunState.CANCELLED, RunState.FAILED, RunState.NOTHING_TO_DO}
    ),
    RunState.RUNNING: frozenset(
        {
            RunState.SUCCEEDED,
            RunState.FAILED,
            RunState.CANCELLED,
            RunState.PREEMPTED,
            RunState.INTERRUPTED,
            RunState.NOTHING_TO_DO,
        }
    ),
    RunState.PREEMPTED: frozenset(
        {RunState.RUNNING, RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED, RunState.NOTHING_TO_DO}
    ),
    RunState.INTERRUPTED: frozenset(
        {RunState.RUNNING, RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED, RunState.NOTHING_TO_DO}
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed: reason in UPPER_SNAKE_CASE, message for a person."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a plan.

    `job` is the training job that the run follows ("" for none). `held` runs were paused by a person and do
    not go on by themselves. An INTERRUPTED run with an end_time has ended (AUTO: planned anew); one without
    goes on under its approval.
    """

    id: str
    skill: str
    subject: str
    state: RunState
    plan: Plan
    parameters: Mapping[str, Any]
    initiator: str
    on_purpose: bool
    create_time: datetime
    approval: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    done_calls: int = 0
    outcome: str = ""
    results: tuple[Mapping[str, Any], ...] = ()
    failure: Failure | None = None
    preemption_count: int = 0
    job: str = ""
    held: bool = False
    standing: str = ""
    seq: int = 0

    @property
    def approved(self) -> bool:
        """Whether a person allowed it: this very plan, or its like in advance."""
        return bool(self.approval or self.standing)

    @property
    def ended(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.end_time is not None

    def moved(self, state: RunState, now: datetime, *, outcome: str | None = None, **changes: Any) -> Run:
        """The run in another state.

        Raises:
            SkillRunEnded: it has ended.
            SkillRunTransition: no way leads from its state to the wanted one.
        """
        if self.ended:
            raise SkillRunEnded(f"The run has ended ({self.state}).")
        if state not in _ALLOWED[self.state]:
            raise SkillRunTransition(f"A run cannot go from {self.state} to {state}.")
        if state in ENDED:
            changes.setdefault("end_time", now)
        if state is RunState.RUNNING and self.start_time is None:
            changes.setdefault("start_time", now)
        if state is RunState.PREEMPTED and not changes.get("held", False):
            changes.setdefault("preemption_count", self.preemption_count + 1)
        return replace(self, state=state, outcome=self.outcome if outcome is None else outcome, **changes)

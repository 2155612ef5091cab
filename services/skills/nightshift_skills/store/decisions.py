"""Runs, approvals, calls, request ids and cooldowns in SQL; nothing here commits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nightshift_kit.errors import RequestIdReused
from nightshift_skills.approvals import Approval, ApprovalState
from nightshift_skills.errors import ApprovalUnknown, SkillRunUnknown
from nightshift_skills.plans import Plan
from nightshift_skills.runs import Failure, Run, RunState
from nightshift_skills.store import tables

RESULTS_KEPT = 20


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A single-use call of a run. Without answer and refusal its outcome is not known."""

    run: str
    position: int
    jti: str
    method: str
    arguments: Mapping[str, Any]
    arguments_digest: str
    answer: Mapping[str, Any] | None = None
    refusal: str = ""

    @property
    def settled(self) -> bool:
        """Whether its outcome is known."""
        return self.answer is not None or bool(self.refusal)


@dataclass(frozen=True, slots=True)
class Rest:
    """Until when a skill leaves a subject alone, and why ("succeeded", "denied", "failed")."""

    until: datetime
    cause: str


def next_seq(connection: sa.Connection, feed: str) -> int:
    """Next position of a feed, taken in the caller's transaction."""
    # The lock comes first: on PostgreSQL a read before the update would let two processes take one number.
    updated = connection.execute(
        sa.update(tables.feeds).where(tables.feeds.c.name == feed).values(seq=tables.feeds.c.seq + 1)
    )
    if updated.rowcount == 0:
        connection.execute(sa.insert(tables.feeds).values(name=feed, seq=1))
    return last_seq(connection, feed)


def last_seq(connection: sa.Connection, feed: str) -> int:
    """Last position of a feed; 0 if nothing ever changed."""
    return (
        connection.execute(
            sa.select(tables.feeds.c.seq).where(tables.feeds.c.name == feed)
        ).scalar_one_or_none()
        or 0
    )


# Runs.


def save_run(connection: sa.Connection, run: Run) -> Run:
    """Stores a run, new or changed, under the next position of its feed."""
    run = replace(run, seq=next_seq(connection, "runs"), results=run.results[-RESULTS_KEPT:])
    values = {
        "skill": run.skill,
        "subject": run.subject,
        "state": run.state.value,
        "plan": run.plan.to_json(),
        "parameters": json.dumps(run.parameters),
        "initiator": run.initiator,
        "approval": run.approval,
        "on_purpose": run.on_purpose,
        "create_time": run.create_time,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "done_calls": run.done_calls,
        "outcome": run.outcome,
        "results": json.dumps(run.results),
        "failure": json.dumps(asdict(run.failure)) if run.failure else None,
        "preemption_count": run.preemption_count,
        "job": run.job,
        "held": run.held,
        "standing": run.standing,
        "seq": run.seq,
    }
    table = tables.skill_runs
    updated = connection.execute(sa.update(table).where(table.c.id == run.id).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=run.id, **values))
    return run


def save_outcome(connection: sa.Connection, run_id: str, outcome: str) -> Run:
    """Says in other words what came of a run."""
    return save_run(connection, replace(get_run(connection, run_id), outcome=outcome))


def get_run(connection: sa.Connection, run_id: str) -> Run:
    """One run. Raises SkillRunUnknown."""
    table = tables.skill_runs
    row = connection.execute(sa.select(table).where(table.c.id == run_id)).one_or_none()
    if row is None:
        raise SkillRunUnknown("There is no such run.")
    return _run(row)


def list_runs(connection: sa.Connection, skill: str, before: str, limit: int) -> list[Run]:
    """Runs, newest first, older than `before`; "" means no limit for skill and before."""
    table = tables.skill_runs
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if skill:
        query = query.where(table.c.skill == skill)
    if before:
        query = query.where(table.c.id < before)
    return [_run(row) for row in connection.execute(query)]


def runs_in(connection: sa.Connection, states: Iterable[RunState]) -> list[Run]:
    """Runs in one of these states that have not ended, oldest first."""
    table = tables.skill_runs
    query = (
        sa.select(table)
        .where(table.c.state.in_([state.value for state in states]), table.c.end_time.is_(None))
        .order_by(table.c.id)
    )
    return [_run(row) for row in connection.execute(query)]


def runs_of_job(connection: sa.Connection, job: str) -> list[Run]:
    """Runs of one training job that have not ended."""
    table = tables.skill_runs
    query = sa.select(table).where(table.c.job == job, table.c.end_time.is_(None)).order_by(table.c.id)
    return [_run(row) for row in connection.execute(query)]


def last_run(connection: sa.Connection, skill: str) -> Run | None:
    """Newest run of a skill that has ended."""
    table = tables.skill_runs
    query = (
        sa.select(table)
        .where(table.c.skill == skill, table.c.end_time.is_not(None))
        .order_by(table.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _run(row)


def last_success_time(connection: sa.Connection, skill: str) -> datetime | None:
    """When a skill last succeeded, on whatever subject."""
    table = tables.skill_runs
    query = (
        sa.select(table.c.end_time)
        .where(table.c.skill == skill, table.c.state == RunState.SUCCEEDED.value)
        .order_by(table.c.id.desc())
        .limit(1)
    )
    found: datetime | None = connection.execute(query).scalar_one_or_none()
    return found


def proven_runs(connection: sa.Connection, skill: str) -> int:
    """Successful runs of a skill whose very plan a person approved."""
    table, asked = tables.skill_runs, tables.approvals
    query = (
        sa.select(sa.func.count())
        .select_from(table.join(asked, asked.c.id == table.c.approval))
        .where(
            table.c.skill == skill,
            table.c.state == RunState.SUCCEEDED.value,
            asked.c.state == ApprovalState.APPROVED.value,
            asked.c.decider.like("%/person/%"),
        )
    )
    return connection.execute(query).scalar_one()


def skill_facts(
    connection: sa.Connection, skill: str, subject: str, now: datetime
) -> tuple[Run | None, int, int, Rest | None]:
    """Of a skill: its last ended run, pending approvals, open runs, and the rest on a subject."""
    table = tables.skill_runs
    open_count = connection.execute(
        sa.select(sa.func.count()).where(table.c.skill == skill, table.c.end_time.is_(None))
    ).scalar_one()
    pending = connection.execute(
        sa.select(sa.func.count()).where(
            tables.approvals.c.skill == skill, tables.approvals.c.state == ApprovalState.PENDING.value
        )
    ).scalar_one()
    rest = get_rest(connection, skill, subject, now)
    return last_run(connection, skill), pending, open_count, rest


def changed_runs(connection: sa.Connection, after_seq: int, limit: int) -> list[Run]:
    """Runs that changed after a position, each as it is now, in the order of their last change."""
    table = tables.skill_runs
    query = sa.select(table).where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
    return [_run(row) for row in connection.execute(query)]


def open_runs(connection: sa.Connection) -> list[Run]:
    """Runs that have not ended, in the order of their last change."""
    table = tables.skill_runs
    query = sa.select(table).where(table.c.end_time.is_(None)).order_by(table.c.seq)
    return [_run(row) for row in connection.execute(query)]


def _run(row: sa.Row[Any]) -> Run:
    return Run(
        id=row.id,
        skill=row.skill,
        subject=row.subject,
        state=RunState(row.state),
        plan=Plan.from_json(row.plan),
        parameters=json.loads(row.parameters),
        initiator=row.initiator,
        on_purpose=row.on_purpose,
        create_time=row.create_time,
        approval=row.approval,
        start_time=row.start_time,
        end_time=row.end_time,
        done_calls=row.done_calls,
        outcome=row.outcome,
        results=tuple(json.loads(row.results)),
        failure=Failure(**json.loads(row.failure)) if row.failure else None,
        preemption_count=row.preemption_count,
        job=row.job,
        held=row.held,
        standing=row.standing,
        seq=row.seq,
    )


# Approvals.


def save_approval(connection: sa.Connection, approval: Approval) -> Approval:
    """Stores an approval, new or changed, under the next position of its feed."""
    approval = replace(approval, seq=next_seq(connection, "approvals"))
    values = {
        "run": approval.run,
        "skill": approval.skill,
        "subject": approval.subject,
        "state": approval.state.value,
        "plan": approval.plan.to_json(),
        "plan_digest": approval.plan.digest,
        "nonce": approval.nonce,
        "proposer": approval.proposer,
        "proposer_vouched_by": approval.proposer_vouched_by,
        "create_time": approval.create_time,
        "expire_time": approval.expire_time,
        "decide_time": approval.decide_time,
        "decider": approval.decider,
        "comment": approval.comment,
        "seq": approval.seq,
    }
    table = tables.approvals
    updated = connection.execute(sa.update(table).where(table.c.id == approval.id).values(values))
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(id=approval.id, **values))
    return approval


def get_approval(connection: sa.Connection, approval_id: str) -> Approval:
    """One approval. Raises ApprovalUnknown."""
    table = tables.approvals
    row = connection.execute(sa.select(table).where(table.c.id == approval_id)).one_or_none()
    if row is None:
        raise ApprovalUnknown("There is no such approval.")
    return _approval(row)


def list_approvals(
    connection: sa.Connection, state: ApprovalState | None, before: str, limit: int
) -> list[Approval]:
    """Approvals, newest first, older than `before` ("" means no limit)."""
    table = tables.approvals
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state.value)
    if before:
        query = query.where(table.c.id < before)
    return [_approval(row) for row in connection.execute(query)]


def pending_approvals(connection: sa.Connection, skill: str = "") -> list[Approval]:
    """Approvals that wait for a person, in the order of their last change; "" means of all skills."""
    table = tables.approvals
    query = sa.select(table).where(table.c.state == ApprovalState.PENDING.value).order_by(table.c.seq)
    if skill:
        query = query.where(table.c.skill == skill)
    return [_approval(row) for row in connection.execute(query)]


def changed_approvals(connection: sa.Connection, after_seq: int, limit: int) -> list[Approval]:
    """Approvals that changed after a position, each as it is now."""
    table = tables.approvals
    query = sa.select(table).where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
    return [_approval(row) for row in connection.execute(query)]


def _approval(row: sa.Row[Any]) -> Approval:
    return Approval(
        id=row.id,
        run=row.run,
        skill=row.skill,
        subject=row.subject,
        state=ApprovalState(row.state),
        plan=Plan.from_json(row.plan),
        nonce=row.nonce,
        proposer=row.proposer,
        create_time=row.create_time,
        expire_time=row.expire_time,
        decide_time=row.decide_time,
        decider=row.decider,
        comment=row.comment,
        seq=row.seq,
        proposer_vouched_by=row.proposer_vouched_by,
    )


# Calls.


def begin_call(connection: sa.Connection, call: CallRecord, now: datetime) -> None:
    """Stores that a call is about to be made."""
    connection.execute(
        sa.insert(tables.calls).values(
            run=call.run,
            position=call.position,
            jti=call.jti,
            method=call.method,
            arguments=json.dumps(call.arguments),
            arguments_digest=call.arguments_digest,
            begin_time=now,
        )
    )


def settle_call(
    connection: sa.Connection,
    call: CallRecord,
    now: datetime,
    *,
    answer: Mapping[str, Any] | None = None,
    refusal: str = "",
) -> None:
    """Stores how a call ended."""
    table = tables.calls
    connection.execute(
        sa.update(table)
        .where(table.c.run == call.run, table.c.position == call.position)
        .values(end_time=now, answer=None if answer is None else json.dumps(answer), refusal=refusal or None)
    )


def list_calls(connection: sa.Connection, run_id: str) -> list[CallRecord]:
    """Calls of a run in order."""
    table = tables.calls
    query = sa.select(table).where(table.c.run == run_id).order_by(table.c.position)
    return [
        CallRecord(
            run=row.run,
            position=row.position,
            jti=row.jti,
            method=row.method,
            arguments=json.loads(row.arguments),
            arguments_digest=row.arguments_digest,
            answer=None if row.answer is None else json.loads(row.answer),
            refusal=row.refusal or "",
        )
        for row in connection.execute(query)
    ]


# Request ids.


def run_of_request(connection: sa.Connection, request_id: str, digest: str) -> str | None:
    """Run that an earlier request with this id made; None if there was none.

    Raises:
        RequestIdReused: the earlier request was another one.
    """
    table = tables.requests
    row = connection.execute(sa.select(table).where(table.c.request_id == request_id)).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise RequestIdReused("The request_id was used for another request.")
    return str(row.run)


def save_request(connection: sa.Connection, request_id: str, digest: str, run_id: str, now: datetime) -> None:
    """Notes which run a request made."""
    connection.execute(
        sa.insert(tables.requests).values(request_id=request_id, digest=digest, run=run_id, create_time=now)
    )


# Cooldowns.


def set_rest(connection: sa.Connection, skill: str, subject: str, rest: Rest) -> None:
    """Lets a skill leave a subject alone for a while; what a person denied rests as long as it was to."""
    table = tables.cooldowns
    known = connection.execute(
        sa.select(table).where(table.c.skill == skill, table.c.subject == subject)
    ).one_or_none()
    if known is not None and known.cause == "denied" and known.until_time > rest.until:
        return
    values = {"until_time": rest.until, "cause": rest.cause}
    updated = connection.execute(
        sa.update(table).where(table.c.skill == skill, table.c.subject == subject).values(values)
    )
    if updated.rowcount == 0:
        connection.execute(sa.insert(table).values(skill=skill, subject=subject, **values))


def get_rest(connection: sa.Connection, skill: str, subject: str, now: datetime) -> Rest | None:
    """The rest in force for a skill and a subject."""
    table = tables.cooldowns
    row = connection.execute(
        sa.select(table).where(table.c.skill == skill, table.c.subject == subject, table.c.until_time > now)
    ).one_or_none()
    return None if row is None else Rest(row.until_time, row.cause)

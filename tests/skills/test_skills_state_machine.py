"""Approvals and runs as a state machine: whatever is decided, stopped or killed in whatever order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from nightshift_kit.audit import Outbox
from nightshift_kit.audit.chain import verify_outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database
from nightshift_skills.approvals import ApprovalState
from nightshift_skills.books import Books
from nightshift_skills.catalogue import promote_config, propose_config
from nightshift_skills.plans import Plan
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import ApprovalRule, Proposals, Wish
from nightshift_skills.runs import ENDED, Run, RunState
from nightshift_skills.store import decisions

PEOPLE = ("spiffe://nightshift.local/person/admin/ada", "spiffe://nightshift.local/person/admin/bob")
TTL_S = 100.0
APPROVED_STATES = {
    RunState.QUEUED,
    RunState.RUNNING,
    RunState.PREEMPTED,
    RunState.INTERRUPTED,
    RunState.SUCCEEDED,
    RunState.FAILED,
}


class ApprovalsAndRuns(RuleBasedStateMachine):
    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        url = f"sqlite:///{Path(self.folder.name) / 'skills.db'}"
        self.db = Database(url, migrations="nightshift_skills", name="skills")
        self.db.migrate()
        self.clock = FakeClock(datetime(2026, 1, 5, tzinfo=UTC))
        self.books = Books(self.db, Outbox("skills", self.clock), self.clock, new_id)
        self.loop = asyncio.new_event_loop()
        self.two_person = False
        self.proposals = Proposals(
            self.books, ApprovalRule(TTL_S, self.two_person, denied_rest_s=50.0), lambda _: 10.0
        )
        self.progress = Progress(self.books, failed_rest_s=5.0)
        self.decided: dict[str, ApprovalState] = {}

    def teardown(self) -> None:
        self.loop.close()
        self.db.close()
        self.folder.cleanup()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def tried(self, work: Any) -> Any:
        """The answer, or None where it was refused with a typed error."""
        try:
            return self.do(work)
        except NightshiftError:
            return None

    def wish(self, skill: Any, subject: str, version: int, person: str) -> Wish:
        plan = Plan(
            skill=skill.name, subject=subject, summary="s", calls=(), base_versions={"v": str(version)}
        )
        return Wish(skill, plan, {}, person)

    @rule(
        target=runs, subject=st.sampled_from("ab"), version=st.integers(0, 1), person=st.sampled_from(PEOPLE)
    )
    def propose(self, subject: str, version: int, person: str) -> Any:
        before = {a.plan.digest: a.run for a in self.pending() if not a.expired(self.clock.now())}
        wish = self.wish(propose_config.SKILL, subject, version, person)
        run: Run = self.do(self.proposals.propose(wish))
        assert run.state is RunState.AWAITING_APPROVAL
        if wish.plan.digest in before:
            assert run.id == before[wish.plan.digest]
        return run.id

    @rule(
        target=runs, subject=st.sampled_from("ab"), version=st.integers(0, 1), person=st.sampled_from(PEOPLE)
    )
    def confirm(self, subject: str, version: int, person: str) -> Any:
        run = self.do(self.proposals.confirm(self.wish(propose_config.SKILL, subject, version, person)))
        assert run.state is RunState.QUEUED
        self.decided[run.approval] = ApprovalState.APPROVED
        return run.id

    @rule(target=runs, person=st.sampled_from(PEOPLE))
    def command(self, person: str) -> Any:
        run = self.do(self.proposals.command(self.wish(promote_config.SKILL, "p", 0, person)))
        assert run.state is RunState.QUEUED
        assert run.on_purpose
        self.decided[run.approval] = ApprovalState.APPROVED
        return run.id

    @rule(run=runs, approve=st.booleans(), person=st.sampled_from(PEOPLE), seen=st.booleans())
    def decide(self, run: str, approve: bool, person: str, seen: bool) -> None:
        approval = self.db.read_sync(decisions.get_approval, self.run_of(run).approval)
        answer = self.tried(
            self.proposals.decide(
                approval.id,
                approve=approve,
                plan_digest=approval.plan.digest,
                nonce=approval.nonce if seen else "guessed",
                decider=person,
                comment="",
            )
        )
        if answer is None:
            return
        assert seen
        wanted = ApprovalState.APPROVED if approve else ApprovalState.DENIED
        assert answer.state is wanted
        assert self.decided.setdefault(approval.id, wanted) is wanted
        if approval.state is ApprovalState.PENDING:
            assert self.clock.now() < approval.expire_time

    @rule(seconds=st.sampled_from([1.0, 60.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.do(self.proposals.expire())

    @rule(run=runs)
    def begin(self, run: str) -> None:
        before = self.run_of(run)
        answer = self.tried(self.progress.begin(run))
        able = {RunState.QUEUED, RunState.PREEMPTED, RunState.INTERRUPTED}
        assert (answer is not None) == (before.state in able and not before.ended)

    @rule(run=runs, cause=st.sampled_from(["user", "lock", "cancel", "shutdown"]))
    def stop(self, run: str, cause: str) -> None:
        self.do(self.progress.stopped(run, cause))

    @rule(run=runs, state=st.sampled_from([RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]))
    def end(self, run: str, state: RunState) -> None:
        before = self.run_of(run)
        if before.state is RunState.AWAITING_APPROVAL and state is RunState.CANCELLED:
            self.do(self.proposals.withdraw(run, PEOPLE[0]))
        after = self.tried(self.progress.ended(run, state, "over"))
        if before.ended:
            assert after == before

    @rule()
    def crash(self) -> None:
        for run in self.do(self.progress.orphaned()):
            assert run.state is RunState.INTERRUPTED
        assert self.db.read_sync(decisions.runs_in, [RunState.RUNNING]) == []

    def run_of(self, run: str) -> Run:
        return self.db.read_sync(decisions.get_run, run)

    def pending(self) -> Any:
        return self.db.read_sync(decisions.pending_approvals)

    @invariant()
    def no_run_works_without_its_approval(self) -> None:
        for run in self.db.read_sync(decisions.list_runs, "", "", 1000):
            approval = self.db.read_sync(decisions.get_approval, run.approval)
            waits = run.state is RunState.AWAITING_APPROVAL
            assert waits == (approval.state is ApprovalState.PENDING)
            if run.state in APPROVED_STATES:
                assert approval.state is ApprovalState.APPROVED
            assert run.ended == (run.state in ENDED)
            assert approval.plan.digest == run.plan.digest

    @invariant()
    def one_question_for_one_plan(self) -> None:
        keys = [(approval.skill, approval.subject) for approval in self.pending()]
        assert len(keys) == len(set(keys))

    @invariant()
    def a_decision_stands(self) -> None:
        for approval_id, state in self.decided.items():
            assert self.db.read_sync(decisions.get_approval, approval_id).state is state

    @invariant()
    def the_log_is_whole(self) -> None:
        events: Callable[..., Any] = self.books.outbox.events
        assert verify_outbox(self.db.read_sync(events, 0, 10_000)).valid


TestApprovalsAndRuns = ApprovalsAndRuns.TestCase
TestApprovalsAndRuns.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)

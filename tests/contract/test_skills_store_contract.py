"""What the skills store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.audit.chain import ChainHead, seal, verify
from nightshift_kit.errors import RequestIdReused
from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database, schema_differences
from nightshift_skills.activity import GenerationReport
from nightshift_skills.approvals import Approval, ApprovalState
from nightshift_skills.backoff import Backoff, BackoffRule
from nightshift_skills.errors import (
    ApprovalUnknown,
    LocalTokenUnknown,
    SkillRunUnknown,
    StandingApprovalUnknown,
)
from nightshift_skills.plans import Plan, PlannedCall
from nightshift_skills.runs import Failure, Run, RunState
from nightshift_skills.standing import Bound, Scope, StandingApproval, StandingState
from nightshift_skills.store import chain, decisions, plane, reports, scheduling, standing, tables, tokens
from nightshift_skills.store.decisions import CallRecord, Rest
from nightshift_skills.store.plane import Lock, Preemption
from nightshift_skills.store.scheduling import Pause, TriggerMark, Usage
from nightshift_skills.token_records import TokenRecord

AT = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
PLAN = Plan(
    skill="skills/propose_config",
    subject="projects/p/opportunities/ö",
    summary="Store a proposal.",
    calls=(
        PlannedCall(
            method="/x.Y/Z", arguments={"n": 0.7, "deep": {"é": [1.0, None]}}, arguments_digest="a" * 64
        ),
    ),
    base_versions={"configs/a": "b"},
    limits={"calls": "1"},
    evidence=("61 of 800",),
)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations="nightshift_skills", name="skills") as db:
        db.migrate()
        yield db


def new_run(**changes: object) -> Run:
    run = Run(
        id=new_id(),
        skill="propose_config",
        subject=PLAN.subject,
        state=RunState.AWAITING_APPROVAL,
        plan=PLAN,
        parameters={"opportunity": ""},
        initiator="trigger:idle",
        on_purpose=False,
        create_time=AT,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def new_approval(run: Run, **changes: object) -> Approval:
    approval = Approval(
        id=new_id(),
        run=run.id,
        skill=run.skill,
        subject=run.subject,
        state=ApprovalState.PENDING,
        plan=run.plan,
        nonce="nonce",
        proposer=run.initiator,
        create_time=AT,
        expire_time=AT + timedelta(hours=1),
    )
    return replace(approval, **changes)  # type: ignore[arg-type]


def test_migrations_make_what_the_metadata_says(db: Database) -> None:
    assert db.read_sync(schema_differences, tables.metadata) == []


def test_a_run_comes_back_as_it_was(db: Database) -> None:
    run = new_run(
        state=RunState.FAILED,
        end_time=AT,
        results=tuple({"n": number} for number in range(30)),
        failure=Failure("X", "what happened", {"a": "b"}),
        job="trainingJobs/1",
        held=True,
    )
    saved = db.write_sync(decisions.save_run, run)
    found = db.read_sync(decisions.get_run, run.id)
    assert found == saved
    assert found.plan.digest == PLAN.digest
    assert found.results == tuple({"n": number} for number in range(10, 30))
    with pytest.raises(SkillRunUnknown):
        db.read_sync(decisions.get_run, "none")
    with pytest.raises(ApprovalUnknown):
        db.read_sync(decisions.get_approval, "none")


def test_each_change_takes_the_next_position_and_a_rollback_gives_it_back(db: Database) -> None:
    first = db.write_sync(decisions.save_run, new_run())
    with pytest.raises(ZeroDivisionError):

        def broken(connection: object) -> None:
            decisions.save_run(connection, new_run())  # type: ignore[arg-type]
            raise ZeroDivisionError

        db.write_sync(broken)
    second = db.write_sync(decisions.save_run, new_run())
    changed = db.write_sync(decisions.save_run, replace(first, outcome="other"))
    assert (first.seq, second.seq, changed.seq) == (1, 2, 3)
    assert [run.id for run in db.read_sync(decisions.changed_runs, 1, 10)] == [second.id, first.id]
    assert db.read_sync(decisions.last_seq, "runs") == 3


def test_lists_are_newest_first_and_filtered(db: Database) -> None:
    runs = [db.write_sync(decisions.save_run, new_run()) for _ in range(3)]
    other = db.write_sync(decisions.save_run, new_run(skill="rollback", end_time=AT))
    found = db.read_sync(decisions.list_runs, "propose_config", "", 2)
    assert [run.id for run in found] == [runs[2].id, runs[1].id]
    found = db.read_sync(decisions.list_runs, "", runs[1].id, 9)
    assert [run.id for run in found] == [runs[0].id]
    assert [run.id for run in db.read_sync(decisions.open_runs)] == [run.id for run in runs]
    last, pending, open_count, rest = db.read_sync(decisions.skill_facts, "rollback", "x", AT)
    assert last is not None
    assert (last.id, pending, open_count, rest) == (other.id, 0, 0, None)


def test_approvals_keep_their_plan_and_state(db: Database) -> None:
    run = db.write_sync(decisions.save_run, new_run())
    approval = db.write_sync(decisions.save_approval, new_approval(run))
    assert db.read_sync(decisions.get_approval, approval.id) == approval
    assert db.read_sync(decisions.pending_approvals, "propose_config") == [approval]
    assert db.read_sync(decisions.pending_approvals, "rollback") == []
    denied = db.write_sync(
        decisions.save_approval,
        replace(approval, state=ApprovalState.DENIED, decide_time=AT, decider="me", comment="no"),
    )
    assert db.read_sync(decisions.pending_approvals) == []
    assert db.read_sync(decisions.list_approvals, ApprovalState.DENIED, "", 5) == [denied]
    assert db.read_sync(decisions.list_approvals, ApprovalState.APPROVED, "", 5) == []


def test_calls_are_there_before_they_are_made(db: Database) -> None:
    call = CallRecord("run", 0, new_id(), "/x.Y/Z", {"n": 1.5}, "a" * 64)
    db.write_sync(decisions.begin_call, call, AT)
    assert db.read_sync(decisions.list_calls, "run") == [call]
    assert not call.settled
    db.write_sync(lambda connection: decisions.settle_call(connection, call, AT, answer={}))
    (found,) = db.read_sync(decisions.list_calls, "run")
    assert found.settled
    assert found.answer == {}
    with pytest.raises(Exception, match=r"(?i)unique|duplicate|primary|23505"):
        db.write_sync(decisions.begin_call, replace(call, position=1), AT)


def test_request_ids_are_for_one_request(db: Database) -> None:
    request_id = new_id()
    db.write_sync(decisions.save_request, request_id, "d1", "run", AT)
    assert db.read_sync(decisions.run_of_request, request_id, "d1") == "run"
    assert db.read_sync(decisions.run_of_request, new_id(), "d1") is None
    with pytest.raises(RequestIdReused):
        db.read_sync(decisions.run_of_request, request_id, "d2")


def test_the_last_success_is_told_whatever_came_after(db: Database) -> None:
    assert db.read_sync(decisions.last_success_time, "propose_config") is None
    for number, state in enumerate(
        (RunState.SUCCEEDED, RunState.SUCCEEDED, RunState.FAILED, RunState.DENIED)
    ):
        end = AT + timedelta(hours=number)
        db.write_sync(decisions.save_run, new_run(subject=f"s{number}", state=state, end_time=end))
    db.write_sync(decisions.save_run, new_run(skill="rollback", state=RunState.SUCCEEDED, end_time=AT))
    assert db.read_sync(decisions.last_success_time, "propose_config") == AT + timedelta(hours=1)


def test_rests_end(db: Database) -> None:
    rest = Rest(AT + timedelta(days=7), "denied")
    db.write_sync(decisions.set_rest, "s", "subject", Rest(AT, "failed"))
    db.write_sync(decisions.set_rest, "s", "subject", rest)
    assert db.read_sync(decisions.get_rest, "s", "subject", AT) == rest
    # What fails or succeeds meanwhile does not bring the question back that a person said no to.
    for cause in ("failed", "succeeded"):
        db.write_sync(decisions.set_rest, "s", "subject", Rest(AT + timedelta(hours=1), cause))
        assert db.read_sync(decisions.get_rest, "s", "subject", AT) == rest
    longer = Rest(rest.until + timedelta(days=1), "succeeded")
    db.write_sync(decisions.set_rest, "s", "later", rest)
    db.write_sync(decisions.set_rest, "s", "later", longer)
    assert db.read_sync(decisions.get_rest, "s", "later", AT) == longer
    assert db.read_sync(decisions.get_rest, "s", "other", AT) is None
    assert db.read_sync(decisions.get_rest, "s", "subject", rest.until) is None


def test_lock_fence_and_backoff(db: Database) -> None:
    assert db.read_sync(plane.get_lock) == Lock()
    lock = Lock(True, "me", "why", AT)
    db.write_sync(plane.save_lock, lock)
    assert db.read_sync(plane.get_lock) == lock
    db.write_sync(plane.save_reserved_fence, 2000)
    db.write_sync(plane.save_reserved_fence, 1000)
    assert db.read_sync(plane.get_reserved_fence) == 2000
    rule = BackoffRule()
    assert db.read_sync(plane.get_backoff, rule) == Backoff(rule)
    backoff = Backoff(rule, 60.0, AT)
    db.write_sync(plane.save_backoff, backoff)
    assert db.read_sync(plane.get_backoff, rule) == backoff


def test_preemptions_get_their_last_times_later(db: Database) -> None:
    begun = Preemption(new_id(), 7, "user", AT, AT, 1_000, skill_runs=("r1", "r2"))
    db.write_sync(plane.save_preemption, begun)
    done = replace(
        begun,
        t2_ns=2,
        t3_ns=3,
        t4_ns=2**40,
        t5_ns=2**41,
        t5_detail="NVML lists nö process.",
        killed_count=1,
        confirmed=True,
        lapsed_services=("lab",),
    )
    db.write_sync(plane.save_preemption, done)
    assert db.read_sync(plane.list_preemptions, "", 5) == [done]
    assert db.read_sync(plane.list_preemptions, begun.id, 5) == []


def test_standing_approvals_keep_their_scope_and_state(db: Database) -> None:
    scope = Scope(subjects=("thëmes/*",), bounds=(Bound(path="a.b", maximum=0.1, allowed=("x",)),))
    given = StandingApproval(
        id=new_id(),
        skill="propose_config",
        scope=scope,
        policy_digest="a" * 64,
        approver="spiffe://nightshift.local/person/admin/ada",
        create_time=AT,
        expire_time=AT + timedelta(days=7),
        max_uses=3,
        run=new_id(),
    )
    armed = replace(given, id=new_id(), skill="rollback", promotion="promotions/1")
    for one in (given, armed):
        db.write_sync(standing.save_standing, one)
    assert db.read_sync(standing.get_standing, given.id) == given
    assert db.read_sync(standing.active_standing) == [given, armed]
    assert db.read_sync(standing.active_standing, "propose_config", "") == [given]
    assert db.read_sync(standing.active_standing, "rollback", "promotions/1") == [armed]
    ended = given.ended(StandingState.REVOKED, AT, "me", "why")
    db.write_sync(standing.save_standing, ended)
    assert db.read_sync(standing.active_standing) == [armed]
    assert db.read_sync(standing.list_standing, StandingState.REVOKED, "", 5) == [ended]
    assert db.read_sync(standing.list_standing, None, armed.id, 5) == [ended]
    with pytest.raises(StandingApprovalUnknown):
        db.read_sync(standing.get_standing, "none")
    run = db.write_sync(decisions.save_run, new_run(standing=given.id, state=RunState.QUEUED))
    assert db.read_sync(standing.runs_under, given.id) == [run]


def test_local_tokens_are_kept_by_their_hash_until_they_end(db: Database) -> None:
    made = [
        TokenRecord(
            id=new_id(),
            digest=str(number) * 64,
            person="ada" if number % 2 else "bob",
            role="approver",
            display_name="Gerät",
            issuer="spiffe://nightshift.local/person/admin/1000",
            create_time=AT,
            expire_time=AT + timedelta(hours=number),
        )
        for number in range(4)
    ]

    def fill(connection: sa.Connection) -> None:
        for record in made:
            tokens.add_token(connection, record)
        gone = replace(made[3], revoke_time=AT + timedelta(minutes=1), revoker="spiffe://x")
        tokens.save_revocation(connection, gone)
        made[3] = gone

    db.write_sync(fill)
    assert [db.read_sync(tokens.get_token, record.id) for record in made] == made
    with pytest.raises(LocalTokenUnknown):
        db.read_sync(tokens.get_token, new_id())
    assert db.read_sync(tokens.list_tokens, "", None, "", 10) == made[::-1]
    assert db.read_sync(tokens.list_tokens, "ada", None, "", 10) == [made[3], made[1]]
    assert db.read_sync(tokens.list_tokens, "", AT, "", 10) == [made[2], made[1]]
    assert db.read_sync(tokens.list_tokens, "", None, made[2].id, 1) == [made[1]]
    assert db.read_sync(tokens.count_active, AT) == 2
    later = AT + timedelta(hours=1)
    assert db.read_sync(tokens.count_active, later) == 1
    day = timedelta(days=1)
    generation, known = db.read_sync(tokens.published, later, later - day, 10)
    # One for each of the four, and one for the revocation.
    assert generation == 5
    assert {record.id for record in known} == {record.id for record in made}
    assert db.read_sync(tokens.published, later, later - day, 1)[1] == [made[2], made[3]]
    assert db.read_sync(tokens.published, AT + 30 * day, AT + day, 10)[1] == []
    db.write_sync(tokens.raise_generation, 3)
    assert db.read_sync(tokens.generation) == 6
    db.write_sync(tokens.raise_generation, 90)
    assert db.read_sync(tokens.generation) == 91


def test_only_runs_that_a_person_approved_prove_a_skill(db: Database) -> None:
    def done(decider: str, state: ApprovalState = ApprovalState.APPROVED, **changes: object) -> None:
        run = new_run(state=RunState.SUCCEEDED, end_time=AT, **changes)
        approval = new_approval(run, state=state, decider=decider)
        db.write_sync(decisions.save_run, replace(run, approval=approval.id))
        db.write_sync(decisions.save_approval, approval)

    done("spiffe://nightshift.local/person/approver/ada")
    done("service/skills")
    done("spiffe://nightshift.local/person/approver/ada", ApprovalState.DENIED)
    done("spiffe://nightshift.local/person/approver/ada", skill="rollback")
    db.write_sync(decisions.save_run, new_run(state=RunState.SUCCEEDED, end_time=AT, standing=new_id()))
    assert db.read_sync(decisions.proven_runs, "propose_config") == 1


def test_runs_name_their_preemptions_oldest_first(db: Database) -> None:
    saved = [
        Preemption(new_id(), number, "user", AT, None, 1, skill_runs=("r1",) if number % 2 else ("r1", "r2"))
        for number in range(25)
    ]
    for preemption in saved:
        db.write_sync(plane.save_preemption, preemption)
    found = db.read_sync(plane.preemptions_of, ["r1", "r2", "r3"])
    assert found["r1"] == saved[-plane.PREEMPTIONS_TOLD :]
    assert found["r2"] == saved[::2]
    assert "r3" not in found


def test_the_sealed_chain_goes_on_where_it_stopped(db: Database) -> None:
    outbox = Outbox("skills")
    head = db.read_sync(chain.get_head)
    assert head == ChainHead()
    for number in range(5):
        db.write_sync(
            lambda connection, n=number: outbox.append(
                connection, kind="thing.happened" if n % 2 else "other.thing", actor="me", subject=f"s{n}"
            )
        )
        events = db.read_sync(outbox.events, number, 10)
        rows, head = seal(db.read_sync(chain.get_head), events)
        db.write_sync(chain.append_rows, rows)
        assert db.read_sync(chain.get_head) == head
    result = db.read_sync(lambda connection: verify(chain.all_rows(connection)))
    assert (result.valid, result.event_count) == (True, 5)
    kinds = [row.kind for row in db.read_sync(chain.list_rows, 0, "thing.", 10)]
    assert kinds == ["thing.happened"] * 2
    assert [row.seq for row in db.read_sync(chain.list_rows, 3, "", 10)] == [4, 5]
    assert db.read_sync(chain.list_rows, 0, "%", 10) == []


def test_reports_wait_in_their_order_until_they_are_dropped(db: Database) -> None:
    told = [
        GenerationReport(new_id(), kind, "rün_1", 2**40, AT)
        for kind in ("generation_started", "generation_finished", "generation_started")
    ]
    for report in reversed(told):
        db.write_sync(reports.save_report, report)
    waiting = db.read_sync(reports.list_reports)
    assert [(r.id, r.kind, r.run_id, r.count, r.time, r.kept) for r in waiting] == [
        (r.id, r.kind, r.run_id, r.count, r.time, True) for r in told
    ]
    db.write_sync(reports.drop_reports, [told[0].id, told[2].id, new_id()])
    assert [report.id for report in db.read_sync(reports.list_reports)] == [told[1].id]


def test_marks_begin_once_and_only_go_forward(db: Database) -> None:
    db.write_sync(scheduling.begin_marks, ["a", "b"], AT, 7)
    db.write_sync(scheduling.begin_marks, ["a", "c"], AT + timedelta(days=1), 9)
    marks = db.read_sync(scheduling.list_marks)
    assert marks["a"] == TriggerMark("a", AT, None, 7)
    assert marks["c"] == TriggerMark("c", AT + timedelta(days=1), None, 9)
    db.write_sync(scheduling.looked, "a", AT + timedelta(hours=1), 5)
    assert db.read_sync(scheduling.list_marks)["a"] == TriggerMark("a", AT, AT + timedelta(hours=1), 7)
    db.write_sync(scheduling.looked, "a", AT + timedelta(hours=2), 2**40)
    assert db.read_sync(scheduling.list_marks)["a"].event_seq == 2**40


def test_run_counts_are_those_of_the_last_success(db: Database) -> None:
    assert db.read_sync(scheduling.success_run_count, "propose_config") is None
    states = (RunState.SUCCEEDED, RunState.SUCCEEDED, RunState.FAILED, RunState.AWAITING_APPROVAL)
    for number, state in enumerate(states):
        run = db.write_sync(decisions.save_run, new_run(state=state))
        db.write_sync(scheduling.save_run_mark, run.id, run.skill, 2**40 + number)
    assert db.read_sync(scheduling.success_run_count, "propose_config") == 2**40 + 1
    assert db.read_sync(scheduling.success_run_count, "other") is None


def test_pauses_are_kept_with_who_set_them(db: Database) -> None:
    pause = Pause("a", True, "me", "why", AT)
    db.write_sync(scheduling.save_pause, pause)
    assert db.read_sync(scheduling.list_pauses) == {"a": pause}
    db.write_sync(scheduling.save_pause, replace(pause, paused=False))
    assert db.read_sync(scheduling.list_pauses) == {}


def test_usage_adds_up_by_day_and_skill_and_old_days_go(db: Database) -> None:
    for used in (Usage(1, 0.25, 0.0), Usage(1, 0.5, 10.5), Usage(gpu_s=1.0)):
        db.write_sync(scheduling.add_usage, "2026-03-04", "a", used)
    db.write_sync(scheduling.add_usage, "2026-03-04", "b", Usage(runs=2**40))
    assert db.read_sync(scheduling.get_usage, "2026-03-04") == {
        "a": Usage(2, 0.75, 11.5),
        "b": Usage(2**40),
    }
    assert db.read_sync(scheduling.get_usage, "2026-03-05") == {}

    def years(connection: sa.Connection) -> None:
        for day in range(405):
            scheduling.add_usage(connection, (AT + timedelta(days=1 + day)).date().isoformat(), "a", Usage(1))

    db.write_sync(years)
    assert db.read_sync(scheduling.get_usage, "2026-03-04") == {}
    assert db.read_sync(scheduling.get_usage, (AT + timedelta(days=405)).date().isoformat()) == {
        "a": Usage(1)
    }


def test_events_after_a_position_are_found_by_their_kinds(db: Database) -> None:
    outbox = Outbox("skills")
    assert db.read_sync(scheduling.last_event_seq) == 0
    for kind in ("a.x", "b.x", "a.x"):
        db.write_sync(lambda connection, k=kind: outbox.append(connection, kind=k, actor="me", subject="s"))
    rows, _ = seal(db.read_sync(chain.get_head), db.read_sync(outbox.events, 0, 10))
    db.write_sync(chain.append_rows, rows)
    assert db.read_sync(scheduling.last_event_seq) == 3
    assert db.read_sync(scheduling.events_after, ["a.x", "b.x", "c"], 0) == ["a.x", "b.x"]
    assert db.read_sync(scheduling.events_after, ["a.x", "b.x"], 2) == ["a.x"]
    assert db.read_sync(scheduling.events_after, ["a.x"], 3) == []
    assert db.read_sync(scheduling.events_after, [], 0) == []

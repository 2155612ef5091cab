"""Approvals: plans that are asked for, decided, changed, run and lost sight of, by two persons.

Every step is the product's own code on its own tables, on an SQLite store in memory:
`nightshift_skills.proposals.Proposals` (propose, confirm, decide) with its `asking.Asking` (expire, withdraw)
and `deciding.Deciding`,
`approvals.Approval.decided`,
`progress.Progress` (begin, stopped, ended, orphaned) and `runs.Run.moved`. Mirrored by hand:
`executor.Executor._carry_out`, which plans again before the first call and goes on under a plan of the
approved digest alone. The world has two versions; a plan is made for the one of its time.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from models.explorer import Step
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import NightshiftError
from nightshift_skills.approvals import Approval, ApprovalState
from nightshift_skills.asking import Asking
from nightshift_skills.books import Books
from nightshift_skills.catalogue import propose_config
from nightshift_skills.deciding import Deciding
from nightshift_skills.plans import Plan
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import ApprovalRule, Proposals, Wish
from nightshift_skills.runs import WAITING, Run, RunState
from nightshift_skills.store import decisions, tables

PEOPLE = ("spiffe://nightshift.local/person/admin/ada", "spiffe://nightshift.local/person/admin/bob")
TRIGGER = "trigger:idle"
_START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
# A question stays open for less than two steps of the clock.
_STEP_S, _TTL_S = 60.0, 100.0
_EXPIRED = 2
# Operations that look at nothing but one run and its approval, and those that do so with each.
OF_ONE = frozenset({"decide", "cancel", "begin", "stop", "end"})
OF_EACH = frozenset({"expire", "crash"})
_DECIDED = (ApprovalState.APPROVED, ApprovalState.DENIED)
_SKILL = propose_config.SKILL


class Wrong(StrEnum):
    """How approvals would be wrong."""

    DIGEST_NOT_COMPARED = "a decision need not name the plan that was seen"
    LAST_DECISION_COUNTS = "a second decision takes the place of the first"
    NOT_PLANNED_AGAIN = "an approved plan is run without looking whether it is still the plan"
    OUTDATED_STAYS_OPEN = "a plan that has changed leaves the old question open"
    EXPIRY_NOT_LOOKED_AT = "a question can be decided after it has expired"
    ONE_PERSON_IS_TWO = "two persons are asked for, and one with two roles counts as both"


class Entry(NamedTuple):
    """One run with its approval. `age` counts the clock's steps since it was asked for, while it is open."""

    run: RunState
    approval: ApprovalState
    version: int
    proposer: str
    decider: str
    age: int


def plan_of(version: int) -> Plan:
    """The plan for one version of the world; the digest is the product's."""
    return Plan(skill=_SKILL.name, subject="s", summary="s", calls=(), base_versions={"v": str(version)})


_PLANS = (plan_of(0), plan_of(1))


class _LastCounts(Deciding):
    def decided(self, connection: sa.Connection, approval: Approval, *args: Any) -> Approval:
        # Not `replace` on the row alone: its run keeps the state that the first decision gave it.
        if approval.state in _DECIDED:
            wanted = ApprovalState.APPROVED if args[0] else ApprovalState.DENIED
            return decisions.save_approval(connection, replace(approval, state=wanted, decider=args[3]))
        return super().decided(connection, approval, *args)


class _DigestFree(Deciding):
    def decided(self, connection: sa.Connection, approval: Approval, *args: Any) -> Approval:
        named = (args[0], approval.plan.digest, approval.nonce, *args[3:])
        return super().decided(connection, approval, *named)


class _LeavesOpen(Asking):
    def waiting(self, connection: sa.Connection, wish: Wish) -> Run | None:
        pending = decisions.pending_approvals(connection, wish.skill.id)
        same = [one for one in pending if one.plan.digest == wish.plan.digest]
        return decisions.get_run(connection, same[0].run) if same else None


class _NeverExpires(Deciding):
    def decided(self, connection: sa.Connection, approval: Approval, *args: Any) -> Approval:
        late = approval.expired(self._books.clock.now())
        endless = replace(approval, expire_time=dt.datetime.max.replace(tzinfo=dt.UTC)) if late else approval
        return super().decided(connection, endless, *args)


_ASKING: dict[Wrong | None, type[Asking]] = {Wrong.OUTDATED_STAYS_OPEN: _LeavesOpen}
_DECIDING: dict[Wrong | None, type[Deciding]] = {
    Wrong.LAST_DECISION_COUNTS: _LastCounts,
    Wrong.DIGEST_NOT_COMPARED: _DigestFree,
    Wrong.EXPIRY_NOT_LOOKED_AT: _NeverExpires,
}


class Office:
    """The product's approvals on a store in memory that is filled before each step and read after it."""

    def __init__(self, wrong: Wrong | None, two_person: bool) -> None:
        self._engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        tables.metadata.create_all(self._engine)
        self._clock = FakeClock(_START)
        self._ids = itertools.count()
        db: Any = None
        books = Books(db, Outbox("skills", self._clock), self._clock, lambda: f"new{next(self._ids):06d}")
        rule = ApprovalRule(_TTL_S, two_person)
        self.proposals = Proposals(books, rule, lambda _skill: 0.0)
        if wrong in _ASKING:
            self.proposals._asking = _ASKING[wrong](books, rule)
        if wrong in _DECIDING:
            self.proposals._deciding = _DECIDING[wrong](books, rule, lambda _skill: 0.0)
        self.progress = Progress(books, failed_rest_s=0.0)
        self._asked = cache(self.ask)

    def step(
        self, entries: tuple[Entry, ...], operation: str, *arguments: Any
    ) -> tuple[tuple[Entry, ...], str]:
        """As `ask`, but what concerns one run is asked of a store with that run alone.

        So each question is asked once, whatever stands beside that run; tests/models compares it with asking
        of the whole.
        """
        if operation in OF_ONE:
            number, *rest = arguments
            (after,), refused = self._asked((entries[number],), operation, 0, *rest)
            return (*entries[:number], after, *entries[number + 1 :]), refused
        if operation in OF_EACH:
            return tuple(self._asked((entry,), operation)[0][0] for entry in entries), ""
        return self._asked(entries, operation, *arguments)

    def ask(
        self, entries: tuple[Entry, ...], operation: str, *arguments: Any
    ) -> tuple[tuple[Entry, ...], str]:
        """Runs one operation in one transaction; the entries afterwards and the reason of a refusal."""
        work: Callable[..., Any] = getattr(self, f"_{operation}")
        refused = ""
        with self._engine.begin() as connection:
            for table in (tables.skill_runs, tables.approvals, tables.feeds, tables.cooldowns):
                connection.execute(table.delete())
            for number, entry in enumerate(entries):
                self._fill(connection, number, entry)
            inner = connection.begin_nested()
            try:
                work(connection, *arguments)
                inner.commit()
            except NightshiftError as error:
                inner.rollback()
                refused = error.reason
            return self._read(connection, entries), refused

    def _fill(self, connection: sa.Connection, number: int, entry: Entry) -> None:
        at = _START - dt.timedelta(seconds=_STEP_S * entry.age)
        ended = entry.run not in WAITING | {RunState.AWAITING_APPROVAL, RunState.RUNNING}
        run = Run(
            id=f"{number}",
            skill=_SKILL.id,
            subject="s",
            state=entry.run,
            plan=_PLANS[entry.version],
            parameters={},
            initiator=entry.proposer,
            on_purpose=False,
            create_time=at,
            approval=f"a{number}",
            end_time=at if ended else None,
        )
        decisions.save_run(connection, run)
        approval = Approval(
            id=f"a{number}",
            run=run.id,
            skill=_SKILL.id,
            subject="s",
            state=entry.approval,
            plan=run.plan,
            nonce=f"n{number}",
            proposer=entry.proposer,
            create_time=at,
            expire_time=at + dt.timedelta(seconds=_TTL_S),
            decider=entry.decider,
        )
        decisions.save_approval(connection, approval)

    @staticmethod
    def _read(connection: sa.Connection, before: tuple[Entry, ...]) -> tuple[Entry, ...]:
        entries = []
        # New ids sort behind the old ones, which are single digits.
        for number, run in enumerate(reversed(decisions.list_runs(connection, "", "", 100))):
            approval = decisions.get_approval(connection, run.approval)
            is_open = approval.state is ApprovalState.PENDING
            age = before[number].age if is_open and number < len(before) else 0
            version = _PLANS.index(next(plan for plan in _PLANS if plan.digest == run.plan.digest))
            entry = Entry(run.state, approval.state, version, approval.proposer, approval.decider, age)
            entries.append(entry)
        return tuple(entries)

    # Operations, each within the transaction of a step.

    def _propose(self, connection: sa.Connection, version: int, who: str) -> None:
        self.proposals._propose(connection, Wish(_SKILL, _PLANS[version], {}, who))

    def _confirm(self, connection: sa.Connection, version: int, who: str) -> None:
        self.proposals._confirm(connection, Wish(_SKILL, _PLANS[version], {}, who))

    def _decide(self, connection: sa.Connection, number: int, approve: bool, seen: int, who: str) -> None:
        digest = _PLANS[seen].digest
        self.proposals._decide(connection, f"a{number}", approve, digest, f"n{number}", who, "")

    def _expire(self, connection: sa.Connection) -> None:
        self.proposals._asking.expire(connection)

    def _cancel(self, connection: sa.Connection, number: int) -> None:
        self.proposals._asking.withdraw(connection, f"{number}", PEOPLE[0])
        self.progress._ended(connection, f"{number}", RunState.CANCELLED, "", None, 0.0, PEOPLE[0])

    def _begin(self, connection: sa.Connection, number: int) -> None:
        self.progress._begin(connection, f"{number}", None)

    def _stop(self, connection: sa.Connection, number: int) -> None:
        self.progress._stopped(connection, f"{number}", "user")

    def _crash(self, connection: sa.Connection) -> None:
        self.progress._orphaned(connection)

    def _end(self, connection: sa.Connection, number: int, state: RunState) -> None:
        self.progress._ended(connection, f"{number}", state, "", None, 0.0, "service/skills")


@dataclass(frozen=True, slots=True)
class State:
    """What stands in the store, the world, the time, and what only the model knows.

    `first` is each entry's first decision, and `effects` how often its call was done. `wrong` names what
    broke.
    """

    entries: tuple[Entry, ...] = ()
    version: int = 0
    first: tuple[str, ...] = ()
    effects: tuple[int, ...] = ()
    wrong: str = ""


class Approvals:
    """See the module."""

    def __init__(self, wrong: Wrong | None = None, *, two_person: bool = False, entries: int = 1) -> None:
        """Args: the variant, the two-person rule, and how many runs there may be."""
        self.wrong = wrong
        self._two_person = two_person or wrong is Wrong.ONE_PERSON_IS_TWO
        self._most = entries
        self._office = Office(wrong, self._two_person)

    @property
    def name(self) -> str:
        """Of the variant."""
        rule = "two persons" if self._two_person else "one person"
        return f"approvals: {self.wrong or f'{rule}, runs: {self._most}'}"

    def starts(self) -> Iterable[State]:
        """Nothing was asked for."""
        return [State()]

    def broken(self, state: State) -> str:
        """What must never be."""
        if state.wrong:
            return state.wrong
        open_plans = [entry for entry in state.entries if entry.approval is ApprovalState.PENDING]
        if len(open_plans) > 1:
            return "TWO_QUESTIONS_FOR_ONE_SUBJECT"
        for entry, first, effects in zip(state.entries, state.first, state.effects, strict=True):
            decided = entry.approval.value if entry.approval in _DECIDED else ""
            if first and first != f"{decided} {entry.decider}":
                return "A_DECISION_DID_NOT_STAND"
            waits = entry.run is RunState.AWAITING_APPROVAL
            if waits != (entry.approval is ApprovalState.PENDING):
                return "RUN_AND_APPROVAL_DISAGREE"
            if effects and entry.approval is not ApprovalState.APPROVED:
                return "EFFECT_WITHOUT_APPROVAL"
            if effects > 1:
                return "EFFECT_TWICE"
            if self._two_person and decided == "APPROVED" and _name(entry.decider) == _name(entry.proposer):
                return "APPROVED_BY_ITS_OWN_PROPOSER"
        return ""

    def goal(self, state: State) -> bool:
        """Nothing that was approved is open."""
        return not any(entry.run in WAITING | {RunState.RUNNING} for entry in state.entries)

    def steps(self, state: State) -> Iterator[Step]:
        """People, the clock, the world, and the executor."""
        if len(state.entries) < self._most:
            yield from self._asking(state)
        for number, entry in enumerate(state.entries):
            yield from self._deciding(state, number, entry)
            yield from self._running(state, number, entry)
        if any(entry.approval is ApprovalState.PENDING for entry in state.entries):
            passed = replace(state, entries=tuple(map(_older, state.entries)))
            yield Step("time passes", passed)
            yield Step("time passes, and the tick looks", self._done(passed, "expire"))
        if not state.version:
            yield Step("the world changes", replace(state, version=1), fault=True)
        if any(entry.run is RunState.RUNNING for entry in state.entries):
            yield Step("kill -9 of skills", self._done(state, "crash"), fault=True)

    def _asking(self, state: State) -> Iterator[Step]:
        # Two persons are alike until one of them has done something: the trigger and one of them will do.
        for who in (TRIGGER, PEOPLE[0]):
            after = self._done(state, "propose", state.version, who)
            yield Step(f"{_name(who)} proposes", after, fault=True)
        yield Step("ada confirms", self._done(state, "confirm", state.version, PEOPLE[0]), fault=True)

    def _deciding(self, state: State, number: int, entry: Entry) -> Iterator[Step]:
        if entry.run not in {RunState.AWAITING_APPROVAL, RunState.QUEUED, RunState.DENIED}:
            return
        people = (*PEOPLE, PEOPLE[0].replace("admin", "approver")) if self._two_person else PEOPLE
        for who, approve, seen in itertools.product(people, (True, False), (0, 1)):
            after = self._done(state, "decide", number, approve, seen, who)
            before, now = entry.approval, after.entries[number].approval
            if before is ApprovalState.PENDING and now in _DECIDED:
                wrong = after.wrong
                if seen != entry.version:
                    wrong = "DECIDED_WITHOUT_HAVING_SEEN_THE_PLAN"
                elif entry.age >= _EXPIRED:
                    wrong = "DECIDED_AFTER_ITS_END"
                after = replace(after, wrong=wrong)
            verb = "approves" if approve else "denies"
            yield Step(f"{_name(who)} {verb} run {number} (saw plan {seen})", after, fault=True)
        yield Step(f"run {number} is cancelled", self._done(state, "cancel", number), fault=True)

    def _running(self, state: State, number: int, entry: Entry) -> Iterator[Step]:
        if entry.run in WAITING:
            yield Step(f"run {number} begins", self._begun(state, number, entry))
        if entry.run is not RunState.RUNNING:
            return
        yield Step("a user comes", self._done(state, "stop", number), fault=True)
        if not state.effects[number]:
            effects = tuple(count + (place == number) for place, count in enumerate(state.effects))
            wrong = state.wrong
            if entry.approval is not ApprovalState.APPROVED:
                wrong = "EFFECT_WITHOUT_APPROVAL"
            yield Step(f"run {number} has its effect", replace(state, effects=effects, wrong=wrong))
        else:
            yield Step(f"run {number} ends", self._done(state, "end", number, RunState.SUCCEEDED))

    def _begun(self, state: State, number: int, entry: Entry) -> State:
        # Executor._carry_out: a call that was stored already is gone on with, whatever the plan is now.
        planned_again = state.effects[number] or self.wrong is Wrong.NOT_PLANNED_AGAIN
        if not planned_again and _PLANS[state.version].digest != _PLANS[entry.version].digest:
            return self._done(state, "end", number, RunState.FAILED)
        after = self._done(state, "begin", number)
        changed = not state.effects[number] and state.version != entry.version
        return replace(after, wrong="RAN_A_PLAN_THAT_HAD_CHANGED") if changed else after

    def _done(self, state: State, operation: str, *arguments: Any) -> State:
        entries, _ = self._office.step(state.entries, operation, *arguments)
        if self.wrong is Wrong.ONE_PERSON_IS_TWO and operation == "decide":
            # The wrong one compares whole ids, roles and all.
            number, approve, seen, who = arguments
            one = state.entries[number]
            open_yet = one.approval is ApprovalState.PENDING and seen == one.version
            if approve and open_yet and who != one.proposer and entries == state.entries:
                forced = one._replace(run=RunState.QUEUED, approval=ApprovalState.APPROVED, decider=who)
                entries = (*entries[:number], forced, *entries[number + 1 :])
        firsts = [*state.first, *[""] * (len(entries) - len(state.first))]
        for number, entry in enumerate(entries):
            if not firsts[number] and entry.approval in _DECIDED:
                firsts[number] = f"{entry.approval.value} {entry.decider}"
        effects = (*state.effects, *[0] * (len(entries) - len(state.effects)))
        return replace(state, entries=entries, first=tuple(firsts), effects=effects)


def _older(entry: Entry) -> Entry:
    if entry.approval is not ApprovalState.PENDING:
        return entry
    return entry._replace(age=min(entry.age + 1, _EXPIRED))


def _name(who: str) -> str:
    return who.rpartition("/")[2]

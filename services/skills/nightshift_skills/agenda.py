"""What is due, why (not), and its start: one reading of everything, one judgement a skill, then in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
import structlog

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import Tier
from nightshift_skills import schedule
from nightshift_skills.ages import Ages
from nightshift_skills.autonomy import Autonomy
from nightshift_skills.books import Books
from nightshift_skills.budgets import Budgets, Left, gpu_hours_of
from nightshift_skills.errors import BudgetExceeded
from nightshift_skills.events import Events
from nightshift_skills.executor import Executor
from nightshift_skills.gate import Gate
from nightshift_skills.planner import Planner
from nightshift_skills.plans import NothingToDo, Plan
from nightshift_skills.ports import ExperiencePort, LabPort
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import Proposals, Wish
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run
from nightshift_skills.schedule import Entry, Situation, SkillFacts
from nightshift_skills.skill import Condition, Facts, Limits, Skill
from nightshift_skills.store import decisions, scheduling
from nightshift_skills.store.decisions import Rest
from nightshift_skills.store.scheduling import Pause, TriggerMark, Usage
from nightshift_skills.triggers import AUTONOMOUS, Marks, Triggers

T = TypeVar("T")

_log = structlog.get_logger("nightshift.skills.agenda")


@dataclass(frozen=True, slots=True)
class _Page:
    """What the store says of one skill."""

    last: Run | None
    pending: int
    open_runs: int
    rest: Rest | None
    last_success: datetime | None
    marks: Marks
    events: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Book:
    """One reading of everything."""

    now: datetime
    pages: Mapping[str, _Page]
    usage: Mapping[str, Usage]
    pauses: Mapping[str, Pause]
    event_seq: int
    event_position: int
    asked_enough: Mapping[str, str]
    state: experience_pb.ExperienceState | None
    lab: lab_pb.LabState | None


class Agenda:
    """Judges all skills by the same reading, and starts or proposes what is due."""

    def __init__(
        self,
        *,
        registry: Registry,
        triggers: Triggers,
        budgets: Budgets,
        events: Events,
        autonomy: Autonomy,
        planner: Planner,
        proposals: Proposals,
        progress: Progress,
        executor: Executor,
        gate: Gate,
        books: Books,
        experience: ExperiencePort,
        lab: LabPort,
        limits: Limits,
    ) -> None:
        self._registry = registry
        self._triggers = triggers
        self._budgets = budgets
        self._events = events
        self._autonomy = autonomy
        self._planner = planner
        self._proposals = proposals
        self._progress = progress
        self._executor = executor
        self._gate = gate
        self._books = books
        self._experience = experience
        self._lab = lab
        self._limits = limits
        self._ages = Ages()
        self._waits = Ages()
        self._looked: dict[str, str] = {}
        # Boot clock of the last look that found nothing to do.
        self._empty_ns: dict[str, int] = {}

    async def begin(self) -> None:
        """Gives skills that were never looked at their first marks."""
        skills = [skill.id for skill in self._registry if AUTONOMOUS & set(skill.triggers)]
        await self._books.change(self._begin, skills)

    async def entries(self, situation: Situation) -> list[Entry]:
        """Each skill, and whether and why (not) it would run."""
        return self._judge(await self._read(), situation)

    async def start_due(self, situation: Situation, room: int) -> None:
        """Starts or proposes what is due, the oldest first, as long as the gate is open."""
        book = await self._read()
        for entry in schedule.in_turn(self._judge(book, situation)):
            if room <= 0 or not self._gate.is_open:
                return
            room -= await self._start_or_propose(entry, book, situation)

    async def left(self) -> Left:
        """What all skills together have left today."""
        now = self._books.clock.now()
        usage = await self._books.read(scheduling.get_usage, self._budgets.day(now))
        return self._budgets.left(usage, now)

    def look_anew(self) -> None:
        """Users were there: what was found before says nothing any more."""
        self._empty_ns.clear()

    def may_begin(self, skill: Skill, plan: Plan, situation: Situation, waited_s: float = 0.0) -> str:
        """Why a background plan that waits does not begin now, in words; "" where it may."""
        if not skill.background:
            return ""
        return situation.too_short_for(schedule.least_useful_s(skill, plan), waited_s)

    def held_back(self, runs: Sequence[Run], situation: Situation) -> dict[str, str]:
        """Of background runs that wait, by id: why those do not begin now that do not, in words."""
        now_ns = self._books.clock.boottime_ns()
        self._waits.keep({run.id for run in runs})
        held: dict[str, str] = {}
        for run in runs:
            waited_s = self._waits.age_s(run.id, now_ns) or 0.0
            why = self.may_begin(self._registry.get(run.skill), run.plan, situation, waited_s)
            if why:
                self._waits.wait(run.id, now_ns)
                held[run.id] = why
        return held

    # Reading and judging.

    async def _read(self) -> _Book:
        # Before anything else: an event that comes meanwhile is heard at the next look.
        position = self._events.position()
        state, lab = await asyncio.gather(
            _if_told(self._experience.get_state, self._limits.project), _if_told(self._lab.get_state)
        )
        return await self._books.read(self._book, state, lab, position)

    def _book(
        self,
        connection: sa.Connection,
        state: experience_pb.ExperienceState | None,
        lab: lab_pb.LabState | None,
        position: int,
    ) -> _Book:
        now = self._books.clock.now()
        marks = scheduling.list_marks(connection)
        event_seq = scheduling.last_event_seq(connection)
        asking = [
            skill.id
            for skill in self._registry
            if skill.tier is Tier.CONFIRM and AUTONOMOUS & set(skill.triggers)
        ]
        limits = self._proposals.limits(connection, asking)
        pages: dict[str, _Page] = {}
        for skill in self._registry:
            last, pending, open_runs, rest = decisions.skill_facts(
                connection, skill.id, self._limits.project, now
            )
            mark = marks.get(skill.id, TriggerMark(skill.id, now, None, event_seq))
            counts = self._triggers.new_runs_of(skill) > 0
            seen = scheduling.success_run_count(connection, skill.id) if counts else None
            came = scheduling.events_after(connection, skill.events, mark.event_seq)
            pages[skill.id] = _Page(
                last,
                pending,
                open_runs,
                rest,
                decisions.last_success_time(connection, skill.id),
                Marks(mark.since, mark.looked_time, seen),
                [*came, *self._events.since(skill.id)],
            )
        return _Book(
            now=now,
            pages=pages,
            usage=scheduling.get_usage(connection, self._budgets.day(now)),
            pauses=scheduling.list_pauses(connection),
            event_seq=event_seq,
            event_position=position,
            asked_enough={skill: limit.message for skill, limit in limits.items()},
            state=state,
            lab=lab,
        )

    def _judge(self, book: _Book, situation: Situation) -> list[Entry]:
        entries = [schedule.judge(skill, self._facts(skill, book), situation) for skill in self._registry]
        self._ages.look(entries, book.now, self._books.clock.boottime_ns())
        for entry in entries:
            if not entry.called_by and entry.facts.again_time is None:
                # Whatever calls for it next is something new.
                self._looked.pop(entry.skill.id, None)
        return entries

    def _facts(self, skill: Skill, book: _Book) -> SkillFacts:
        page = book.pages[skill.id]
        problem = ""
        try:
            self._registry.check_unmodified(skill.id)
        except NightshiftError as error:
            problem = error.message
        last_run_time = None if page.last is None else page.last.end_time
        now_ns = self._books.clock.boottime_ns()
        return SkillFacts(
            conditions=self._conditions(skill, book) if "idle" in skill.triggers else [],
            calls=self._triggers.calls(
                skill,
                page.marks,
                book.now,
                last_run_time=last_run_time,
                run_count=None if book.state is None else book.state.run_count,
                events=page.events,
            ),
            rest_until=None if page.rest is None else page.rest.until,
            pending=page.pending,
            open_runs=page.open_runs,
            last_run_time=last_run_time,
            problem=problem,
            lack=book.asked_enough.get(skill.id, "") or self._budgets.lacks(book.usage, book.now, skill.id),
            left=self._budgets.left(book.usage, book.now, skill.id),
            pause=book.pauses.get(skill.id),
            looked=self._looked.get(skill.id, ""),
            age_s=self._ages.age_s(skill.id, now_ns),
            again_time=self._again_time(skill, book.now, now_ns),
        )

    def _conditions(self, skill: Skill, book: _Book) -> Sequence[Condition]:
        page = book.pages[skill.id]
        facts = Facts(
            book.now,
            self._limits,
            book.state,
            book.lab,
            last_success=page.last_success,
            rest_s=skill.cooldown_s,
        )
        try:
            return list(skill.due(facts))
        except Exception:  # noqa: BLE001 - as for a plan
            _log.exception("condition broke", skill=skill.id)
            return [Condition(False, "An error of ours; the log says more.")]

    def _again_time(self, skill: Skill, now: datetime, now_ns: int) -> datetime | None:
        empty_ns = self._empty_ns.get(skill.id)
        if empty_ns is None:
            return None
        left_s = skill.look_again_s - (now_ns - empty_ns) / 1e9
        return now + timedelta(seconds=left_s) if left_s > 0 else None

    # Starting.

    async def _start_or_propose(self, entry: Entry, book: _Book, situation: Situation) -> int:
        """Background runs that it started: 0 or 1."""
        skill = entry.skill
        try:
            plan = await self._planner.plan(skill, {}, unwanted=lambda: not self._gate.is_open)
            if isinstance(plan, NothingToDo):
                self._looked[skill.id] = plan.reason
                self._empty_ns[skill.id] = self._books.clock.boottime_ns()
                self._ages.answered(skill.id)
                await self._heard(entry, book)
                return 0
            self._looked.pop(skill.id, None)
            why = self._keeps_back(entry, plan, book, situation)
            if why:
                self._looked[skill.id] = why
                return 0
            rest = await self._planner.rest(skill, plan.subject)
            if rest is not None:
                until = f"{rest.until:%Y-%m-%d %H:%M:%S} UTC"
                self._looked[skill.id] = f"It rests on {plan.subject} until {until} ({rest.cause})."
                return 0
            if not self._gate.is_open:
                return 0
            wish = Wish(
                skill,
                plan,
                {},
                f"trigger:{entry.called_by}",
                on_made=lambda connection, run: self._made(connection, run, entry, book),
            )
            if skill.tier is not Tier.AUTO:
                return await self._start_or_ask(wish, entry, book, situation)
            run = await self._proposals.start_unasked(wish)
            self._answered(skill, book)
        except BudgetExceeded as error:
            self._looked[skill.id] = error.message
            return 0
        except NightshiftError as error:
            _log.warning("skill not planned", skill=skill.id, reason=error.reason, error=error.message)
            self._looked[skill.id] = error.message
            return 0
        except Exception:  # noqa: BLE001 - a bug in one skill must not end the scheduler for all
            _log.exception("plan broke", skill=skill.id)
            self._looked[skill.id] = "An error of ours; the log says more."
            return 0
        try:
            self._executor.start(run, fresh=True)
        except NightshiftError:
            await self._progress.stopped(run.id, "user")
            return 0
        return 1

    async def _start_or_ask(self, wish: Wish, entry: Entry, book: _Book, situation: Situation) -> int:
        """A plan that was approved in advance starts; any other waits for a person."""
        skill = wish.skill
        standing = await self._autonomy.covering(wish.plan) if skill.tier is Tier.CONFIRM else None
        if standing is None:
            await self._proposals.propose(wish)
            self._answered(skill, book)
            return 0
        why = self.may_begin(skill, wish.plan, situation, entry.facts.age_s or 0.0)
        if why:
            self._looked[skill.id] = why
            return 0
        run = await self._proposals.start_standing(wish, standing.id, self._autonomy.use)
        self._answered(skill, book)
        self._executor.start(run)
        return 1

    def _answered(self, skill: Skill, book: _Book) -> None:
        self._events.heard(skill.id, book.event_position)
        self._ages.answered(skill.id)

    def _keeps_back(self, entry: Entry, plan: Plan, book: _Book, situation: Situation) -> str:
        """Why a plan is not started or proposed now, in words; "" where nothing keeps it back."""
        skill = entry.skill
        lack = self._budgets.lacks(
            book.usage, book.now, skill.id, cost_usd=plan.cost_usd, gpu_hours=gpu_hours_of(plan)
        )
        if lack or skill.tier is not Tier.AUTO:
            # A person may be asked at any time; when the plan then begins is another question.
            return lack
        return self.may_begin(skill, plan, situation, entry.facts.age_s or 0.0)

    async def _heard(self, entry: Entry, book: _Book) -> None:
        """Notes what called, so that it does not call again; an idle trigger calls as long as it is due."""
        self._events.heard(entry.skill.id, book.event_position)
        if any(call.fires and call.trigger in ("cron", "interval", "event") for call in entry.calls):
            await self._books.change(scheduling.looked, entry.skill.id, book.now, book.event_seq)

    def _made(self, connection: sa.Connection, run: Run, entry: Entry, book: _Book) -> None:
        """Within the transaction that makes the run: what called for it is answered."""
        scheduling.looked(connection, entry.skill.id, book.now, book.event_seq)
        if book.state is not None and self._triggers.new_runs_of(entry.skill) > 0:
            scheduling.save_run_mark(connection, run.id, entry.skill.id, book.state.run_count)

    def _begin(self, connection: sa.Connection, skills: Sequence[str]) -> None:
        scheduling.begin_marks(
            connection, skills, self._books.clock.now(), scheduling.last_event_seq(connection)
        )


async def _if_told(ask: Callable[..., Awaitable[T]], *about: str) -> T | None:
    """What a service answered; None where it cannot be asked."""
    # Asked here and not by the caller: who is cancelled before this runs leaves no question behind.
    try:
        return await ask(*about)
    except NightshiftError:
        return None

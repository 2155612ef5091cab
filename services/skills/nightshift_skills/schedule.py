"""Which skill would run next, and why (not). Pure: everything it judges by is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nightshift_kit.grants import Tier
from nightshift_skills.budgets import Left
from nightshift_skills.expected import CLEAN_S, LONGEST_WAIT_S, expected_now
from nightshift_skills.plans import Plan
from nightshift_skills.skill import Condition, Skill
from nightshift_skills.store.scheduling import Pause
from nightshift_skills.triggers import AUTONOMOUS, ORDER, Call


@dataclass(frozen=True, slots=True)
class Situation:
    """What stands in the way of autonomous work, whatever the skill.

    Attributes:
        now: When it was judged.
        monitor_known: Whether the monitor answered.
        idle: The monitor's verdict.
        platform_up: Whether the platform is there.
        idle_reasons: The monitor's reasons, as (allows idleness, words).
        locked: Whether the global lock is on.
        backoff_until: Until when background work stays away after pre-emptions.
        running: Background runs at work.
        max_running: How many may be.
        predicted_busy: When users are expected next, the beginning of this hour where they are expected now;
            None where nobody can tell.
        absent_s: For how long they are expected already and none has come.
    """

    now: datetime
    monitor_known: bool
    idle: bool
    platform_up: bool
    idle_reasons: tuple[tuple[bool, str], ...] = ()
    locked: bool = False
    backoff_until: datetime | None = None
    running: int = 0
    max_running: int = 1
    predicted_busy: datetime | None = None
    absent_s: float = 0.0

    @property
    def backing_off(self) -> bool:
        """Whether a back-off is in force."""
        return self.backoff_until is not None and self.now < self.backoff_until

    @property
    def quiet(self) -> bool:
        """Whether background work may run at all."""
        return (
            self.monitor_known and self.idle and self.platform_up and not self.locked and not self.backing_off
        )

    @property
    def room(self) -> bool:
        """Whether one more background run may start."""
        return self.quiet and self.running < self.max_running

    def too_short_for(self, least_s: float, waited_s: float = 0.0) -> str:
        """Why work that needs so long, in seconds, does not start now, in words; "" where it may.

        An hour in which users are expected leaves no time at all, unless they stayed away for a clean hour of
        those, or the work has waited for a day (`waited_s`): then it takes what quiet there is, and makes
        room as always. An hour that is over says nothing about what comes.
        """
        busy = self.predicted_busy
        if busy is None or least_s <= 0:
            return ""
        if busy > self.now:
            left_s = (busy - self.now).total_seconds()
            if least_s <= left_s:
                return ""
            return (
                f"Users are expected at {_when(busy)}; it needs {least_s:.0f} s to be of use, "
                f"and {left_s:.0f} s are left."
            )
        stayed_away = self.absent_s >= CLEAN_S or waited_s >= LONGEST_WAIT_S
        if stayed_away or not expected_now(busy, self.now):
            return ""
        return (
            f"Users are expected in this hour; it needs {least_s:.0f} s to be of use, and starts once nobody "
            "came for an hour, or after waiting for a day."
        )

    def reasons(self) -> list[str]:
        """Each condition in words, the blocking ones first."""
        return self.blocking() + [words for allows, words in self.idle_reasons if allows]

    def blocking(self) -> list[str]:
        """What keeps background work from starting, in words."""
        blocking: list[str] = []
        if self.locked:
            blocking.append("The global lock is on.")
        if not self.monitor_known:
            blocking.append("The monitor cannot be asked whether the machine is idle.")
        elif not self.platform_up:
            blocking.append("Nothing starts by itself while the platform is not known to be up.")
        blocking += [words for allows, words in self.idle_reasons if not allows]
        if self.backing_off:
            assert self.backoff_until is not None
            blocking.append(
                f"Users came back before; background work waits until {_when(self.backoff_until)}."
            )
        if self.quiet and self.running >= self.max_running:
            blocking.append(f"{self.running} background run is at work; more have to wait.")
        return blocking


@dataclass(frozen=True, slots=True)
class SkillFacts:
    """What is known of one skill.

    Attributes:
        conditions: Of its idle trigger.
        calls: Its other triggers as they are now.
        rest_until: Until when it rests on its usual subject.
        pending: Approvals of it that wait for a person.
        open_runs: Runs of it that have not ended (waiting ones included).
        last_run_time: When it last ended.
        problem: Why it cannot run at all (its code was changed); "" if it can.
        lack: What its budget lacks; "" if there is enough left.
        left: What is left of its budget.
        pause: That its triggers are paused.
        looked: What came of the last look at it, where that started nothing; "" otherwise.
        age_s: For how long it has been called for without running; None if nothing calls for it.
        again_time: When idleness calls for it again after a look that found nothing; None if it does already.
    """

    conditions: Sequence[Condition] = ()
    calls: Sequence[Call] = ()
    rest_until: datetime | None = None
    pending: int = 0
    open_runs: int = 0
    last_run_time: datetime | None = None
    problem: str = ""
    lack: str = ""
    left: Left | None = None
    pause: Pause | None = None
    looked: str = ""
    age_s: float | None = None
    again_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """Whether a skill is to be looked at on the next turn, and why (not)."""

    skill: Skill
    due: bool
    reasons: tuple[str, ...]
    next_time: datetime | None
    last_run_time: datetime | None
    calls: tuple[Call, ...] = ()
    called_by: str = ""
    facts: SkillFacts = SkillFacts()

    @property
    def starts(self) -> bool:
        """Whether it would be started or proposed, as far as can be told: not if the last look said no."""
        return self.due and not self.facts.looked


def least_useful_s(skill: Skill, plan: Plan | None = None) -> float:
    """Less time than this, in seconds, is of no use to a skill, or to its plan."""
    if skill.least_useful_s is not None:
        return skill.least_useful_s
    return 0.0 if plan is None else plan.duration_s


def calls_of(skill: Skill, facts: SkillFacts) -> tuple[Call, ...]:
    """Each trigger of a skill, the idle one included."""
    calls = list(facts.calls)
    if "idle" in skill.triggers and facts.again_time is not None:
        again = f"There was nothing to do; it is looked at again at {_when(facts.again_time)}."
        calls.append(Call("idle", False, again, facts.again_time))
    elif "idle" in skill.triggers:
        fires = all(condition.met for condition in facts.conditions)
        text = " ".join(condition.text for condition in facts.conditions if condition.met is fires)
        calls.append(Call("idle", fires, text or "It is always of use while the machine is idle."))
    return tuple(sorted(calls, key=lambda call: ORDER.index(call.trigger)))


def judge(skill: Skill, facts: SkillFacts, situation: Situation) -> Entry:
    """One skill's entry in the schedule."""
    blocking: list[str] = []
    supporting: list[str] = []
    calls = calls_of(skill, facts)
    firing = [call for call in calls if call.fires]
    if facts.problem:
        blocking.append(facts.problem)
    if facts.pause is not None:
        blocking.append(f"Its triggers were paused by {facts.pause.actor}.")
    if skill.tier is Tier.MANUAL:
        blocking.append("It happens only on a person's command.")
    elif not calls and "tick" not in skill.triggers:
        blocking.append("It starts on a person's command only.")
    resting = facts.rest_until is not None and situation.now < facts.rest_until
    if resting:
        assert facts.rest_until is not None
        blocking.append(f"It rests until {_when(facts.rest_until)}.")
    if facts.pending:
        blocking.append(f"{facts.pending} plan of it waits for a person.")
    if facts.open_runs > facts.pending:
        blocking.append(f"{facts.open_runs - facts.pending} run of it is at work or waits for quiet.")
    if firing:
        supporting += [call.text for call in firing]
    else:
        blocking += [call.text for call in calls]
    if "tick" in skill.triggers:
        # A look at the plane is no background work: it goes on whoever is there.
        if situation.locked:
            blocking.append("The global lock is on.")
        if not blocking:
            supporting.append("It runs on each tick.")
    else:
        if facts.lack and AUTONOMOUS & set(skill.triggers):
            blocking.append(facts.lack)
        # A person may be asked at any time; when the plan then begins is another question.
        asks = skill.tier is not Tier.AUTO
        too_short = "" if asks else situation.too_short_for(least_useful_s(skill), facts.age_s or 0.0)
        if too_short:
            blocking.append(too_short)
        if not situation.room:
            blocking.extend(situation.reasons()[:3] or ["The machine is not idle."])
    if facts.looked:
        supporting.insert(0, f"When last looked at: {facts.looked}")
    return Entry(
        skill=skill,
        due=not blocking,
        reasons=(*blocking, *supporting),
        next_time=facts.rest_until if resting else _next_time(calls, firing, situation.now),
        last_run_time=facts.last_run_time,
        calls=calls,
        called_by=firing[0].trigger if firing else "",
        facts=facts,
    )


def waiting(entry: Entry, now: datetime) -> bool:
    """Whether something calls for a skill that neither runs nor rests, and may start by itself: it ages."""
    facts = entry.facts
    resting = facts.rest_until is not None and now < facts.rest_until
    may = entry.skill.tier is not Tier.MANUAL and facts.pause is None
    return bool(entry.called_by) and may and not resting and not facts.open_runs


def _next_time(calls: Sequence[Call], firing: Sequence[Call], now: datetime) -> datetime | None:
    if firing:
        return None
    return min((call.next_time for call in calls if call.next_time and call.next_time > now), default=None)


def in_turn(entries: Sequence[Entry]) -> list[Entry]:
    """Due work in the order of its age: what was called for longest ago comes first; nothing starves.

    Work that runs is called for anew only after it ended, and is then younger than all that waited meanwhile.
    """
    due = [entry for entry in entries if entry.due and entry.called_by]

    def rank(entry: Entry) -> tuple[float, float]:
        age_s = entry.facts.age_s or 0.0
        return -age_s, entry.last_run_time.timestamp() if entry.last_run_time else 0.0

    return sorted(due, key=rank)


def _when(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"

"""Which skill would run next, and why (not). Pure: everything it judges by is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nightshift_kit.grants import Tier
from nightshift_skills.skill import Condition, Skill


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
        conditions: Of its trigger.
        rest_until: Until when it rests on its usual subject.
        pending: Approvals of it that wait for a person.
        open_runs: Runs of it that have not ended (waiting ones included).
        last_run_time: When it last ended.
        problem: Why it cannot run at all (its code was changed); "" if it can.
    """

    conditions: Sequence[Condition] = ()
    rest_until: datetime | None = None
    pending: int = 0
    open_runs: int = 0
    last_run_time: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """Whether the next tick would start or propose a skill, and why (not)."""

    skill: Skill
    due: bool
    reasons: tuple[str, ...]
    next_time: datetime | None
    last_run_time: datetime | None


def judge(skill: Skill, facts: SkillFacts, situation: Situation) -> Entry:
    """One skill's entry in the schedule."""
    blocking: list[str] = []
    supporting: list[str] = []
    if facts.problem:
        blocking.append(facts.problem)
    if skill.tier is Tier.MANUAL:
        blocking.append("It happens only on a person's command.")
    elif "idle" not in skill.triggers and "tick" not in skill.triggers:
        blocking.append("It starts on a person's command only.")
    resting = facts.rest_until is not None and situation.now < facts.rest_until
    if resting:
        assert facts.rest_until is not None
        blocking.append(f"It rests until {_when(facts.rest_until)}.")
    if facts.pending:
        blocking.append(f"{facts.pending} plan of it waits for a person.")
    if facts.open_runs > facts.pending:
        blocking.append(f"{facts.open_runs - facts.pending} run of it is at work or waits for quiet.")
    for condition in facts.conditions:
        (supporting if condition.met else blocking).append(condition.text)
    if "tick" in skill.triggers:
        # A look at the plane is no background work: it goes on whoever is there.
        if situation.locked:
            blocking.append("The global lock is on.")
        if not blocking:
            supporting.append("It runs on each tick.")
    elif not situation.room:
        blocking.extend(situation.reasons()[:3] or ["The machine is not idle."])
    return Entry(
        skill=skill,
        due=not blocking,
        reasons=(*blocking, *supporting),
        next_time=facts.rest_until if resting else None,
        last_run_time=facts.last_run_time,
    )


def in_turn(entries: Sequence[Entry]) -> list[Entry]:
    """Due idle work, the one that has waited longest first, so that nothing starves."""
    due = [entry for entry in entries if entry.due and "idle" in entry.skill.triggers]
    return sorted(due, key=lambda entry: entry.last_run_time.timestamp() if entry.last_run_time else 0.0)


def _when(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"

"""When a skill is called for: cron times, intervals, new runs, events. Pure: the time is an argument.

What a trigger has called for already is kept in its marks, so that a time which was missed (the plane was
down, a user was there) is caught up once, however many there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from nightshift_kit.errors import SettingsInvalid
from nightshift_skills.registry import Registry
from nightshift_skills.skill import Skill

AUTONOMOUS = frozenset({"idle", "interval", "cron", "new_data", "event"})
# The order in which a run names what called for it.
ORDER = ("cron", "event", "interval", "new_data", "idle")
# A mark further ahead than this was made by a clock that was wrong.
_AHEAD = timedelta(hours=1)
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Cron:
    """One expression of five fields, as Debian's cron reads it, in a time zone.

    A time of day that a change of the clocks leaves out comes right after the change; one that it repeats
    comes once. Expressions that run each hour or minute follow the hours that pass.
    """

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, zone: ZoneInfo) -> Cron:
        """Raises ValueError for what is no expression, or never comes."""
        if len(expression.split()) != _FIELDS:
            raise ValueError(f"{expression!r} has not five fields")
        try:
            next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            raise ValueError(f"{expression!r} is no cron expression: {error}") from error
        except StopIteration as error:
            raise ValueError(f"{expression!r} never comes") from error
        return cls(expression, zone)

    def after(self, instant: datetime) -> datetime:
        """The first time later than an instant, in UTC."""
        for found in CronSim(self.expression, instant.astimezone(self.zone)):
            at = found.astimezone(UTC)
            # Within a repeated hour a wall-clock time may lie before the instant.
            if at > instant:
                return at
        raise ValueError(f"{self.expression!r} does not come any more")


@dataclass(frozen=True, slots=True)
class Timing:
    """What the settings and the declaration say about one skill's triggers."""

    crons: tuple[Cron, ...] = ()
    interval_s: float = 0.0
    new_runs: int = 0


@dataclass(frozen=True, slots=True)
class Marks:
    """What the triggers of one skill have called for already.

    Attributes:
        since: From when on times count: when the skill was first looked at.
        looked_time: When cron and interval last called for it.
        success_run_count: Runs that experience held when its last successful run was made; None if unknown.
    """

    since: datetime
    looked_time: datetime | None = None
    success_run_count: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One trigger as it is now; `next_time` where a clock can tell it."""

    trigger: str
    fires: bool
    text: str
    next_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Triggers:
    """The timing of all skills."""

    zone: ZoneInfo
    timings: Mapping[str, Timing] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        registry: Registry,
        zone: ZoneInfo,
        *,
        crons: Mapping[str, Sequence[str]],
        intervals_s: Mapping[str, float],
        new_runs: Mapping[str, int],
    ) -> Triggers:
        """Takes the settings on.

        Raises:
            SkillUnknown: a setting names no skill.
            SettingsInvalid: an expression is none, or a skill that only persons start is given a trigger.
        """
        for name in (*crons, *intervals_s, *new_runs):
            skill = registry.get(name)
            if not AUTONOMOUS & set(skill.triggers):
                raise SettingsInvalid(
                    f"[skills]: {name} starts on a person's command only; it has no trigger."
                )
        timings: dict[str, Timing] = {}
        for skill in registry:
            try:
                parsed = tuple(Cron.parse(text, zone) for text in crons.get(skill.id, ()))
            except ValueError as error:
                raise SettingsInvalid(f"[skills] crons, {skill.id}: {error}.") from error
            timings[skill.id] = Timing(
                parsed,
                intervals_s.get(skill.id, skill.interval_s),
                new_runs.get(skill.id, skill.new_runs),
            )
        return cls(zone, timings)

    def new_runs_of(self, skill: Skill) -> int:
        """New runs that call for a skill; 0 where their number does not."""
        return self.timings.get(skill.id, Timing()).new_runs

    def calls(
        self,
        skill: Skill,
        marks: Marks,
        now: datetime,
        *,
        last_run_time: datetime | None = None,
        run_count: int | None = None,
        events: Sequence[str] = (),
    ) -> list[Call]:
        """Each clock, data and event trigger of a skill as it is now.

        Args:
            skill: Which.
            marks: What was called for already.
            now: The time.
            last_run_time: When it last ended, whoever started it.
            run_count: Runs that experience holds; None where it could not be asked.
            events: Kinds of events that came since the last look, and in-memory ones.
        """
        timing = self.timings.get(skill.id, Timing())
        found: list[Call] = []
        if "cron" in skill.triggers or timing.crons:
            found.append(self._cron(timing, marks, now))
        if timing.interval_s > 0:
            found.append(_interval(timing.interval_s, marks, now, last_run_time))
        if timing.new_runs > 0:
            found.append(_new_data(timing.new_runs, marks, run_count))
        if skill.events:
            found.append(_event(skill.events, events))
        return found

    def _cron(self, timing: Timing, marks: Marks, now: datetime) -> Call:
        if not timing.crons:
            return Call("cron", False, "It has a cron trigger, and [skills] crons names no time for it.")
        handled = _sane(marks.looked_time, now) or _sane(marks.since, now) or now
        following = min(cron.after(now) for cron in timing.crons)
        missed = min(cron.after(handled) for cron in timing.crons)
        if missed <= now:
            return Call("cron", True, f"Its time of {self._local(missed)} has come.", following)
        return Call("cron", False, f"Its next time is {self._local(following)}.", following)

    def _local(self, instant: datetime) -> str:
        return f"{instant.astimezone(self.zone):%Y-%m-%d %H:%M} ({self.zone.key})"


def _interval(interval_s: float, marks: Marks, now: datetime, last_run_time: datetime | None) -> Call:
    last = max(filter(None, (_sane(marks.looked_time, now), _sane(last_run_time, now))), default=None)
    due = now if last is None else last + timedelta(seconds=interval_s)
    if due <= now:
        return Call("interval", True, f"Its interval of {interval_s:.0f} s is over.", now)
    return Call("interval", False, f"Its interval of {interval_s:.0f} s is not over.", due)


def _new_data(threshold: int, marks: Marks, run_count: int | None) -> Call:
    if run_count is None:
        return Call("new_data", False, "Experience cannot be asked.")
    # Runs can become fewer: what a person asked to forget is gone.
    new = max(0, run_count - (marks.success_run_count or 0))
    return Call("new_data", new >= threshold, f"{new} runs since its last success; {threshold} call for it.")


def _event(wanted: Sequence[str], came: Sequence[str]) -> Call:
    heard = [kind for kind in wanted if kind in came]
    if heard:
        return Call("event", True, f"It happened: {', '.join(heard)}.")
    return Call("event", False, f"It waits for: {', '.join(wanted)}.")


def _sane(instant: datetime | None, now: datetime) -> datetime | None:
    """An instant of the past; None for one that only a wrong clock can have made."""
    return None if instant is None or instant > now + _AHEAD else min(instant, now)

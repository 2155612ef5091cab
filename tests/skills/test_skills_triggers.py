"""Triggers, ages, budgets, the predicted window and the back-off: the pure parts of the scheduler."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import SettingsInvalid
from nightshift_kit.grants import Tier
from nightshift_skills.ages import Ages
from nightshift_skills.backoff import Backoff, BackoffRule
from nightshift_skills.budgets import Budget, Budgets, BudgetSettings, gpu_hours_of
from nightshift_skills.catalogue import BUILT_IN
from nightshift_skills.errors import SkillUnknown
from nightshift_skills.events import Events
from nightshift_skills.expected import Expected
from nightshift_skills.plans import Plan
from nightshift_skills.preemption_log import PreemptionLog
from nightshift_skills.registry import Registry
from nightshift_skills.schedule import Situation, SkillFacts, in_turn, judge, least_useful_s
from nightshift_skills.skill import Condition, Facts, Limits, Skill
from nightshift_skills.store.plane import Preemption
from nightshift_skills.store.scheduling import Pause, Usage
from nightshift_skills.triggers import Call, Cron, Marks, Timing, Triggers

BERLIN = ZoneInfo("Europe/Berlin")
AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SKILLS = {skill.id: skill for skill in BUILT_IN}
QUIET = Situation(now=AT, monitor_known=True, idle=True, platform_up=True)


def registry() -> Registry:
    return Registry(BUILT_IN, tiers={}, cooldowns_s={})


def always(name: str, **changes: object) -> Skill:
    """A skill that is of use whenever the machine is idle."""
    skill = replace(SKILLS["build_embeddings"], id=name, due=lambda _facts: (), cooldown_s=0)
    return replace(skill, **changes)  # type: ignore[arg-type]


class TestCron:
    def test_a_time_that_the_clocks_leave_out_comes_right_after_and_a_repeated_one_once(self) -> None:
        cron = Cron.parse("30 2 * * *", BERLIN)
        spring = cron.after(datetime(2026, 3, 28, 12, tzinfo=BERLIN))
        assert spring == datetime(2026, 3, 29, 3, 0, tzinfo=BERLIN)
        assert cron.after(spring) == datetime(2026, 3, 30, 2, 30, tzinfo=BERLIN)
        autumn = cron.after(datetime(2026, 10, 24, 12, tzinfo=BERLIN))
        assert autumn == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
        # Asked within the repeated hour, it is tomorrow's.
        for minutes in (0, 1, 29, 30, 59, 60, 89):
            following = cron.after(autumn + timedelta(minutes=minutes))
            assert following == datetime(2026, 10, 26, 1, 30, tzinfo=UTC), minutes

    def test_what_runs_each_hour_follows_the_hours_that_pass(self) -> None:
        cron = Cron.parse("0 * * * *", BERLIN)
        at = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
        times = []
        for _ in range(5):
            at = cron.after(at)
            times.append(at)
        assert [b - a for a, b in pairwise(times)] == [timedelta(hours=1)] * 4

    def test_workdays_at_nine_are_nine_on_the_wall(self) -> None:
        cron = Cron.parse("0 9 * * 1-5", BERLIN)
        at = datetime(2026, 3, 26, tzinfo=UTC)
        for _ in range(250):
            at = cron.after(at)
            local = at.astimezone(BERLIN)
            assert (local.hour, local.minute) == (9, 0)
            assert local.isoweekday() <= 5

    @pytest.mark.parametrize(
        "text",
        ["", "* * * *", "* * * * * *", "61 * * * *", "0 0 30 2 *", "@daily", "a b c d e", "0 24 * * *"],
    )
    def test_what_is_none_or_never_comes_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"fields|cron expression|never"):
            Cron.parse(text, BERLIN)

    @settings(deadline=None)
    @given(
        minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
        hours=st.sets(st.integers(0, 23), min_size=1, max_size=3),
        weekdays=st.sets(st.integers(0, 6), min_size=1, max_size=7),
        minute=st.integers(0, 5 * 365 * 1440),
        zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    )
    def test_the_next_time_is_the_first_that_fits_on_the_wall(
        self, minutes: set[int], hours: set[int], weekdays: set[int], minute: int, zone: str
    ) -> None:
        start = datetime(2025, 1, 1, 0, 0, 30, tzinfo=UTC) + timedelta(minutes=minute)

        def written(numbers: set[int]) -> str:
            return ",".join(map(str, sorted(numbers)))

        place = ZoneInfo(zone)
        expression = f"{written(minutes)} {written(hours)} * * {written(weekdays)}"
        found = Cron.parse(expression, place).after(start)
        assert found > start

        def fits(instant: datetime) -> bool:
            local = instant.astimezone(place)
            return local.minute in minutes and local.hour in hours and local.isoweekday() % 7 in weekdays

        at = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
        first = next(at + timedelta(minutes=n) for n in range(8 * 1440) if fits(at + timedelta(minutes=n)))
        jumps = {(start + timedelta(hours=n)).astimezone(place).utcoffset() for n in range(9 * 24)}
        if len(jumps) == 1:
            assert found == first
        else:
            # Around a change of the clocks a time may come right after a gap, or not a second time.
            assert found - start < timedelta(days=8)


class TestTriggers:
    def triggers(self, **timing: object) -> Triggers:
        return Triggers(BERLIN, {"build_embeddings": Timing(**timing)})  # type: ignore[arg-type]

    def call(self, marks: Marks, now: datetime, timing: dict[str, object], **known: object) -> Call:
        skill = SKILLS["build_embeddings"]
        (call,) = self.triggers(**timing).calls(skill, marks, now, **known)  # type: ignore[arg-type]
        return call

    def test_missed_times_are_caught_up_once(self) -> None:
        timing: dict[str, object] = {"crons": (Cron.parse("0 9 * * *", BERLIN),)}
        marks = Marks(since=AT)
        assert not self.call(marks, AT, timing).fires
        assert self.call(marks, AT, timing).next_time == datetime(2026, 3, 4, 8, 0, tzinfo=UTC)
        # The plane was down for ten days.
        later = AT + timedelta(days=10)
        call = self.call(marks, later, timing)
        assert call.fires
        assert "2026-03-04 09:00" in call.text
        after = replace(marks, looked_time=later)
        call = self.call(after, later, timing)
        assert not call.fires
        assert call.next_time is not None
        assert call.next_time > later

    @settings(deadline=None)
    @given(
        st.lists(st.one_of(st.floats(0, 200_000), st.floats(-200_000, 0)), min_size=1, max_size=40),
        st.sampled_from(["0 9 * * *", "*/7 * * * *", "30 2 * * 0", "0 0 1 * *"]),
    )
    def test_no_two_looks_are_answered_for_the_same_time(self, jumps: list[float], text: str) -> None:
        """Whatever the wall clock does, a call that was answered does not fire again at the same instant."""
        cron = Cron.parse(text, BERLIN)
        marks, now = Marks(since=AT), AT
        for jump in jumps:
            now += timedelta(seconds=jump)
            if self.call(marks, now, {"crons": (cron,)}).fires:
                marks = replace(marks, looked_time=now)
                assert not self.call(marks, now, {"crons": (cron,)}).fires

    def test_a_clock_that_was_wrong_for_years_keeps_no_time_from_coming(self) -> None:
        cron = Cron.parse("0 9 * * *", BERLIN)
        wrong = Marks(since=AT, looked_time=AT + timedelta(days=900))
        assert self.call(wrong, AT + timedelta(days=1), {"crons": (cron,)}).fires
        assert self.call(wrong, AT + timedelta(days=1), {"interval_s": 60.0}).fires

    def test_intervals_count_from_the_last_run_whoever_started_it(self) -> None:
        timing: dict[str, object] = {"interval_s": 3600.0}
        assert self.call(Marks(AT), AT, timing).fires
        ran = AT - timedelta(minutes=59)
        call = self.call(Marks(AT), AT, timing, last_run_time=ran)
        assert (call.fires, call.next_time) == (False, AT + timedelta(minutes=1))
        assert self.call(Marks(AT), AT + timedelta(minutes=1), timing, last_run_time=ran).fires

    def test_new_runs_count_from_the_last_success(self) -> None:
        timing: dict[str, object] = {"new_runs": 50}
        assert not self.call(Marks(AT), AT, timing, run_count=None).fires
        assert self.call(Marks(AT), AT, timing, run_count=50).fires
        seen = Marks(AT, success_run_count=50)
        assert not self.call(seen, AT, timing, run_count=99).fires
        assert self.call(seen, AT, timing, run_count=100).fires
        assert not self.call(seen, AT, timing, run_count=3).fires, "runs may be forgotten"

    def test_a_cron_trigger_without_a_time_says_so(self) -> None:
        skill = always("preloader", triggers=("cron", "command"))
        calls = Triggers(BERLIN, {}).calls(skill, Marks(AT), AT)
        assert [call.fires for call in calls] == [False]
        entry = judge(skill, SkillFacts(calls=calls), QUIET)
        assert not entry.due
        assert "names no time" in entry.reasons[0]

    def test_settings_are_refused_at_the_start(self) -> None:
        def made(**told: object) -> Triggers:
            given_: dict[str, object] = {"crons": {}, "intervals_s": {}, "new_runs": {}, **told}
            return Triggers.of(registry(), BERLIN, **given_)  # type: ignore[arg-type]

        with pytest.raises(SettingsInvalid, match="propose_config"):
            made(crons={"propose_config": ["0 0 31 2 *"]})
        with pytest.raises(SettingsInvalid, match="person's command"):
            made(crons={"train_adapter": ["0 9 * * *"]})
        with pytest.raises(SettingsInvalid, match="person's command"):
            made(intervals_s={"rollback": 5.0})
        with pytest.raises(SkillUnknown):
            made(new_runs={"nobody": 5})
        assert made(new_runs={"propose_config": 5}).new_runs_of(SKILLS["propose_config"]) == 5

    def test_events_are_heard_once_by_each_skill(self) -> None:
        events, woken = Events(), []
        events.wake_for(["a", "b"], lambda: woken.append(1))
        events.publish("a")
        events.publish("c")
        events.sealed(["x", "b"])
        assert len(woken) == 2
        assert events.since("s") == ["a", "c"]
        position = events.position()
        events.publish("a")
        events.heard("s", position)
        assert events.since("s") == ["a"]
        assert events.since("other") == ["a", "c"]
        skill = always("listener", triggers=("event",), events=("a",))
        (call,) = Triggers(BERLIN).calls(skill, Marks(AT), AT, events=events.since("s"))
        assert call.fires
        (call,) = Triggers(BERLIN).calls(skill, Marks(AT), AT, events=["c"])
        assert not call.fires


@dataclass
class Machine:
    """Idle work one after another, in the order that the schedule gives."""

    durations_s: list[float]
    clock: FakeClock
    ages: Ages
    ran: list[str]

    def work(self, rounds: int) -> None:
        skills = [always(f"s{number}") for number in range(len(self.durations_s))]
        ended: dict[str, datetime] = {}
        for _ in range(rounds):
            now, now_ns = self.clock.now(), self.clock.boottime_ns()
            entries = [
                judge(
                    skill,
                    SkillFacts(last_run_time=ended.get(skill.id), age_s=self.ages.age_s(skill.id, now_ns)),
                    replace(QUIET, now=now),
                )
                for skill in skills
            ]
            self.ages.look(entries, now, now_ns)
            first = in_turn(entries)[0].skill.id
            self.ages.answered(first)
            self.clock.advance(self.durations_s[int(first[1:])])
            self.ran.append(first)
            ended[first] = self.clock.now()


class TestAging:
    @settings(deadline=None)
    @given(st.lists(st.floats(0.001, 50_000), min_size=5, max_size=5), st.floats(-90_000, 90_000))
    def test_nothing_starves_whatever_takes_how_long(self, durations_s: list[float], jump_s: float) -> None:
        machine = Machine(durations_s, FakeClock(AT), Ages(), [])
        machine.work(5)
        machine.clock.jump(jump_s)
        machine.work(20)
        for begin in range(0, 25, 5):
            # Nobody is taken twice before all others were.
            assert len(set(machine.ran[begin : begin + 5])) == 5, machine.ran

    def test_what_may_not_run_does_not_age(self) -> None:
        ages, skill = Ages(), always("s")
        for facts in (
            SkillFacts(open_runs=1),
            SkillFacts(rest_until=AT + timedelta(seconds=1)),
            SkillFacts(pause=Pause("s", True, "me", "", AT)),
            SkillFacts(conditions=[Condition(False, "nothing new")]),
        ):
            ages.look([judge(skill, facts, QUIET)], AT, 0)
            assert ages.age_s("s", 10) is None
        # A user keeps it from running, and it ages all the same.
        ages.look([judge(skill, SkillFacts(), replace(QUIET, idle=False))], AT, 0)
        assert ages.age_s("s", 5 * 10**9) == 5

    def test_age_puts_nothing_above_users(self) -> None:
        old = SkillFacts(age_s=1e9)
        assert not judge(always("s"), old, replace(QUIET, idle=False)).due
        assert in_turn([judge(always("s"), old, replace(QUIET, idle=False))]) == []

    def test_paused_triggers_say_by_whom(self) -> None:
        entry = judge(always("s"), SkillFacts(pause=Pause("s", True, "ada", "", AT)), QUIET)
        assert not entry.due
        assert "ada" in entry.reasons[0]

    def test_a_confirm_skill_is_due_to_be_proposed_and_a_manual_one_never(self) -> None:
        assert judge(always("s", tier=Tier.CONFIRM), SkillFacts(), QUIET).due
        assert not judge(always("s", tier=Tier.MANUAL), SkillFacts(), QUIET).due


class TestPredictedWindow:
    def test_no_job_starts_that_users_would_stop_before_it_is_of_use(self) -> None:
        window = replace(QUIET, predicted_busy=AT + timedelta(seconds=600))
        entry = judge(always("s", least_useful_s=601.0), SkillFacts(), window)
        assert not entry.due
        assert "Users are expected at 2026-03-04 05:16:07 UTC" in entry.reasons[0]
        assert judge(always("s", least_useful_s=600.0), SkillFacts(), window).due
        assert judge(always("s", least_useful_s=601.0), SkillFacts(), QUIET).due, "nobody can tell"
        over = replace(QUIET, predicted_busy=AT - timedelta(hours=1))
        assert judge(always("s", least_useful_s=601.0), SkillFacts(), over).due, "that hour is over"

    @pytest.mark.parametrize("ago_s", [0, 1, 1800, 3599])
    def test_an_hour_in_which_users_are_expected_leaves_no_time(self, ago_s: float) -> None:
        here = replace(QUIET, predicted_busy=AT - timedelta(seconds=ago_s))
        entry = judge(always("s", least_useful_s=1.0), SkillFacts(), here)
        assert not entry.due
        assert "Users are expected in this hour" in entry.reasons[0]
        assert judge(always("s"), SkillFacts(), here).due, "what needs no time uses each moment"
        # They stayed away for a clean hour of those in which they are expected.
        assert not judge(always("s", least_useful_s=1.0), SkillFacts(), replace(here, absent_s=3599)).due
        assert judge(always("s", least_useful_s=1.0), SkillFacts(), replace(here, absent_s=3600)).due
        # Or the work has waited for a day.
        assert not judge(always("s", least_useful_s=1.0), SkillFacts(age_s=86_399), here).due
        assert judge(always("s", least_useful_s=1.0), SkillFacts(age_s=86_400), here).due
        # Neither makes room where users come later: what does not fit before them, does not start.
        soon = replace(QUIET, predicted_busy=AT + timedelta(seconds=1), absent_s=1e9)
        assert not judge(always("s", least_useful_s=2.0), SkillFacts(age_s=1e9), soon).due
        # A person is asked at any hour.
        assert judge(always("s", least_useful_s=1.0, tier=Tier.CONFIRM), SkillFacts(), here).due

    def test_absence_counts_from_the_hour_in_which_users_are_expected(self) -> None:
        clock, expected = FakeClock(AT.replace(minute=0, second=0)), Expected()
        night = clock.now() - timedelta(hours=8)

        def absent_s(busy_in_s: float | None, last_seen: datetime | None = night) -> float:
            busy = None if busy_in_s is None else clock.now() + timedelta(seconds=busy_in_s)
            expected.look(busy, clock.now(), clock.boottime_ns())
            return expected.absent_s(last_seen, clock.now(), clock.boottime_ns())

        assert absent_s(1800) == 0, "a quiet night says nothing of the morning"
        clock.advance(1800)
        assert absent_s(0) == 0
        clock.advance(3000)
        assert absent_s(-3000) == 3000
        clock.advance(900)
        assert absent_s(-300) == 3900, "the next hour goes on with the same expectation"
        assert absent_s(-300, clock.now() - timedelta(seconds=7)) == 7, "a user was there"
        assert absent_s(-300, None) == 0, "nobody can tell"
        clock.jump(86_400)
        assert absent_s(-300) == 3900, "a wall clock that jumps proves nothing"
        assert absent_s(None) == 0
        assert absent_s(7200) == 0
        clock.advance(7200 + 600)
        assert absent_s(-600, clock.now() - timedelta(days=1)) == 600, "the hour had begun before this look"

    @settings(deadline=None)
    @given(st.lists(st.floats(120, 3000), min_size=20, max_size=20))
    def test_hours_that_are_always_busy_starve_no_job(self, quiet_s: list[float]) -> None:
        """Users are expected at every hour and come again and again: within a day and a pause it starts."""
        clock, ages = FakeClock(AT.replace(minute=0, second=0)), Ages()
        skill = always("s", least_useful_s=7200.0)
        waited_s, started = 0.0, False
        for span_s in itertools.cycle(quiet_s):
            hour = clock.now().replace(minute=0, second=0, microsecond=0)
            here = replace(QUIET, now=clock.now(), predicted_busy=hour, absent_s=min(span_s, 3599))
            entry = judge(skill, SkillFacts(age_s=ages.age_s("s", clock.boottime_ns())), here)
            ages.look([entry], clock.now(), clock.boottime_ns())
            if started := entry.due:
                break
            clock.advance(span_s)
            waited_s += span_s
            assert waited_s < 86_400 + 3000
        assert started
        assert waited_s >= 86_400

    def test_the_least_useful_time_is_declared_or_the_plan_s(self) -> None:
        plan = Plan(skill="skills/s", subject="x", summary="s", calls=(), duration_s=7200)
        assert least_useful_s(always("s"), plan) == 7200
        assert least_useful_s(always("s", least_useful_s=60.0), plan) == 60
        assert least_useful_s(always("s")) == 0

    @pytest.mark.parametrize("skill", ["train_adapter", "resume_training"])
    def test_a_training_uses_windows_that_are_shorter_than_itself(self, skill: str) -> None:
        plan = Plan(skill=f"skills/{skill}", subject="x", summary="s", calls=(), duration_s=30_000)
        window = replace(QUIET, predicted_busy=AT + timedelta(minutes=5))
        assert window.too_short_for(least_useful_s(SKILLS[skill], plan)) == ""
        moment = replace(QUIET, predicted_busy=AT + timedelta(seconds=60))
        assert "120 s to be of use" in moment.too_short_for(least_useful_s(SKILLS[skill], plan))


class TestProposals:
    @settings(deadline=None)
    @given(st.floats(0, 30))
    def test_a_week_lies_between_two_proposals_whatever_their_themes(self, days: float) -> None:
        state = experience_pb.ExperienceState(production_run_count=500)
        state.detect_time.GetCurrentTime()
        skill = SKILLS["propose_config"]
        facts = Facts(AT, Limits(), state, last_success=AT - timedelta(days=days), rest_s=skill.cooldown_s)
        assert all(condition.met for condition in skill.due(facts)) is (days >= 7)
        assert all(condition.met for condition in skill.due(replace(facts, last_success=None)))
        assert all(condition.met for condition in skill.due(replace(facts, rest_s=0.0)))


class TestLooks:
    def test_idleness_calls_again_only_after_a_while_where_nothing_was_found(self) -> None:
        again = AT + timedelta(seconds=200)
        resting = SkillFacts(again_time=again)
        entry = judge(always("s", look_again_s=300.0), resting, QUIET)
        assert not entry.due
        assert "looked at again at 2026-03-04 05:09:27 UTC" in entry.reasons[0]
        assert entry.next_time == again
        # Any other trigger calls all the same.
        assert judge(always("s"), replace(resting, calls=[Call("cron", True, "Its time.")]), QUIET).due


def budgets(**told: float) -> Budgets:
    overall = BudgetSettings(runs_per_day=10, cost_usd_per_day=5.0, gpu_hours_per_day=2.0)
    one = BudgetSettings(runs_per_day=3, cost_usd_per_day=1.0, gpu_hours_per_day=1.0)
    named = {"propose_config": BudgetSettings(**told)} if told else {}  # type: ignore[arg-type]
    return Budgets.from_settings(registry(), BERLIN, overall, one, named)


class TestBudgets:
    def test_days_are_the_platform_s_and_as_long_as_they_are(self) -> None:
        limits = budgets()
        assert limits.day(datetime(2026, 3, 28, 23, 30, tzinfo=UTC)) == "2026-03-29"
        assert limits.day(datetime(2026, 3, 28, 22, 30, tzinfo=UTC)) == "2026-03-28"
        spring = limits.renew_time(datetime(2026, 3, 28, 23, 30, tzinfo=UTC))
        assert spring == datetime(2026, 3, 29, 22, 0, tzinfo=UTC)
        autumn = limits.renew_time(datetime(2026, 10, 25, 12, 0, tzinfo=UTC))
        assert autumn == datetime(2026, 10, 25, 23, 0, tzinfo=UTC)

    def test_each_limit_binds_triggers_and_cost_alone_binds_persons(self) -> None:
        limits = budgets()
        for usage, plan in (
            (Usage(runs=3), {}),
            (Usage(cost_usd=0.6), {"cost_usd": 0.5}),
            (Usage(gpu_s=1800), {"gpu_hours": 0.6}),
        ):
            lack = limits.lacks({"s": usage}, AT, "s", **plan)  # type: ignore[arg-type]
            assert lack.startswith("Its own budget"), (usage, lack)
            assert "2026-03-05 00:00 (Europe/Berlin)" in lack
            by_person = limits.lacks({"s": usage}, AT, "s", person=True, **plan)
            assert bool(by_person) is (usage.cost_usd > 0)
        assert limits.lacks({"s": Usage(2, 0.5, 1800)}, AT, "s", cost_usd=0.5, gpu_hours=0.5) == ""

    def test_all_together_are_bound_too(self) -> None:
        usage = {f"s{number}": Usage(runs=2) for number in range(5)}
        assert budgets().lacks(usage, AT, "new").startswith("The budget of all skills")
        # What costs nothing is kept from nobody because the money is spent.
        assert budgets().lacks({"s": Usage(cost_usd=99.0)}, AT, "s") == ""

    def test_a_skill_s_own_limits_stand_beside_the_general_ones(self) -> None:
        limits = budgets(runs_per_day=1)
        assert limits.lacks({"propose_config": Usage(runs=1)}, AT, "propose_config")
        assert limits.left({}, AT, "propose_config").cost_usd == 1.0
        with pytest.raises(SkillUnknown):
            Budgets.from_settings(
                registry(), BERLIN, BudgetSettings(), BudgetSettings(), {"nobody": BudgetSettings()}
            )
        with pytest.raises(SettingsInvalid):
            Budget.of(BudgetSettings(runs_per_day=1), BudgetSettings())

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=60))
    def test_no_order_of_plans_exceeds_a_day(self, wishes: list[tuple[int, float]]) -> None:
        limits, usage = budgets(), dict[str, Usage]()
        for number, cost in wishes:
            name = f"s{number}"
            if not limits.lacks(usage, AT, name, cost_usd=cost):
                usage[name] = usage.get(name, Usage()) + Usage(1, cost)
        total = sum(usage.values(), Usage())
        assert total.runs <= 10
        assert total.cost_usd <= 5.0 + 1e-6
        assert all(used.runs <= 3 and used.cost_usd <= 1.0 + 1e-6 for used in usage.values())

    def test_only_plans_with_gpu_memory_keep_the_gpu(self) -> None:
        plan = Plan(skill="skills/s", subject="x", summary="s", calls=(), duration_s=7200)
        assert gpu_hours_of(plan) == 0
        assert gpu_hours_of(plan.model_copy(update={"vram_bytes": 1})) == 2


@dataclass
class _Books:
    clock: FakeClock


class TestBackoff:
    """30 s doubling to 15 min, reset by a clean hour, whatever the wall clock does meanwhile."""

    def log(self, clock: FakeClock, backoff: Backoff | None = None) -> PreemptionLog:
        rule = BackoffRule()
        return PreemptionLog(_Books(clock), backoff or Backoff(rule), CollectorRegistry())  # type: ignore[arg-type]

    def preempt(self, log: PreemptionLog, clock: FakeClock) -> float:
        log.began(Preemption("p", 1, "user", clock.now(), None, 0, skill_runs=("r",)))
        until = log.backoff_until
        return 0.0 if until is None else (until - clock.now()).total_seconds()

    @settings(deadline=None)
    @given(st.lists(st.floats(-86_400 * 400, 86_400 * 400), min_size=8, max_size=8))
    def test_it_doubles_whatever_the_wall_clock_does(self, jumps: list[float]) -> None:
        clock = FakeClock(AT)
        log = self.log(clock)
        spans = []
        for jump in jumps:
            clock.jump(jump)
            spans.append(round(self.preempt(log, clock)))
            clock.advance(1200)
            assert log.backoff_until is None
        assert spans == [30, 60, 120, 240, 480, 900, 900, 900]
        clock.advance(2400)
        clock.jump(-86_400)
        assert round(self.preempt(log, clock)) == 30, "a clean hour has passed"

    def test_a_clock_set_back_keeps_work_away_no_longer(self) -> None:
        clock = FakeClock(AT)
        log = self.log(clock)
        self.preempt(log, clock)
        clock.jump(-7200)
        until = log.backoff_until
        assert until is not None
        assert (until - clock.now()).total_seconds() == pytest.approx(30)
        clock.advance(30)
        assert log.backoff_until is None

    def test_what_an_earlier_life_left_is_no_longer_than_its_span(self) -> None:
        clock = FakeClock(AT)
        left = Backoff(BackoffRule(), 240.0, AT - timedelta(seconds=100))
        log = self.log(clock, left)
        until = log.backoff_until
        assert until is not None
        assert (until - AT).total_seconds() == pytest.approx(140)
        ahead = self.log(clock, replace(left, last=AT + timedelta(days=3))).backoff_until
        assert ahead is not None
        assert (ahead - AT).total_seconds() == pytest.approx(240)
        assert self.log(clock, replace(left, last=AT - timedelta(days=3))).backoff_until is None

    def test_other_causes_and_idle_stops_do_not_count(self) -> None:
        clock = FakeClock(AT)
        log = self.log(clock)
        log.began(Preemption("p", 1, "lock", AT, None, 0, skill_runs=("r",)))
        log.began(Preemption("p", 1, "user", AT, None, 0))
        assert log.backoff_until is None

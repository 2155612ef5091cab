"""The pure parts: plans, approvals, runs, fences, gate, back-off, schedule, registry."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift_kit.errors import Code, DiskFull, GlobalLock, NightshiftError
from nightshift_kit.grants import Tier
from nightshift_skills.activity import ActivityRelay, GenerationReport
from nightshift_skills.backoff import Backoff, BackoffRule
from nightshift_skills.catalogue import BUILT_IN
from nightshift_skills.errors import (
    SkillModified,
    SkillUnknown,
    TierLoosened,
    Upstream,
    UserActive,
    upstream,
)
from nightshift_skills.fences import BLOCK_SIZE, Fences
from nightshift_skills.gate import Gate, LiveRun
from nightshift_skills.patience import patiently
from nightshift_skills.plans import Plan, PlannedCall
from nightshift_skills.registry import Registry
from nightshift_skills.schedule import Situation, SkillFacts, in_turn, judge
from nightshift_skills.skill import Condition

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def a_plan(**changes: object) -> Plan:
    request = lab_pb.RejectProposalRequest(name="proposals/x", etag="1")
    plan = Plan(
        skill="skills/reject_proposal",
        subject="proposals/x",
        summary="s",
        calls=(PlannedCall.of("/nightshift.lab.v1.LabService/RejectProposal", request),),
        base_versions={"a": "1"},
        limits={"x": "1"},
    )
    return plan.model_copy(update=changes)


class TestPlans:
    def test_the_digest_holds_what_binds_and_nothing_else(self) -> None:
        digest = a_plan().digest
        for reading in (
            {"summary": "t"},
            {"diff": "+"},
            {"cost_usd": 1.0},
            {"vram_bytes": 5},
            {"duration_s": 9.0},
            {"evidence": ("e",)},
            {"reasoning": "r"},
        ):
            assert Plan.from_json(a_plan(**reading).to_json()).digest == digest
        other = PlannedCall.of(
            "/nightshift.lab.v1.LabService/RejectProposal",
            lab_pb.RejectProposalRequest(name="proposals/x", etag="2"),
        )
        changes: tuple[dict[str, object], ...] = (
            {"skill": "skills/y"},
            {"subject": "proposals/y"},
            {"calls": ()},
            {"calls": (other,)},
            {"base_versions": {"a": "2"}},
            {"limits": {}},
        )
        for binding in changes:
            assert Plan.from_json(a_plan(**binding).to_json()).digest != digest

    def test_unknown_fields_are_refused(self) -> None:
        text = a_plan().to_json().replace('"summary"', '"extra":1,"summary"')
        with pytest.raises(ValidationError):
            Plan.from_json(text)

    @given(
        st.dictionaries(
            st.text(max_size=8).filter(lambda text: text.isprintable()),
            st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9)),
            max_size=5,
        )
    )
    def test_a_request_survives_store_and_wire_with_its_digest(self, content: dict[str, Any]) -> None:
        request = lab_pb.CreateProposalRequest(config_id="abc")
        request.content.update(content)
        call = PlannedCall.of("/nightshift.lab.v1.LabService/CreateProposal", request)
        again = PlannedCall.model_validate_json(call.model_dump_json())
        assert PlannedCall.of(again.method, again.request()).arguments_digest == call.arguments_digest


class TestFences:
    def test_a_number_is_never_used_twice_whenever_the_process_dies(self) -> None:
        reserved = [0]
        used: set[int] = set()
        for raises in (0, 3, BLOCK_SIZE * 2, 1):
            fences = Fences(lambda to: reserved.append(to), reserved[-1])
            numbers = {fences.current}
            for _ in range(raises):
                numbers.add(fences.raise_one())
                fences.refill()
                assert fences.durable
            assert not used & numbers
            used |= numbers

    def test_a_full_disk_does_not_keep_the_fence_from_rising(self) -> None:
        full = False

        def reserve(_: int) -> None:
            if full:
                raise DiskFull("no space")

        fences = Fences(reserve, 0)
        full = True
        before = fences.current
        for _ in range(BLOCK_SIZE + 5):
            fences.raise_one()
        assert fences.current == before + BLOCK_SIZE + 5
        assert not fences.durable
        with pytest.raises(DiskFull):
            fences.refill()
        full = False
        fences.refill()
        assert fences.durable

    def test_a_restored_store_goes_above_what_was_seen(self) -> None:
        reserved: list[int] = []
        fences = Fences(reserved.append, 0)
        assert fences.raise_above(50_000) == 50_001
        assert reserved[-1] > 50_001
        assert fences.raise_above(10) == 50_001


class TestGate:
    def gate(self) -> tuple[Gate, Fences]:
        fences = Fences(lambda _: None, 0)
        return Gate(lambda: fences.current, fences.raise_one), fences

    def test_nothing_starts_after_a_sign_and_work_is_stopped_once(self) -> None:
        gate, fences = self.gate()
        run = LiveRun("r", True, lambda: None)
        with pytest.raises(UserActive):
            gate.enter(run)
        assert gate.try_open(gate.signs)
        gate.enter(run)
        assert run.fence == fences.current
        closed = gate.close()
        assert closed.began
        assert closed.stopped == (run,)
        assert closed.fence == run.fence + 1
        assert not gate.close().began
        with pytest.raises(UserActive):
            gate.enter(LiveRun("s", True, lambda: None))
        gate.enter(LiveRun("t", False, lambda: None))
        assert gate.leases()[1] == {"t"}

    def test_idleness_asked_for_before_a_sign_opens_nothing(self) -> None:
        gate, _ = self.gate()
        signs = gate.signs
        gate.close()
        assert not gate.try_open(signs)

    def test_the_lock_stops_what_persons_started_too(self) -> None:
        gate, _ = self.gate()
        gate.try_open(gate.signs)
        run = LiveRun("r", False, lambda: None)
        gate.enter(run)
        assert gate.engage().stopped == (run,)
        assert run.cause == "lock"
        with pytest.raises(GlobalLock):
            gate.enter(LiveRun("s", False, lambda: None))
        assert not gate.try_open(gate.signs)
        gate.release()
        assert not gate.is_open

    def test_starts_and_signs_on_two_threads_never_miss_each_other(self) -> None:
        gate, _ = self.gate()
        escaped: list[str] = []
        for number in range(300):
            gate.try_open(gate.signs)
            run = LiveRun(str(number), True, lambda: None)
            barrier = threading.Barrier(2)
            stopped: list[LiveRun] = []

            def sign(barrier: threading.Barrier = barrier, stopped: list[LiveRun] = stopped) -> None:
                barrier.wait()
                stopped.extend(gate.close().stopped)

            thread = threading.Thread(target=sign)
            thread.start()
            barrier.wait()
            try:
                gate.enter(run)
            except UserActive:
                entered = False
            else:
                entered = True
            thread.join()
            if entered and run not in stopped:
                escaped.append(run.id)
            gate.leave(run)
        assert not escaped


class TestBackoff:
    def test_it_doubles_to_its_maximum_and_is_forgotten_after_a_clean_hour(self) -> None:
        backoff = Backoff(BackoffRule())
        assert backoff.until is None
        spans = []
        now = AT
        for _ in range(7):
            backoff = backoff.preempted(now)
            spans.append(backoff.span_s)
            now += timedelta(minutes=20)
        assert spans == [30, 60, 120, 240, 480, 900, 900]
        assert backoff.preempted(now + timedelta(hours=1)).span_s == 30


def situation(**changes: object) -> Situation:
    fitting = Situation(now=AT, monitor_known=True, idle=True, platform_up=True)
    return replace(fitting, **changes)  # type: ignore[arg-type]


SKILLS = {skill.id: skill for skill in BUILT_IN}


class TestSchedule:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"monitor_known": False}, "monitor"),
            ({"platform_up": False}, "platform"),
            ({"locked": True}, "lock"),
            ({"idle": False, "idle_reasons": ((False, "A child draws."),)}, "A child draws"),
            ({"backoff_until": AT + timedelta(seconds=9)}, "waits until"),
            ({"running": 1}, "at work"),
        ],
    )
    def test_whatever_stands_in_the_way_is_said(self, changes: dict[str, object], words: str) -> None:
        facts = SkillFacts(conditions=[Condition(True, "7 wait.")])
        skill = SKILLS["build_embeddings"]
        assert judge(skill, facts, situation()).due
        entry = judge(skill, facts, situation(**changes))
        assert not entry.due
        assert words in entry.reasons[0]

    def test_each_reason_of_a_skill_itself(self) -> None:
        skill = SKILLS["aggregate_experience"]
        for facts in (
            SkillFacts(conditions=[Condition(False, "nothing new")]),
            SkillFacts(rest_until=AT + timedelta(seconds=1)),
            SkillFacts(pending=1, open_runs=1),
            SkillFacts(open_runs=1),
            SkillFacts(problem="changed"),
        ):
            assert not judge(skill, facts, situation()).due
        assert judge(skill, SkillFacts(rest_until=AT), situation()).due
        assert not judge(SKILLS["rollback"], SkillFacts(), situation()).due
        assert not judge(SKILLS["train_adapter"], SkillFacts(), situation()).due
        assert judge(SKILLS["health_check"], SkillFacts(), situation(idle=False)).due
        assert not judge(SKILLS["health_check"], SkillFacts(), situation(locked=True)).due

    def test_what_waited_longest_comes_first(self) -> None:
        entries = [
            judge(SKILLS[name], SkillFacts(last_run_time=last), situation())
            for name, last in (
                ("aggregate_experience", AT),
                ("build_embeddings", AT - timedelta(hours=1)),
                ("detect_opportunities", None),
                ("rollback", None),
            )
        ]
        names = [entry.skill.id for entry in in_turn(entries)]
        assert names == ["detect_opportunities", "build_embeddings", "aggregate_experience"]


class TestRegistry:
    def test_a_setting_may_tighten_and_never_loosen(self) -> None:
        registry = Registry(BUILT_IN, tiers={"propose_config": "MANUAL"}, cooldowns_s={"propose_config": 5})
        skill = registry.get("skills/propose_config")
        assert (skill.tier, skill.cooldown_s) == (Tier.MANUAL, 5)
        assert skill.background, "tightening the tier must not let work escape pre-emption"
        for name, tier in (
            ("propose_config", "AUTO"),
            ("rollback", "CONFIRM"),
            ("rollback", "AUTO"),
            ("train_adapter", "none"),
        ):
            with pytest.raises(TierLoosened):
                Registry(BUILT_IN, tiers={name: tier}, cooldowns_s={})
        with pytest.raises(SkillUnknown):
            Registry(BUILT_IN, tiers={"fly": "MANUAL"}, cooldowns_s={})

    def test_changed_code_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "skill.py"
        source.write_text("one")
        monkeypatch.setattr("nightshift_skills.registry.inspect.getfile", lambda _: str(source))
        registry = Registry(BUILT_IN[:1], tiers={}, cooldowns_s={})
        registry.check_unmodified("health_check")
        source.write_text("two")
        with pytest.raises(SkillModified):
            registry.check_unmodified("health_check")
        source.unlink()
        with pytest.raises(SkillModified):
            registry.check_unmodified("health_check")

    def test_every_skill_names_only_methods_whose_policy_names_it(self) -> None:
        from google.protobuf import descriptor_pool

        from nightshift.type.v1 import policy_pb2

        for skill in BUILT_IN:
            for method in skill.methods:
                found = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
                policy = found.GetOptions().Extensions[policy_pb2.policy]
                if policy.kind == policy_pb2.METHOD_KIND_ACTING:
                    assert skill.id in (policy.skill, *policy.also_skills)
                    assert skill.tier >= policy.tier


class Listener:
    """A monitor that hears, or refuses as often as told."""

    def __init__(self) -> None:
        self.heard: list[monitor_pb.RecordActivityRequest] = []
        self.refuse = 0

    async def record_activity(self, request: monitor_pb.RecordActivityRequest) -> None:
        if self.refuse:
            self.refuse -= 1
            raise upstream("away", code=NightshiftError.code, reason="AWAY")
        self.heard.append(request)


class TestPatience:
    """What may be tried again is, for so long; what was refused is refused."""

    async def answered(self, *errors: NightshiftError, **how: Any) -> tuple[str, int]:
        waiting, tries = list(errors), 0

        async def once() -> str:
            nonlocal tries
            tries += 1
            if waiting:
                raise waiting.pop(0)
            return "answer"

        patience_s = how.pop("patience_s", 5.0)
        said: str = await patiently("x", patience_s, first_s=0.001, longest_s=0.01, **how)(once)
        return said, tries

    async def test_a_service_that_comes_back_answers(self) -> None:
        away = upstream("away", code=Code.UNAVAILABLE, reason="SERVICE_UNAVAILABLE")
        stale = upstream("stale", code=Code.FAILED_PRECONDITION, reason="PREEMPTED")
        assert await self.answered(away, stale, away) == ("answer", 4)

    @pytest.mark.parametrize(
        "error",
        [
            upstream("no", code=Code.FAILED_PRECONDITION, reason="DRIFT_DETECTED"),
            upstream("no", code=Code.PERMISSION_DENIED, reason="GRANT_SUBJECT"),
            GlobalLock("locked"),
        ],
        ids=lambda error: error.reason,
    )
    async def test_a_refusal_is_not_asked_again(self, error: NightshiftError) -> None:
        tries: list[int] = []

        async def once() -> None:
            tries.append(1)
            raise error

        with pytest.raises(type(error)):
            await patiently("x", 5.0, first_s=0.001)(once)
        assert tries == [1]

    async def test_patience_ends_with_the_last_error_itself(self) -> None:
        away = upstream("away", code=Code.UNAVAILABLE, reason="SERVICE_UNAVAILABLE")
        with pytest.raises(Upstream, match="away"):
            await self.answered(*[away] * 1000, patience_s=0.05)
        with pytest.raises(Upstream, match="away"):
            await self.answered(away, unless=lambda error: error.reason == "SERVICE_UNAVAILABLE")


class TestActivity:
    async def test_floods_are_put_together_and_generations_are_not(self) -> None:
        listener = Listener()
        relay = ActivityRelay(listener, lambda: None)  # type: ignore[arg-type]
        task = asyncio.create_task(relay.run())
        await asyncio.sleep(0)
        for number in range(2_000):
            relay.note("request", AT + timedelta(milliseconds=number), 1, "")
        for number in range(3):
            relay.note("generation_started", AT, 1, f"run{number}")
        assert not relay.settled
        await asyncio.sleep(0.2)
        for _ in range(500):
            relay.note("request", AT, 1, "")
        await asyncio.sleep(1.3)
        task.cancel()
        requests = [request for request in listener.heard if request.kind == "request"]
        assert [request.count for request in requests] == [2_000, 500]
        started = [request.run_id for request in listener.heard if request.kind == "generation_started"]
        assert started == ["run0", "run1", "run2"]
        assert relay.settled

    async def test_counts_beyond_all_reason_end_nothing(self) -> None:
        listener = Listener()
        relay = ActivityRelay(listener, lambda: None)  # type: ignore[arg-type]
        for _ in range(4):
            relay.note("request", AT, 2**62, "")
        task = asyncio.create_task(relay.run())
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()
        assert [request.count for request in listener.heard] == [10**9]

    async def test_what_was_not_heard_is_said_again(self) -> None:
        listener = Listener()
        listener.refuse = 1
        relay = ActivityRelay(listener, lambda: AT)  # type: ignore[arg-type]
        relay.note("request", AT, 2, "")
        relay.note("generation_finished", AT, 1, "run")
        task = asyncio.create_task(relay.run())
        await asyncio.sleep(0.2)
        assert not relay.settled
        await asyncio.sleep(1.5)
        task.cancel()
        assert {(r.kind, r.count, r.run_id) for r in listener.heard} == {
            ("request", 2, ""),
            ("generation_finished", 1, "run"),
        }
        assert listener.heard[0].HasField("quiet_until_time")

    async def test_what_was_acknowledged_and_not_passed_on_is_told_by_the_next_life(self) -> None:
        kept: dict[str, GenerationReport] = {}

        class Store:
            async def save(self, report: GenerationReport) -> None:
                kept[report.id] = report

            async def drop(self, ids: Sequence[str]) -> None:
                for one in ids:
                    del kept[one]

        deaf = Listener()
        deaf.refuse = 1000
        relay = ActivityRelay(deaf, lambda: None, store=Store())  # type: ignore[arg-type]
        task = asyncio.create_task(relay.run())
        for kind in ("generation_started", "generation_finished"):
            await relay.keep(relay.note(kind, AT, 1, "run"))
        await relay.keep(relay.note("request", AT, 1, ""))
        await asyncio.sleep(0.1)
        task.cancel()
        assert len(kept) == 2
        listener = Listener()
        waiting = sorted(kept.values(), key=lambda report: report.id)
        again = ActivityRelay(listener, lambda: None, store=Store(), waiting=waiting)  # type: ignore[arg-type]
        task = asyncio.create_task(again.run())
        await asyncio.sleep(0.1)
        # Passed on before it could be kept: it must not stay behind.
        early = again.note("generation_started", AT, 1, "next")
        await asyncio.sleep(0.1)
        await again.keep(early)
        task.cancel()
        assert [(r.kind, r.run_id) for r in listener.heard] == [
            ("generation_started", "run"),
            ("generation_finished", "run"),
            ("generation_started", "next"),
        ]
        assert not kept

    async def test_a_beginning_that_waits_is_told_before_its_end(self) -> None:
        listener = Listener()
        listener.refuse = 1
        relay = ActivityRelay(listener, lambda: None)  # type: ignore[arg-type]
        relay.note("generation_started", AT, 1, "run")
        task = asyncio.create_task(relay.run())
        await asyncio.sleep(0.05)
        relay.note("generation_finished", AT, 1, "run")
        await asyncio.sleep(1.3)
        task.cancel()
        assert [r.kind for r in listener.heard] == ["generation_started", "generation_finished"]
        assert relay.settled

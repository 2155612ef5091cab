"""How often triggers may ask: a person's attention is limited, and asked for sparingly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database
from nightshift_skills.books import Books
from nightshift_skills.catalogue import propose_config
from nightshift_skills.errors import ApprovalRate
from nightshift_skills.plans import Plan
from nightshift_skills.proposals import ApprovalRule, Proposals, Wish
from tests.skills.skills_support import Plane, eventually, plane_in
from tests.skills.stand_ins import PROJECT

PERSON = "spiffe://nightshift.local/person/approver/ada"


def wish(number: int, initiator: str = "trigger:idle") -> Wish:
    plan = Plan(skill="skills/propose_config", subject=f"themes/{number}", summary="Store.", calls=())
    return Wish(propose_config.SKILL, plan, {}, initiator)


async def test_triggers_ask_so_often_an_hour_and_persons_whenever_they_want(tmp_path: Path) -> None:
    clock = FakeClock()
    with Database(f"sqlite:///{tmp_path}/s.db", migrations="nightshift_skills", name="skills") as db:
        db.migrate()
        books = Books(db, Outbox("skills", clock), clock, new_id)
        proposals = Proposals(books, ApprovalRule(per_hour=3, max_pending=100), lambda _: 0.0)
        for number in range(3):
            await proposals.propose(wish(number))
            clock.advance(600)
        same = await proposals.propose(wish(2))
        assert same.subject == "themes/2", "an identical plan is no new question"
        with pytest.raises(ApprovalRate) as refused:
            await proposals.propose(wish(3))
        assert refused.value.retry_after_s == pytest.approx(1800)
        limits = await books.read(proposals.limits, ["propose_config", "train_adapter"])
        assert list(limits) == ["propose_config"]
        assert "3 times within an hour" in limits["propose_config"].message
        await proposals.propose(wish(3, PERSON))
        clock.advance(1801)
        await proposals.propose(wish(4))
        with pytest.raises(ApprovalRate):
            await proposals.propose(wish(5))


async def test_no_more_questions_than_somebody_can_answer(tmp_path: Path) -> None:
    clock = FakeClock()
    with Database(f"sqlite:///{tmp_path}/s.db", migrations="nightshift_skills", name="skills") as db:
        db.migrate()
        books = Books(db, Outbox("skills", clock), clock, new_id)
        proposals = Proposals(books, ApprovalRule(per_hour=100, max_pending=2), lambda _: 0.0)
        first = await proposals.propose(wish(0))
        await proposals.propose(wish(1))
        with pytest.raises(ApprovalRate, match="2 plans of it wait"):
            await proposals.propose(wish(2))
        await proposals.withdraw(first.id, PERSON)
        await proposals.propose(wish(2))


async def test_the_schedule_says_why_nobody_is_asked(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home", approval_requests_per_hour=1, denied_rest_s=0) as plane:
        plane.around.experience.state.detect_time.GetCurrentTime()
        approvals = await eventually(
            lambda: plane.call("ListApprovals", pb.ListApprovalsRequest()), lambda answer: answer.approvals
        )
        await plane.decide(approvals.approvals[0], approve=False)
        plane.around.experience.opportunities.insert(
            0,
            experience_types.Opportunity(
                name=f"{PROJECT}/opportunities/other",
                kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
                label="other",
                keywords=["a", "b", "c"],
                runs=90,
            ),
        )
        await asyncio.sleep(0.8)
        await _asked_once(plane)
        run = await plane.run("propose_config")
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, "a person may ask whenever they want"


async def _asked_once(plane: Plane) -> None:
    schedule = await plane.call("GetSchedule", pb.GetScheduleRequest())
    entry = next(e for e in schedule.entries if e.skill == "skills/propose_config")
    assert not entry.due
    assert any("It has asked 1 times within an hour" in reason for reason in entry.reasons), entry
    answer = await plane.call("ListApprovals", pb.ListApprovalsRequest())
    assert len(answer.approvals) == 1


async def test_a_triggers_plan_does_not_take_the_place_of_a_persons(tmp_path: Path) -> None:
    clock = FakeClock()
    with Database(f"sqlite:///{tmp_path}/s.db", migrations="nightshift_skills", name="skills") as db:
        db.migrate()
        proposals = Proposals(
            Books(db, Outbox("skills", clock), clock, new_id), ApprovalRule(), lambda _: 0.0
        )

        def about_one(target: str, initiator: str) -> Wish:
            plan = Plan(
                skill="skills/propose_config",
                subject="themes/1",
                summary="Store.",
                calls=(),
                limits={"target": target},
            )
            return Wish(propose_config.SKILL, plan, {}, initiator)

        asked = await proposals.propose(about_one("0", PERSON))
        assert (await proposals.propose(about_one("70", "trigger:idle"))).id == asked.id
        again = await proposals.propose(about_one("50", PERSON))
        assert again.id != asked.id, "a person's own new plan does"

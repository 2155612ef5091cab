"""One trace from a caller through skills to the lab, and every service's metrics, at a real collector."""

from __future__ import annotations

import os
import secrets
import uuid
from typing import Any

from examples.demo.stage import Stage
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1.skills_service_pb2_grpc import SkillsServiceStub
from nightshift_kit.rpc.channels import sync_channel
from nightshift_kit.settings import PlaneSettings
from tests.support.collector import Collector, SeenSpan

SERVICES = ("monitor", "experience", "skills", "lab", "trainer")
SKILL = "skills/validate_configs"


def test_a_chain_of_calls_is_one_trace(stage: Stage, collector: Collector) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with sync_channel("skills", PlaneSettings(home=stage.home), f"person/{os.getuid()}") as channel:
        stub: Any = SkillsServiceStub(channel)
        metadata = (("traceparent", f"00-{trace_id}-{caller}-01"),)
        stub.PlanSkill(skills_pb.PlanSkillRequest(name=SKILL), timeout=30, metadata=metadata)
        request = skills_pb.RunSkillRequest(
            name=SKILL, request_id=str(uuid.uuid4()), comment="words of a person"
        )
        stub.RunSkill(request, timeout=30, metadata=metadata)

    def chain() -> list[SeenSpan]:
        return [one for one in collector.spans() if one.trace_id == trace_id]

    def named(ending: str) -> list[SeenSpan]:
        return [one for one in chain() if one.name.endswith(ending)]

    # Both look at the lab, to plan.
    collector.until(lambda: len(named("/GetLabState")) >= 2 and len(named("Skill")) == 2)
    planned, ran = sorted(named("Skill"), key=lambda one: one.name)
    for one in (planned, ran):
        assert one.service == "nightshift-skills"
        assert one.parent_span_id == caller
        assert one.attributes["nightshift.caller"] == "person/admin"
        looks = [look for look in named("/GetLabState") if look.parent_span_id == one.span_id]
        assert looks
        for look in looks:
            assert look.service == "nightshift-lab"
            assert look.attributes["nightshift.caller"] == "service/skills"
            began, ended = look.message.start_time_unix_nano, look.message.end_time_unix_nano
            # One clock on this machine: what is called lies within what calls, to a millisecond.
            assert (
                one.message.start_time_unix_nano - 1e6 < began <= ended < one.message.end_time_unix_nano + 1e6
            )
    assert {one.parent_span_id for one in chain()} <= {one.span_id for one in chain()} | {caller}
    assert b"words of a person" not in b"".join(one.SerializeToString() for one in list(collector.requests))


def test_what_a_skill_run_does_is_one_trace(stage: Stage, collector: Collector) -> None:
    """The plane validates its configs by itself once it has started."""

    def acting() -> list[SeenSpan]:
        return [one for one in collector.spans() if one.name.endswith("/ValidateConfigs")]

    def runs() -> dict[str, SeenSpan]:
        return {one.span_id: one for one in collector.spans() if one.name == "skill run"}

    collector.until(lambda: any(one.parent_span_id in runs() for one in acting()))
    validated = next(one for one in acting() if one.parent_span_id in runs())
    run = runs()[validated.parent_span_id]
    assert run.trace_id == validated.trace_id
    assert (run.service, validated.service) == ("nightshift-skills", "nightshift-lab")
    for one in (run, validated):
        assert one.attributes["nightshift.skill"] == SKILL
        assert one.attributes["nightshift.skill_run"] == run.attributes["nightshift.skill_run"]
    shown = stage.nightshift("skills", "show-run", run.attributes["nightshift.skill_run"])
    assert shown["skill"] == SKILL


def test_every_service_tells_its_metrics(stage: Stage, collector: Collector) -> None:
    def complete() -> bool:
        return all(
            any(name.startswith("nightshift_rpc_duration_seconds") for name, _ in collector.metrics(service))
            for service in (f"nightshift-{one}" for one in SERVICES)
        )

    collector.until(complete)
    assert any(name == "nightshift_monitor_idle" for name, _ in collector.metrics("nightshift-monitor"))

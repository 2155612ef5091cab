"""Looks at the plane and the platform on each tick and keeps what the monitor says."""

from __future__ import annotations

from typing import Any

from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Parameters, PlanContext, Skill

METHOD = "/nightshift.monitor.v1.MonitorService/GetStatus"


async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
    """One look at the monitor's status."""
    return Plan(
        skill="skills/health_check",
        subject="plane",
        summary="Look at the state of platform, machine and plane.",
        calls=(PlannedCall.of(METHOD, monitor_pb.GetStatusRequest()),),
        reversibility=Reversibility.REBUILDABLE,
    )


def verdicts(answer: dict[str, Any]) -> dict[str, Any]:
    """State of each probe, and idleness; without the readings that change each time."""
    idleness = answer.get("idleness", {})
    return {
        "probes": {
            probe.get("name", ""): probe.get("latest", {}).get("state", "PROBE_STATE_UNSPECIFIED")
            for probe in answer.get("probes", [])
        },
        "idle": idleness.get("idle", False),
        "platform_up": idleness.get("platform_up", False),
    }


SKILL = Skill(
    id="health_check",
    tier=Tier.AUTO,
    description="Looks at the state of platform, machine and plane on each tick.",
    triggers=("tick", "command"),
    cooldown_s=0,
    methods=(METHOD,),
    plan=plan,
    call_timeout_s=5,
    shown_answer=verdicts,
)

"""From stored sessions and days to messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration

from nightshift.experience.v1 import sessions_pb2 as pb
from nightshift_experience.resources import SessionName, project_name
from nightshift_experience.rpc.render import counts, timestamp
from nightshift_experience.store.session_tables import StoredDay, StoredSession


def session(project: str, stored: StoredSession) -> pb.Session:
    """A session."""
    told = stored.payload
    gap = Duration()
    gap.FromMilliseconds(round(told["median_gap_s"] * 1000))
    return pb.Session(
        name=SessionName(project, stored.session_id).name,
        session_keys=stored.keys,
        start_time=timestamp(stored.start_us),
        end_time=timestamp(stored.end_us),
        run_count=stored.runs,
        distinct_prompt_count=told["counts"]["distinct_prompts"],
        favorite_count=told["counts"]["favorites"],
        regeneration_count=told["counts"]["regenerations"],
        blocked_count=told["counts"]["blocked"],
        failed_count=told["counts"]["failed"],
        median_gap=gap,
        languages=counts(told["languages"]),
        configs=counts(told["configs"]),
        modes=[_mode(one) for one in told["modes"]],
    )


def _mode(told: Mapping[str, Any]) -> pb.ModeWeight:
    return pb.ModeWeight(
        mode=pb.EngagementMode.ValueType(told["mode"]),
        probability=told["probability"],
        evidence=[pb.ModeEvidence(**one) for one in told["evidence"]],
    )


def day(project: str, stored: StoredDay) -> pb.DailySummary:
    """A day."""
    told = stored.payload
    return pb.DailySummary(
        name=f"{project_name(project)}/dailySummaries/{stored.day}",
        text=told["text"],
        session_count=told["sessions"],
        run_count=told["runs"],
        favorite_count=told["favorites"],
        regeneration_count=told["regenerations"],
        blocked_count=told["blocked"],
        failed_count=told["failed"],
        languages=counts(_ordered(told["languages"])),
        configs=counts(_ordered(told["configs"])),
        modes=[
            pb.ModeCount(mode=pb.EngagementMode.Value(f"ENGAGEMENT_MODE_{name.upper()}"), sessions=expected)
            for name, expected in sorted(
                told["modes"].items(),
                key=lambda pair: pb.EngagementMode.Value(f"ENGAGEMENT_MODE_{pair[0].upper()}"),
            )
        ],
        summarize_time=timestamp(stored.summarize_us) if stored.summarize_us is not None else None,
    )


def _ordered(counted: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))

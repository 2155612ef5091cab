"""Tuned settings: what the plane says, and the originals whatever else happens."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from nightshift_client import AsyncClient, Client
from tests.client.plane import Plane

SETTINGS: dict[str, Any] = {"mode": "2loop", "max_rounds": 5, "temperature": 0.7, "nested": {"a": [1]}}
WAIT_S = 20.0


def test_a_run_takes_over_what_the_plane_says(home: Path, plane: Plane) -> None:
    before = {**SETTINGS, "nested": {"a": [1]}}
    with Client(home) as client:
        tuned = client.tuned_settings(SETTINGS, deadline_s=WAIT_S)
        assert tuned and tuned.settings == {**SETTINGS, "mode": "3loop"}
        assert before == SETTINGS
        asked = plane.experience.asked[-1]
        assert (asked.parent, asked.settings.mode, asked.settings.max_rounds) == (
            "projects/default",
            "2loop",
            5,
        )
        assert not asked.settings.HasField("max_cost_usd")
        mine = client.tuned_settings(SETTINGS, explicit=["mode", "temperature"], deadline_s=WAIT_S)
        assert not mine and mine.settings == SETTINGS and mine.settings is not SETTINGS
        assert not client.tuned_settings(SETTINGS, skip=True, deadline_s=WAIT_S)
        # What was tuned, and why, goes with the run.
        run = {
            "run_id": "r1",
            "outcome": "succeeded",
            "settings": {"mode": "3loop"},
            "tuned_fields": tuned.tuned_fields,
        }
        assert client.record_run(run, deadline_s=WAIT_S)
        (stored,) = plane.experience.runs.values()
        (field,) = stored.tuned_fields
        assert (field.field, field.tuned_value, field.explanation) == ("mode", "3loop", "33 % cheaper")


def test_whatever_happens_the_originals_come_back(home: Path, plane: Plane) -> None:
    with Client(home) as client:
        broken = client.tuned_settings({"mode": "broken"}, deadline_s=WAIT_S)
        assert not broken and broken.settings == {"mode": "broken"} and broken.reason
        nonsense = client.tuned_settings({"mode": 3}, deadline_s=WAIT_S)
        assert (nonsense.settings, nonsense.reason) == ({"mode": 3}, "RECORD_INVALID")
        plane.stop()
        for _ in range(6):
            began = time.monotonic()
            away = client.tuned_settings(SETTINGS)
            assert (away.settings, bool(away), away.reason) == (SETTINGS, False, "PLANE_AWAY")
            # A bound for hanging; times are measured elsewhere.
            assert time.monotonic() - began < 5
    closed = client.tuned_settings(SETTINGS)
    assert closed.settings == SETTINGS and closed.reason
    assert not plane.experience.runs


async def test_the_same_on_asyncio(home: Path, plane: Plane) -> None:
    async with AsyncClient(home) as client:
        tuned = await client.tuned_settings(SETTINGS, deadline_s=WAIT_S)
        assert tuned.settings["mode"] == "3loop"
        await asyncio.to_thread(plane.stop)
        away = await client.tuned_settings(SETTINGS)
        assert (away.settings, away.reason) == (SETTINGS, "PLANE_AWAY")

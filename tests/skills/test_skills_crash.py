"""kill -9 of skills, lab and trainer inside effects, questions open: none is lost, none happens twice.

SKILLS_KILLS chooses how many kills there are, SKILLS_KILLS_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

import pytest

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.skills.killing import Killing, Person, Promoting, Proposing, Site, Unloading, site
from tests.skills.skills_support import eventually

KILLS = int(os.environ.get("SKILLS_KILLS", "40"))


async def all_events(here: Site) -> list[types.AuditEvent]:
    """The sealed chain."""
    found: list[types.AuditEvent] = []
    request = pb.ListAuditEventsRequest(page_size=1000)
    while True:
        answer = await here.plane.call("ListAuditEvents", request)
        found += answer.audit_events
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * KILLS)
async def test_no_approved_effect_is_lost_and_none_happens_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("SKILLS_KILLS_SEED", "0")) or secrets.randbelow(2**31)
    print(f"SKILLS_KILLS_SEED={seed} repeats the choices of this run")
    chance, began_s = random.Random(seed), time.monotonic()
    async with site(tmp_path) as here:
        person = Person(here, random.Random(chance.getrandbits(64)))
        proposing = Proposing(here, person)
        await proposing.prepare()
        await proposing.act()
        promoting = Promoting(here, person, proposing.made[0])
        unloading = Unloading(here, person)
        families = (proposing, promoting, unloading)
        killing = Killing()
        for family in families:
            await killing.calm(family)
        print(f"undisturbed rounds: {killing.usual}")
        for number in range(KILLS):
            await killing.round(here, chance.choice(families), chance)
            await proposing.still_open()
            if number % 50 == 49:
                print(f"{number + 1} kills after {time.monotonic() - began_s:.0f} s", flush=True)

        for one in families:
            await one.check()
        # Those that waited all the time are good for their effects still.
        while proposing.open:
            approval = proposing.open.pop()
            await person.approve(approval)
            run = await person.ended(approval.skill_run)
            proposing.runs.append(run.name)
            proposing.made.append(str(run.results[0]["name"]))
        await proposing.check()
        report = await eventually(
            lambda: here.plane.call("VerifyAudit", pb.VerifyAuditRequest(), timeout_s=60),
            lambda found: not found.unsealed_count and not found.unreachable,
        )
        assert report.valid, report
        events = await all_events(here)
        for one in families:
            kept = [event for event in events if event.kind.startswith(one.event)]
            assert len(kept) == len(one.made), (one.event, len(kept), len(one.made))
        effects = {type(one).__name__: len(one.made) for one in families}
        print(killing.histogram(events))
        print(f"called again after an error: {dict(here.flights.retried)}")
        print(f"{KILLS} kills, effects {effects}: none lost, none twice; {time.monotonic() - began_s:.0f} s")

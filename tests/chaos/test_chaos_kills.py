"""kill -9 of services while everything is going on: nothing acknowledged is lost, nothing done twice.

CHAOS_KILLS chooses how many kills the long form has, CHAOS_SEED repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift.skills.v1 import resources_pb2 as types
from tests.chaos.checks import Checks, check_stores, log_problems
from tests.chaos.commanding import Person
from tests.chaos.flights import PATIENCE_S, Flights
from tests.chaos.importing import Importer
from tests.chaos.improving import Improver
from tests.chaos.journal import Journal
from tests.chaos.killer import Killer
from tests.chaos.recording import Recorder
from tests.chaos.themes import PARENT, workshop
from tests.chaos.training import Trainings
from tests.chaos.visiting import Visitors
from tests.support.plane import EXAMPLES, RealPlane, real_plane, tree_of

QUICK_KILLS = 12
LONG_KILLS = int(os.environ.get("CHAOS_KILLS", "100"))
SETTINGS = {
    "NIGHTSHIFT_SKILLS_EMBED_BATCH": "32",
    # Each look for themes takes seconds of a core; a new one comes once enough has happened.
    "NIGHTSHIFT_SKILLS_DETECT_MIN_NEW_RUNS": "300",
    "NIGHTSHIFT_TRAINER_KEEP_WARM_S": "600",
}


@dataclass(frozen=True)
class Length:
    """How long a form of the test is."""

    kills: int
    gap_s: tuple[float, float]
    train_steps: int
    tree_runs: int
    visits_s: tuple[float, float]
    approve_pause_s: float


@pytest.mark.timeout(400)
async def test_a_dozen_kills(tmp_path: Path) -> None:
    await kill_and_check(tmp_path, Length(QUICK_KILLS, (0.3, 1.5), 120, 60, (8, 14), 8))


@pytest.mark.slow
@pytest.mark.timeout(3000)
async def test_a_hundred_kills(tmp_path: Path) -> None:
    await kill_and_check(tmp_path, Length(LONG_KILLS, (0.2, 2.5), 250, 150, (10, 40), 25))


async def kill_and_check(folder: Path, length: Length) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or secrets.randbelow(2**31)
    print(f"CHAOS_SEED={seed} repeats the choices of this run")
    began_s = time.monotonic()
    model, rows = await make_model(folder / "tiny")
    journal = Journal(folder / "journal.jsonl")
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(real_plane(folder, SETTINGS))
        flights = Flights()
        tree_before = tree_of(plane.platform_root)
        source = random.Random(seed)

        def own_source() -> random.Random:
            return random.Random(source.getrandbits(64))

        person = Person(plane, flights, journal, own_source())
        recorder = Recorder(plane, flights, journal, own_source())
        importer = Importer(plane, flights, journal, folder / "trees", seed % 1000)
        improver = Improver(plane, person, own_source())
        trainings = Trainings(plane, person, model, rows, length.train_steps)
        visitors = Visitors(plane, flights, journal, own_source())
        killer = stack.enter_context(closing(Killer(plane, flights, own_source())))

        _, undisturbed = await asyncio.gather(
            make_workshop(plane, recorder, person), trainings.train("undisturbed")
        )
        print(f"prepared after {time.monotonic() - began_s:.0f} s")
        stop = asyncio.Event()
        await together(
            stop,
            killer.run(length.kills, gap_s=length.gap_s),
            recorder.one_by_one(stop),
            recorder.one_by_one(stop),
            recorder.in_streams(stop),
            improver.approve_all(stop, length.approve_pause_s),
            improver.move(stop),
            trainings.again_and_again(stop),
            importer.again_and_again(stop, length.tree_runs),
            visitors.come_by(stop, length.visits_s),
        )
        print(f"killed after {time.monotonic() - began_s:.0f} s")
        print(killer.histogram())
        print(f"{importer.begun_anew} imports begun anew, {len(trainings.digests) - 1} disturbed trainings")

        checks = Checks(plane, person, journal, tree_before)
        await checks.settled()
        run_count = await checks.runs()
        await checks.statistics()
        await checks.imports(importer)
        await checks.commands()
        await checks.production()
        event_count = await checks.audit()
        assert set(trainings.digests) == {undisturbed}, trainings.digests
        assert not plane.orphans()
    assert not plane.processes()
    effects = check_stores(plane, journal)
    print(f"{run_count} runs acknowledged, {event_count} events sealed, effects: {effects}")
    print(f"errors in the logs: {dict(log_problems(plane))}")
    journal.close()
    assert improver.promotions > 0
    print(f"checked after {time.monotonic() - began_s:.0f} s")


async def together(stop: asyncio.Event, killing: Awaitable[None], *driving: Awaitable[None]) -> None:
    """Drives until the killing is over, then lets every driver finish what it is at."""
    killer = asyncio.ensure_future(killing)
    tasks = {killer, *map(asyncio.ensure_future, driving)}
    try:
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if killer in done:
                stop.set()
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def make_model(folder: Path) -> tuple[Path, Path]:
    """A tiny base model and rows to train it on."""
    program = EXAMPLES / "tiny_model.py"
    options = ["--hidden", "32", "--rows", "60"]
    maker = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(folder), *options, stdout=asyncio.subprocess.DEVNULL
    )
    assert await maker.wait() == 0
    return folder / "model", folder / "rows.jsonl"


async def make_workshop(plane: RealPlane, recorder: Recorder, person: Person) -> None:
    """Records a workshop and looks for themes without a config."""
    runs, kept = workshop(random.Random(5))
    for begin in range(0, len(runs), 100):
        await recorder.record_stream(runs[begin : begin + 100])
    for name in kept:
        await recorder.keep(name)
    experience = plane.stub(ExperienceServiceStub, "experience")
    request = experience_pb.ListOpportunitiesRequest(parent=PARENT)
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        run = await person.ended(await person.run("detect_opportunities"))
        found = (await experience.ListOpportunities(request, timeout=10)).opportunities
        if any(one.kind == resources.OPPORTUNITY_KIND_UNCOVERED_THEME for one in found):
            print(f"{len(found)} opportunities")
            return
        assert run.state in (types.SKILL_RUN_STATE_NOTHING_TO_DO, types.SKILL_RUN_STATE_SUCCEEDED), run
        assert time.monotonic() < ends_s, run
        await asyncio.sleep(0.5)

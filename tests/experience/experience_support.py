"""A real experience service for tests, and workshops to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import (
    ExperienceServiceStub,
    add_ExperienceServiceServicer_to_server,
)
from nightshift_experience.__main__ import SERVICE, Core, make_core
from nightshift_experience.config import ExperienceSettings
from nightshift_experience.embedding import EmbeddingProcess, find_model
from nightshift_experience.forgetting import Forgetter
from nightshift_experience.opportunities import OpportunityService
from nightshift_experience.rpc.servicer import ExperienceServicer
from nightshift_experience.search import SearchService
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.grants import Tier
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from tests.support.servers import Serving, serving

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = ROOT / "examples" / "workshop" / "workshop_exports.py"
PLATFORM = ROOT / "examples" / "platform"
ZONE = "Europe/Berlin"
PARENT = "projects/workshop"
OUTCOMES = {
    resources.RUN_OUTCOME_SUCCEEDED: "succeeded",
    resources.RUN_OUTCOME_BLOCKED: "blocked",
    resources.RUN_OUTCOME_FAILED: "failed",
    resources.RUN_OUTCOME_INCOMPLETE: "incomplete",
}


def open_database(home: Path) -> Database:
    """The service's database under a home."""
    path = home / "experience" / "experience.db"
    database = Database(f"sqlite:///{path}", migrations="nightshift_experience", name="experience")
    database.migrate()
    return database


@dataclass
class Experience:
    """A service that runs, and its stub."""

    serving: Serving
    core: Core
    db: Database
    home: Path
    stub: Any
    forgetter: Forgetter

    async def import_all(self, directory: Path, platform_root: Path | None = None) -> Any:
        """Imports a tree and gives the job at its end."""
        request = pb.ImportRunsRequest(
            parent=PARENT, directory=str(directory), platform_root=str(platform_root or "")
        )
        job = await self.stub.ImportRuns(request, timeout=10)
        async for answer in self.stub.WatchImportJob(pb.WatchImportJobRequest(name=job.name), timeout=120):
            job = answer.import_job
        return job

    async def runs(self, filter_: str = "") -> dict[str, Any]:
        """All runs by id."""
        found: dict[str, Any] = {}
        request = pb.ExportRunsRequest(parent=PARENT, filter=filter_)
        async for answer in self.stub.ExportRuns(request, timeout=60):
            found |= {run.name.rpartition("/")[2]: run for run in answer.runs}
        return found

    async def performance(self, **window: Any) -> dict[str, Any]:
        """Statistics by config."""
        request = pb.ListConfigPerformanceRequest(parent=PARENT, page_size=1000, **window)
        answer = await self.stub.ListConfigPerformance(request, timeout=10)
        return {item.config: item for item in answer.config_performance}

    async def aggregate(self, full: bool = False, **claims: Any) -> Any:
        """Aggregates as skills would."""
        return await self.serving.act(
            ExperienceServiceStub,
            "Aggregate",
            pb.AggregateRequest(parent=PARENT, full=full),
            skill="aggregate_experience",
            tier=Tier.AUTO,
            timeout_s=60,
            **claims,
        )


@asynccontextmanager
async def experience(
    home: Path, *, clock: Clock | None = None, settings: ExperienceSettings | None = None
) -> AsyncIterator[Experience]:
    """Serves experience on an ephemeral port over the files below `home`."""
    clock = clock or SystemClock()
    plane = PlaneSettings(home=home, time_zone=ZONE)
    with open_database(home) as db:
        core = make_core(db, clock, settings or ExperienceSettings(), plane)
        await core.imports.recover()
        embedder = EmbeddingProcess(find_model())
        search = SearchService(db, embedder, folder=home / "experience" / "lance")
        opportunities = OpportunityService(db, clock, search, embedder, platform_root=None)
        servicer = ExperienceServicer(
            intake=core.intake,
            imports=core.imports,
            experience=core.experience,
            aggregator=core.aggregator,
            search=search,
            opportunities=opportunities,
            sessions=core.sessions,
            profiles=core.profiles,
            tuning=core.tuning,
            forgetter=Forgetter(db, clock, search),
            clock=clock,
        )
        services = [(add_ExperienceServiceServicer_to_server, servicer, SERVICE)]
        async with serving("experience", services, home=home, db=db, clock=clock) as running:
            try:
                stub = running.stub(ExperienceServiceStub)
                yield Experience(running, core, db, home, stub, servicer.forgetter)
            finally:
                await core.imports.close()
                await opportunities.close()
                await search.close()
                await embedder.close()


def simulate(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs the simulator and reads its truth."""
    command = [sys.executable, str(SIMULATOR), "--out", str(folder), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONHASHSEED": "0"})
    return read_truth(folder)


def read_truth(folder: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return truth


def renamed(folder: Path, rename: Callable[[str], str], ids: list[str]) -> None:
    """Renames config ids in every record of a tree, as another platform would have named them."""
    for path in (folder / "exports").rglob("metadata.json"):
        if path.is_symlink():
            continue
        data = path.read_bytes()
        for one in ids:
            data = data.replace(f'"{one}"'.encode(), f'"{rename(one)}"'.encode())
        path.write_bytes(data)

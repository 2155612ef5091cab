"""Imports of exports that are cut short and begun anew."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from tests.chaos.flights import Flights, Refused
from tests.chaos.journal import Journal
from tests.chaos.themes import PARENT
from tests.support.plane import EXAMPLES, PLATFORM, RealPlane

_CUT_SHORT = frozenset({"INTERRUPTED", "IMPORTER_DIED"})


def make_tree(folder: Path, seed: int, runs: int) -> Path:
    """A simulated workshop; its folder."""
    program = EXAMPLES / "workshop" / "workshop_exports.py"
    arguments = ["--out", str(folder), "--runs", str(runs), "--seed", str(seed)]
    subprocess.run([sys.executable, str(program), *arguments], check=True, stdout=subprocess.DEVNULL)
    return folder


class Importer:
    """Imports tree after tree.

    Attributes:
        done: Trees that were imported to the end.
        begun_anew: Imports that a kill cut short.
    """

    def __init__(self, plane: RealPlane, flights: Flights, journal: Journal, folder: Path, seed: int) -> None:
        self._platform_root = plane.platform_root
        self._stub = plane.stub(ExperienceServiceStub, "experience", PLATFORM)
        self._flights = flights
        self._journal = journal
        self._folder = folder
        self._seed = seed
        self.done: list[Path] = []
        self.begun_anew = 0

    async def again_and_again(self, stop: asyncio.Event, runs: int) -> None:
        """A new tree every few seconds, each imported twice."""
        number = 0
        while not number or not stop.is_set():
            number += 1
            tree = self._folder / f"tree-{number}"
            await asyncio.to_thread(make_tree, tree, self._seed * 1000 + number, runs)
            await self.import_tree(tree)
            again = await self.import_tree(tree)
            assert (again.created_count, again.updated_count) == (0, 0), again
            self.done.append(tree)
            await asyncio.sleep(6)

    async def import_tree(self, tree: Path, parent: str = PARENT) -> resources.ImportJob:
        """Imports until an import has come to its end; that one."""
        while True:
            job = await self._job(tree, parent)
            if job.state == resources.IMPORT_JOB_STATE_SUCCEEDED:
                self._journal.acknowledged("import", tree=str(tree), parent=parent, job=job.name)
                return job
            assert job.state == resources.IMPORT_JOB_STATE_FAILED, job
            assert job.failure.reason in _CUT_SHORT, job
            self.begun_anew += 1

    async def _job(self, tree: Path, parent: str) -> resources.ImportJob:
        request = pb.ImportRunsRequest(
            parent=parent, directory=str(tree), platform_root=str(self._platform_root)
        )
        with self._flights.under_way("import"):
            while True:
                try:
                    job, _ = await self._flights.insist(
                        "ImportRuns", lambda: self._stub.ImportRuns(request, timeout=5)
                    )
                    break
                except Refused as error:
                    # The job of a call whose answer was lost: it runs on its own.
                    if error.rich.reason != "IMPORT_RUNNING":
                        raise
                await asyncio.sleep(0.1)
            look = pb.GetImportJobRequest(name=job.name)
            while job.state == resources.IMPORT_JOB_STATE_RUNNING:
                await asyncio.sleep(0.05)
                job, _ = await self._flights.insist(
                    "look", lambda: self._stub.GetImportJob(look, timeout=5), quiet=True
                )
        return job  # type: ignore[no-any-return]

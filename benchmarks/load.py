"""A machine without time to spare, and a plane with twenty skill runs at work on it.

`Busy` keeps every core computing and a disk writing, each in a process of its own. `Crowd` keeps nineteen
runs at work beside a training: of experience (embedding, aggregation, detection) and of the lab (validation),
asked for by a person as anybody may. What a user stops goes on by itself after quiet; what ends is asked for
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from benchmarks.bench_ingest import make_run
from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb

RUNS = 20
# How many runs of which skill are at work, the training not counted.
CROWD = {
    "build_embeddings": 7,
    "aggregate_experience": 6,
    "detect_opportunities": 4,
    "validate_configs": 2,
}
_PARAMETERS = {"aggregate_experience": {"full": True}}
_RECORDED = 40_000
_BATCH = 500
_CONFIGS = 400

_BURNER = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    sum(range(100_000))
"""
_WRITER = """
import os, sys
parent, path = int(sys.argv[1]), sys.argv[2]
block, count = os.urandom(1 << 20), 0
file = os.open(path, os.O_CREAT | os.O_WRONLY)
while os.getppid() == parent:
    os.pwrite(file, block, (count % 64) << 20)
    os.fsync(file)
    count += 1
    os.pwrite(file, b"%020d" % count, 64 << 20)
"""


class Busy:
    """Every core computes and a disk is written, from entry to exit."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "written"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cpu = (0, 0)

    def __enter__(self) -> Self:
        cores = len(os.sched_getaffinity(0))
        programs = [(_BURNER,)] * cores + [(_WRITER, str(self._file))]
        for source, *arguments in programs:
            command = [sys.executable, "-S", "-c", source, str(os.getpid()), *arguments]
            # A session of its own: where the kernel shares cores by session, each counts in full.
            self._processes.append(subprocess.Popen(command, start_new_session=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def begin(self) -> None:
        """What `described` tells counts from here."""
        self._cpu = _cpu_times()
        self._written = self._count()

    def described(self) -> str:
        """How busy cores and disk were since `begin`."""
        busy, whole = (after - before for after, before in zip(_cpu_times(), self._cpu, strict=True))
        return (
            f"cores busy {100 * busy / whole:.1f} %, {self._count() - self._written:,} MiB written and "
            f"fsynced, load {os.getloadavg()[0]:.1f}"
        )

    def _count(self) -> int:
        with contextlib.suppress(OSError, ValueError), self._file.open("rb") as file:
            file.seek(64 << 20)
            return int(file.read(20))
        return 0


def _cpu_times() -> tuple[int, int]:
    """Ticks that all cores were busy, and all ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class Workshop:
    """What the runs work on: recorded runs of a season, and configs that somebody edits all the time."""

    def __init__(self, configs: Path, seed: int) -> None:
        self._configs = configs
        self._source = random.Random(seed)
        self._edits = 0

    async def record(self, experience: Any) -> None:
        """Records runs whose prompts all wait for embedding."""

        async def messages() -> AsyncIterator[experience_pb.RecordRunsRequest]:
            for first in range(0, _RECORDED, _BATCH):
                runs = [make_run(number) for number in range(first, first + _BATCH)]
                for number, run in enumerate(runs, first):
                    run.name = run.name.replace("projects/bench", "projects/default")
                    run.prompt = f"{run.prompt}, von {self._source.getrandbits(40):x}, Blatt {number}"
                yield experience_pb.RecordRunsRequest(parent="projects/default", runs=runs)

        await experience.RecordRuns(messages(), timeout=300)

    def edit(self) -> None:
        """Changes every config, so that each waits for validation."""
        self._edits += 1
        for number in range(_CONFIGS):
            content = {
                "name": {"de": f"Linse {number}", "en": f"Lens {number}"},
                "description": {"de": f"Sieht anders, Fassung {self._edits}.", "en": "Sees differently."},
                "category": {"de": "Kunst", "en": "Arts"},
                "context": {"de": f"Betrachte alles wie Nummer {number}.", "en": f"Look as {number} does."},
            }
            (self._configs / f"lens_{number}.json").write_text(json.dumps(content))


class Crowd:
    """Nineteen runs at work, beside a training."""

    def __init__(self, skills: Any, workshop: Workshop) -> None:
        self._skills = skills
        self._workshop = workshop
        self._asking: set[asyncio.Task[None]] = set()
        self._asked: Counter[str] = Counter()

    async def full(self) -> list[str]:
        """Waits until so many runs are at work; their skills."""
        while True:
            open_runs, at_work = await self._look()
            if len(at_work) >= RUNS:
                return at_work
            await asyncio.to_thread(self._workshop.edit)
            for skill, count in CROWD.items():
                missing = count - open_runs[skill] - self._asked[skill]
                for _ in range(missing):
                    self._ask(skill)
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _look(self) -> tuple[Counter[str], list[str]]:
        """Skills of runs that have not ended, counted, and those of runs at work."""
        listed = await self._skills.ListSkillRuns(pb.ListSkillRunsRequest(page_size=60), timeout=30)
        going = [run for run in listed.skill_runs if not run.end_time.seconds]
        working = [run for run in going if run.state == types.SKILL_RUN_STATE_RUNNING]
        return (
            Counter(run.skill.removeprefix("skills/") for run in going),
            [run.skill.removeprefix("skills/") for run in working],
        )

    def _ask(self, skill: str) -> None:
        self._asked[skill] += 1
        task = asyncio.create_task(self._run(skill))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _run(self, skill: str) -> None:
        request = pb.RunSkillRequest(name=f"skills/{skill}")
        request.parameters.update(_PARAMETERS.get(skill, {}))
        try:
            await self._skills.RunSkill(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            # A user is here: asked again in a moment.
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                print(f"{skill}: {error.code()} {error.details()}", file=sys.stderr)
        finally:
            self._asked[skill] -= 1


class Nvml:
    """A stand-in for NVML that lists the trainer's worker as long as its process lives."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.library = folder / "libnvidia-ml.so.1"
        self.state = folder / "nvml"
        self._jobs = home / "trainer" / "jobs"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def build(self) -> None:
        """Compiles it; raises where there is no C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise SystemExit("T5 needs a C compiler here, for a stand-in of NVML")
        source = Path(__file__).parents[1] / "tests" / "monitor" / "fake_nvml.c"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{self.library.name}"]
        subprocess.run([*command, "-o", str(self.library), str(source)], check=True)
        self._tell("")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        told = ""
        while not self._stop.wait(0.01):
            pid = self._worker()
            if pid != told:
                told = pid
                self._tell(pid)

    def _worker(self) -> str:
        for record in self._jobs.glob("*/worker.json"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = str(json.loads(record.read_text())["pid"])
                state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
                return "" if state == "Z" else pid
        return ""

    def _tell(self, pid: str) -> None:
        lines = ["gpus 1", "name 0 Stand-in", f"memory 0 {24 << 30} {4 << 30}", "utilization 0 50"]
        lines += [f"compute 0 {pid} {3 << 30}"] if pid else []
        fresh = self.state.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.state)

"""Importing a workshop beside reading its metadata with orjson and nothing else.

    python benchmarks/bench_import.py [--runs 5000 | --tree DIR] [--rounds 3]

The files are in the page cache. "first" stores everything into an empty database, "second" finds nothing
changed. Wall time of the whole job, its reading process included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from nightshift_experience.__main__ import make_core
from nightshift_experience.config import ExperienceSettings
from nightshift_kit.clock import SystemClock
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database

ROOT = Path(__file__).resolve().parents[1]
SIMULATOR = ROOT / "examples" / "workshop" / "workshop_exports.py"
PLATFORM = ROOT / "examples" / "platform"


def read_metadata(tree: Path) -> float:
    """Seconds to parse every metadata.json."""
    began = time.perf_counter()
    for folder, _, files in os.walk(tree):
        if "metadata.json" in files:
            try:
                orjson.loads((Path(folder) / "metadata.json").read_bytes())
            except orjson.JSONDecodeError:
                continue
    return time.perf_counter() - began


async def import_twice(tree: Path, home: Path) -> tuple[float, float, int]:
    """Seconds of a first and of a second import, and runs stored."""
    plane = PlaneSettings(home=home, time_zone="Europe/Berlin")
    url = f"sqlite:///{home / 'experience.db'}"
    with Database(url, migrations="nightshift_experience", name="experience") as db:
        db.migrate()
        core = make_core(db, SystemClock(), ExperienceSettings(), plane)
        spans = []
        created = 0
        for _ in range(2):
            began = time.perf_counter()
            job = await core.imports.start("bench", str(tree), "", str(PLATFORM), actor="benchmark")
            async for state in core.imports.watch("bench", job.job_id, 0):
                job = state
            spans.append(time.perf_counter() - began)
            created += job.created_count
        await core.imports.close()
    return spans[0], spans[1], created


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="a workshop that is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = arguments.tree or Path(folder) / "workshop"
        if arguments.tree is None:
            command = [sys.executable, str(SIMULATOR), "--out", str(tree), "--runs", str(arguments.runs)]
            subprocess.run([*command, "--seed", "7"], check=True, stdout=subprocess.DEVNULL)
        read_metadata(tree)
        rows: list[tuple[float, float, float]] = []
        for number in range(arguments.rounds):
            home = Path(folder) / f"home{number}"
            home.mkdir()
            bare = read_metadata(tree)
            first, second, created = asyncio.run(import_twice(tree, home))
            rows.append((created / bare, created / first, second))
        load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, {created} runs, {arguments.rounds} rounds, medians")
    bare, first, second = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"  metadata with orjson and nothing else   {bare:9.0f} runs/s")
    print(f"  first import                            {first:9.0f} runs/s")
    print(f"  second import, nothing changed          {second:9.2f} s")


if __name__ == "__main__":
    main()

"""Every benchmark in a short form, one after the other; their tables in benchmarks/RESULTS.md.

    python -m benchmarks.run_all [--only ingest,import,…] [--output benchmarks/RESULTS.md]

The short form (about a quarter of an hour) shows where a figure stands; each benchmark's own options make it
as long as one likes. One that fails leaves its complaint in the table's place, and the command ends with
status 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LONGEST_S = 3600.0
# Versions that figures depend on most.
_LIBRARIES = ("grpcio", "protobuf", "SQLAlchemy", "pysqlite3", "lancedb", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder and the options of its short form."""

    name: str
    options: tuple[str, ...] = ()
    file: str = ""

    @property
    def module(self) -> str:
        """For `python -m`."""
        return f"benchmarks.bench_{self.file or self.name}"


BENCHMARKS = (
    Benchmark("idle_plane"),
    Benchmark("ingest", ("--seconds", "3", "--rounds", "3")),
    Benchmark("import", ("--runs", "5000", "--rounds", "3")),
    Benchmark("search", ("--texts", "256", "--rounds", "3", "--vectors", "100000")),
    Benchmark("recommendations", ("--trials", "1000")),
    Benchmark("profiles", ("--sizes", "1000,10000,100000")),
    Benchmark("opportunities", ("--tuning", "1-2", "--unseen", "31-32")),
    Benchmark("sessions", ("--runs", "1500", "--tuning", "1-2")),
    Benchmark("preemption", ("--count", "200")),
    Benchmark("preemption_load", ("--load", "--count", "50"), file="preemption"),
    Benchmark("activity", ("--rounds", "2")),
    Benchmark("export"),
    Benchmark("preemption_worker", ("--stops", "20")),
    Benchmark("training_overhead", ("--rounds", "3")),
)


def machine() -> list[str]:
    """What the figures were measured on, as lines of a list."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor() or "unknown",
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return [
        f"- {len(os.sched_getaffinity(0))} cores ({cpu}), {memory_gib:.0f} GiB of memory, {_gpu()}",
        f"- {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- {versions}",
        "- clients and servers share the cores; load averages stand beside each table",
    ]


def _gpu() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "no GPU"
    asked = subprocess.run(
        [command, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return ", ".join(asked.stdout.split("\n")).strip(", ") or "no GPU"


def run(benchmark: Benchmark) -> tuple[str, bool]:
    """Its part of the page, and whether it succeeded."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", benchmark.module, *benchmark.options]
    before, began = os.getloadavg()[0], time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )
        output, succeeded = done.stdout.strip(), done.returncode == 0
        if not succeeded:
            complaint = "\n".join(done.stderr.strip().splitlines()[-5:])
            output = f"{output}\nended with status {done.returncode}\n{complaint}".strip()
    except subprocess.TimeoutExpired:
        output, succeeded = f"did not end within {_LONGEST_S:.0f} s", False
    spent_s = time.perf_counter() - began
    title = (importlib.import_module(benchmark.module).__doc__ or "").strip().splitlines()[0]
    line = " ".join(["python -m", benchmark.module, *benchmark.options])
    # Tables in Markdown would not be read inside of a block of code.
    body = output if output.startswith("|") or "\n|" in output else f"```\n{output}\n```"
    part = (
        f"## {benchmark.name.replace('_', ' ')}\n\n{title}\n\n"
        f"`{line}` ({spent_s:.0f} s, load {before:.1f} before and {os.getloadavg()[0]:.1f} after)\n\n{body}\n"
    )
    return part.replace(str(ROOT), "."), succeeded


def sections(page: Path) -> dict[str, str]:
    """The page's parts by the benchmark's name; none where there is no page."""
    if not page.exists():
        return {}
    _, *parts = page.read_text().split("\n## ")
    return {part.partition("\n")[0].replace(" ", "_"): f"## {part.rstrip()}\n" for part in parts}


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names, separated by commas; the rest of the page is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.only.split(",") if name]
    names = [benchmark.name for benchmark in BENCHMARKS]
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    kept = sections(arguments.output) if wanted else {}
    head = (
        f"# Measured figures\n\nWritten by `make bench` on {today}. Not edited by hand.\n\n"
        + "\n".join(machine())
        + "\n"
    )
    failed = []
    for benchmark in BENCHMARKS:
        if wanted and benchmark.name not in wanted:
            continue
        print(f"{benchmark.name} …", flush=True)
        part, succeeded = run(benchmark)
        print(part, flush=True)
        kept[benchmark.name] = part
        if not succeeded:
            failed.append(benchmark.name)
        # After each: what was measured is kept where a later one is interrupted.
        ordered = [kept[name] for name in names if name in kept]
        arguments.output.write_text("\n".join([head, *ordered]))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

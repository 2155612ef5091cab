"""The plane as it stands idle: time until it is healthy, resident memory, CPU share.

    python -m benchmarks.bench_idle_plane [--seconds 30] [--settle 5] [--rounds 1]

An empty home, embedded stores, a free block of ports. Counted are the process table and everything below it;
"memory" is the sum of resident sets (pages that processes share count for each of them), and beside it that
of proportional sets (they count once).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Process:
    """One process of the plane: sizes in bytes, CPU time since its start in seconds."""

    pid: int
    name: str
    rss_bytes: int
    pss_bytes: int
    cpu_s: float
    threads: int


def processes_below(root: int) -> list[Process]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        if (process := _process(pid)) is not None:
            found.append(process)
    return found


def _stat(pid: int) -> list[str]:
    # The command's name may hold spaces and brackets; what follows the last one is regular.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _process(pid: int) -> Process | None:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return None
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines()[1:]}
    fields = _stat(pid)
    if not fields:
        return None
    name = next((word for word in words if word.startswith("nightshift_")), words[0])
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
    return Process(pid, name, sizes["Rss:"], sizes["Pss:"], cpu_s, int(fields[17]))


def measure(
    home: Path, settle_s: float, idle_s: float
) -> tuple[float, list[Process], float, dict[int, float]]:
    """(seconds until ready, processes, idle share of a core, share by pid)."""
    environment = {**os.environ, "NIGHTSHIFT_HOME": str(home)}
    command = [sys.executable, "-m", "nightshift_kit.processes", "--detach", "--port-base", "0"]
    began = time.perf_counter()
    started = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    ready_s = time.perf_counter() - began
    if started.returncode != 0:
        raise SystemExit(started.stderr)
    pid = orjson.loads((home / "endpoints.json").read_bytes())["plane_pid"]
    try:
        time.sleep(settle_s)
        before = {process.pid: process.cpu_s for process in processes_below(pid)}
        time.sleep(idle_s)
        processes = processes_below(pid)
    finally:
        os.kill(pid, 15)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
    shares = {one.pid: (one.cpu_s - before.get(one.pid, 0.0)) / idle_s for one in processes}
    return ready_s, processes, sum(shares.values()), shares


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long it is watched")
    parser.add_argument("--settle", type=float, default=5.0, help="pause between ready and watching")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    ready, rss, pss, cpu = [], [], [], []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ready_s, processes, share, shares = measure(Path(folder), arguments.settle, arguments.seconds)
        ready.append(ready_s)
        rss.append(sum(one.rss_bytes for one in processes) / _MIB)
        pss.append(sum(one.pss_bytes for one in processes) / _MIB)
        cpu.append(100 * share)
        print(f"round {number + 1}")
        for one in processes:
            print(
                f"  {one.name:26} rss {one.rss_bytes / _MIB:6.0f} MiB  pss {one.pss_bytes / _MIB:6.0f} MiB  "
                f"start {one.cpu_s:5.2f} s CPU  idle {100 * shares[one.pid]:5.2f} %  {one.threads} threads"
            )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds, medians")
    print(f"  ready after `up`                     {statistics.median(ready):8.2f} s    (target 6)")
    print(
        f"  resident memory, {len(processes)} processes       {statistics.median(rss):8.0f} MiB  (target 900)"
    )
    print(f"  proportional memory                  {statistics.median(pss):8.0f} MiB")
    print(f"  share of a core, idle                {statistics.median(cpu):8.2f} %    (target 2)")


if __name__ == "__main__":
    main()

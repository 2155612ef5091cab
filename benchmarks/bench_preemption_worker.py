"""From STOP to the worker's exit, and from start to the next step, with a real training running.

Each round starts (or resumes) the training, waits for a step, sends STOP at a random moment of the
following steps and waits until the process is gone. Times are CLOCK_BOOTTIME from the call of `stop` to the
pidfd's wake-up.

    python -m benchmarks.bench_preemption_worker [--stops 50] [--hidden 256] [--layers 4]
"""

from __future__ import annotations

import argparse
import collections
import random
import tempfile
import time
from pathlib import Path

from nightshift_trainer.worker.order import Order
from tests.trainer.training_support import Bench, make_fixture


def share(values: list[float], part: float) -> float:
    """The value that `part` of all values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def describe(name: str, values: list[float]) -> str:
    return (
        f"{name}: median {share(values, 0.5):.0f} ms, p90 {share(values, 0.9):.0f}, "
        f"p99 {share(values, 0.99):.0f}, max {max(values):.0f} (n={len(values)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Distribution of STOP to exit, and of start to step.")
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    source = random.Random(0)
    exits: list[float] = []
    restarts: list[float] = []
    ways: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixture = make_fixture(folder / "fixture", hidden=arguments.hidden, layers=arguments.layers, rows=200)
        spec = fixture.spec(max_steps=100_000, lora_dropout=0.05, gradient_accumulation=8)
        order = Order(spec, folder / "job")
        bench = Bench(folder / "bench")
        try:
            bench.start(order)
            told = bench.follow(lambda message: message["kind"] == "step")
            for _ in range(arguments.stops):
                time.sleep(source.uniform(0, 0.5))
                bench.supervisor.stop("user")
                bench.follow(told=told)
                assert told.end is not None
                exits.append((told.end.exited_ns - told.end.asked_ns) / 1e6)
                ways["killed" if told.end.killed else str(told.last()["how"])] += 1
                begin = time.monotonic()
                bench.start(order)
                # The step that it resumes from is told again; the next one is a new one.
                told = bench.follow(lambda message: message["kind"] == "step" and not message.get("restored"))
                restarts.append((time.monotonic() - begin) * 1e3)
        finally:
            bench.close()
    print(describe("STOP to exit", exits), dict(ways))
    print(describe("start to the next step, forked from the warm parent", restarts))


if __name__ == "__main__":
    main()

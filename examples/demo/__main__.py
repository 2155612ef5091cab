"""Walk one whole improvement on a generated workshop. `make demo` runs it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from rich.console import Console

from examples.demo import improvement, training
from examples.demo.narrator import DemoFailedError, Narrator
from examples.demo.stage import Stage

# The real detector, the real scheduler, the real back-off: only shorter than on a workshop day.
SETTINGS = {
    "NIGHTSHIFT_MONITOR_QUIET_S": "3",
    "NIGHTSHIFT_MONITOR_PROBE_INTERVAL_S": "2",
    "NIGHTSHIFT_MONITOR_RECHECK_INTERVAL_S": "1",
    "NIGHTSHIFT_SKILLS_TICK_S": "1",
    "NIGHTSHIFT_SKILLS_BACKOFF_FIRST_S": "2",
    "NIGHTSHIFT_SKILLS_CHECKPOINT_INTERVAL_S": "1",
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="examples.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="made anew (default: .demo)")
    parser.add_argument("--runs", type=int, default=1000, help="runs of the generated workshop")
    parser.add_argument("--seed", type=int, default=8, help="seed of the workshop")
    parser.add_argument("--keep", action="store_true", help="leave plane and platform running")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    narrator = Narrator(console)
    stage = Stage(arguments.folder.resolve(), SETTINGS)
    failed = True
    try:
        play(stage, narrator, arguments.runs, arguments.seed)
        if not arguments.keep:
            with narrator.step("Stop: the plane and the platform end cleanly"):
                stage.close()
        narrator.summary()
        failed = False
    except DemoFailedError as error:
        console.print(f"\n[bold red]The demo failed.[/bold red] {error}", markup=True)
        console.print(f"Logs: {stage.home / 'logs'}, {stage.folder}")
    finally:
        if arguments.keep and not failed:
            console.print(
                f"\nThe plane stays up. Look around with:\n   export NIGHTSHIFT_HOME={stage.home}\n"
                "   .venv/bin/nightshift status\nand stop it with:\n   .venv/bin/nightshift down\n"
                f"The example platform runs as process {stage.platform_pid} on port {stage.platform_port}."
            )
        elif failed:
            with contextlib.suppress(DemoFailedError):
                stage.close()
    return 1 if failed else 0


def play(stage: Stage, narrator: Narrator, runs: int, seed: int) -> None:
    """All steps; raises DemoFailedError at the first that is not what it should be."""
    with narrator.step("Set up: a workshop, a platform, a plane of five services over mTLS"):
        truth = stage.prepare(runs, seed)
        stage.start_platform()
        began = time.monotonic()
        stage.nightshift("up", "--detach", "--port-base", "0")
        narrator.say(f"five services are healthy after {time.monotonic() - began:.1f} s")
        for name, endpoint in stage.endpoints().items():
            narrator.say(f"  {name:<11} {endpoint['address']}")
    with narrator.step(f"Remember: import {runs} runs of the platform's exports"):
        improvement.remember(stage, narrator, truth)
    with narrator.step("Find: embed the production prompts, search by meaning"):
        improvement.find(stage, narrator)
    with narrator.step("Learn: the machine is idle, aggregate_experience (AUTO) runs by itself"):
        improvement.learn(stage, narrator)
    with narrator.step("Propose: propose_config (CONFIRM) asks, a person approves the very plan"):
        proposal = improvement.propose(stage, narrator)
    with narrator.step("Promote and roll back: promote_config (MANUAL), two refusals, rollback"):
        improvement.promote_and_roll_back(stage, narrator, proposal)
    with narrator.step("Train: train_adapter in 4 bits on the CPU, a user arrives in the middle"):
        training.train(stage, narrator)
    with narrator.step("Prove: the audit chain verifies"):
        verdict = stage.nightshift("audit", "verify")
        narrator.check(
            bool(verdict.get("valid")), f"{verdict.get('event_count', 0)} audit events verify", verdict
        )


if __name__ == "__main__":
    sys.exit(main())

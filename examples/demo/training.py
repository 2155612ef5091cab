"""Step 6: a LoRA is trained, a user comes in the middle, and the weights do not show it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.demo.improvement import wait_for, wait_run
from examples.demo.narrator import Narrator
from examples.demo.stage import COMMAND, EXAMPLES, Stage
from nightshift_client import Client

STEPS = 40
ARRIVAL_STEP = 15


def train(stage: Stage, narrator: Narrator) -> None:
    """Two trainings of the same spec: one left alone, one with a user in the middle."""
    folder = stage.folder / "tiny-qwen3"
    subprocess.run(
        [sys.executable, EXAMPLES / "tiny_model.py", folder, "--rows", "200"],
        env=stage.environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    narrator.say(f"a tiny Qwen3 with a tokenizer of its own lies in {folder.name}/")
    weights = _train_once(stage, narrator, folder, "left-alone", user=False)["weights_digest"]
    again = _train_once(stage, narrator, folder, "with-a-user", user=True)["weights_digest"]
    narrator.check(
        weights == again,
        f"the interrupted training ended with the very same weights (sha256 {weights[:16]}…)",
        (weights, again),
    )


def _train_once(stage: Stage, narrator: Narrator, folder: Path, name: str, *, user: bool) -> dict[str, Any]:
    """Plan, approve, follow; with `user`, report activity in the middle. Returns the adapter."""
    options = {
        "base-model": folder / "model",
        "dataset": folder / "rows.jsonl",
        "preset": "tiny",
        "max-steps": STEPS,
        "lora-dropout": 0.1,
        "seed": 7,
        "adapter-id": name,
    }
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    run = stage.nightshift("train", "start", *given, "--propose")
    narrator.say(f"{name}: {run['plan']['summary']}")
    waits = run["state"] == "SKILL_RUN_STATE_AWAITING_APPROVAL"
    narrator.check(waits, "it waits for a person", run["state"])
    stage.nightshift("approvals", "approve", run["approval"], "--yes")
    job = wait_for(lambda: _job_of(stage, run["name"]), 60, "the training job")
    with _progress(stage, job["name"]) as points:
        _follow(stage, narrator, points, user=user)
    wait_run(stage, run, timeout_s=180)
    adapters = stage.nightshift("adapters", "list")["adapters"]
    return next(adapter for adapter in adapters if adapter["name"] == f"adapters/{name}")


def _follow(stage: Stage, narrator: Narrator, points: Iterator[dict[str, Any]], *, user: bool) -> None:
    """Print the stream; let a user arrive at ARRIVAL_STEP; end with the job."""
    losses: list[float] = []
    arrived = False
    events: list[str] = []
    for point in points:
        step = int(point.get("step", 0))
        if point.get("kind") == "PROGRESS_KIND_STEP":
            losses.append(float(point["loss"]))
            if step in (1, STEPS) or step % 10 == 0:
                narrator.say(f"  step {step:>3}/{STEPS}  loss {losses[-1]:.3f}")
        if point.get("event"):
            events.append(point["event"])
            if point["event"] not in ("checkpoint",):
                narrator.say(f"  {point['event']}: {point.get('message', '')}")
        if user and not arrived and step >= ARRIVAL_STEP:
            arrived = True
            _user_arrives(stage, narrator)
    narrator.check(losses[-1] < losses[0], f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}", losses)
    if user:
        narrator.check(
            len(losses) == STEPS, "every optimiser step was reported once, none twice", len(losses)
        )


def _user_arrives(stage: Stage, narrator: Narrator) -> None:
    """The platform reports a user; print how fast the machine was free."""
    narrator.say("  a user arrives (ReportActivity)")
    before = {p["name"] for p in stage.nightshift("preemptions", "list").get("preemptions", [])}
    with Client(home=stage.home) as client:
        client.report_activity()

        def confirmed() -> dict[str, Any] | None:
            listed = stage.nightshift("preemptions", "list").get("preemptions", [])
            new = [
                p for p in listed if p["name"] not in before and p.get("confirmed") and p.get("skill_runs")
            ]
            return new[0] if new else None

        found = wait_for(confirmed, 20, "the pre-emption to be confirmed")
    times = {name: _milliseconds(found.get(name)) for name in ("t1", "t2", "t3", "t4")}
    narrator.say(
        "  from the client's send: "
        + ", ".join(f"{name.upper()} {value}" for name, value in times.items())
        + f" ms; {found.get('killed_count', 0)} killed"
    )
    narrator.check(
        times["t4"] is not None and times["t4"] < 1000, "the worker was gone within a second (T4)", times
    )


def _milliseconds(duration: str | None) -> float | None:
    return None if duration is None else round(float(duration.removesuffix("s")) * 1000, 1)


def _job_of(stage: Stage, skill_run: str) -> dict[str, Any] | None:
    jobs = stage.nightshift("train", "list").get("training_jobs", [])
    found = [job for job in jobs if job["skill_run"] == skill_run]
    return found[0] if found else None


@contextmanager
def _progress(stage: Stage, job: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The points of `nightshift train watch JOB --json`, live, until the job ends."""
    process = subprocess.Popen(
        [COMMAND, "train", "watch", job, "--json"],
        env=stage.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = process.stdout
    try:
        yield (point for line in lines for point in json.loads(line).get("points", []))
    finally:
        process.terminate()
        process.wait(timeout=10)
        lines.close()

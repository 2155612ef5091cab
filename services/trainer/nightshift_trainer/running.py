"""One job while it has a worker: what is told about it, and how an end becomes a state."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nightshift_kit.grants import Effect
from nightshift_trainer.progress import PointLog
from nightshift_trainer.records import State, TrainingJob
from nightshift_trainer.supervisor import WorkerEnd

# STOP's causes, as pause_cause tells them.
_PAUSE_CAUSES: Mapping[str, str] = {
    "person": "person",
    "lock": "person",
    "cancel": "person",
    "lease": "lease",
    "restart": "restart",
    "shutdown": "restart",
}

# SIGKILL and SIGTERM come from outside (an administrator, the kernel's memory killer, the dead man's
# switch): the job can go on. None is a worker that nobody could ask.
_KILLED_FROM_OUTSIDE = (-9, -15, None)


@dataclass
class Pending:
    """A caller who waits for a running job to pause or to be cancelled."""

    kind: str
    effect: Effect
    answer: asyncio.Future[bytes]


@dataclass
class Running:
    """A job with a worker.

    `job` is changed by the thread that absorbs messages only, and replaced as a whole.
    """

    job: TrainingJob
    log: PointLog
    forget: Callable[[], None]
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop_cause: str = ""
    started: bool = False
    worker_pid: int = 0
    pending: list[Pending] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    written: TrainingJob | None = None
    phase: str = ""
    _last_step_s: float = 0.0

    def absorb(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Takes a worker's messages into job and log. Raises OSError where the log cannot be written."""
        points: list[dict[str, Any]] = []
        for message in messages:
            kind = message["kind"]
            if kind == "step":
                points.extend(self._step(message))
            elif kind == "phase":
                points.extend(self._phase(message["phase"]))
            elif kind == "event":
                points.append(self.point("event", event=message["event"], message=message["message"]))
            elif kind == "total":
                self.job = dataclasses.replace(self.job, total_steps=message["total_steps"])
            elif kind == "hello":
                self.worker_pid = message["pid"]
        if points:
            self.log.append(points)

    def point(self, kind: str, **values: Any) -> dict[str, Any]:
        """A point at the job's present step."""
        return {
            "time_s": time.time(),
            "kind": kind,
            "step": self.job.step,
            "total_steps": self.job.total_steps,
            "phase": self.phase,
            **values,
        }

    def _step(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        known = message.get("restored", False) and message["step"] <= self.job.step
        changes: dict[str, Any] = {
            "step": message["step"],
            "total_steps": message["total_steps"],
            "loss": message["loss"],
            "checkpoint_digest": message["checkpoint_digest"],
        }
        if not message.get("restored", False):
            if self._last_step_s:
                changes["timed_s"] = self.job.timed_s + message["time"] - self._last_step_s
                changes["timed_steps"] = self.job.timed_steps + 1
            self._last_step_s = message["time"]
        self.job = dataclasses.replace(self.job, **changes)
        if known:
            return []
        return [
            {
                "time_s": message["time"],
                "kind": "step",
                "phase": self.phase,
                **{
                    name: message[name]
                    for name in (
                        "step",
                        "total_steps",
                        "epoch",
                        "loss",
                        "smoothed_loss",
                        "learning_rate",
                        "gradient_norm",
                        "tokens_per_second",
                        "memory_bytes",
                        "eta_s",
                    )
                },
            }
        ]

    def _phase(self, phase: str) -> list[dict[str, Any]]:
        if phase == self.phase:
            return []
        self.phase = phase
        if phase in ("warming", "training") and self.job.state is State.STARTING:
            self.job = dataclasses.replace(self.job, state=State.RUNNING)
        return [self.point("phase")]


@dataclass(frozen=True)
class Outcome:
    """What a worker's end makes of its job."""

    state: State
    pause_cause: str = ""
    failure: Mapping[str, Any] | None = None
    event: str = "ended"
    message: str = ""


def outcome_of(end: WorkerEnd, *, cancelled: bool) -> Outcome:
    """Reads a worker's end. Success and failure count however it was asked to stop; else the asking does."""
    kind = end.last["kind"] if end.last is not None else ""
    if end.last is not None and kind == "succeeded":
        return Outcome(State.SUCCEEDED, message="The adapter is saved.")
    if end.last is not None and kind == "failed":
        failure = {name: end.last[name] for name in ("reason", "message", "metadata")}
        return Outcome(State.FAILED, failure=failure, message=failure["message"])
    if cancelled:
        return Outcome(State.CANCELLED, message="Cancelled.")
    if end.cause or kind == "stopped":
        took_ms = (end.exited_ns - end.asked_ns) / 1e6
        how = "had to be killed" if end.killed else "left by itself"
        return Outcome(
            State.PAUSED,
            pause_cause=_PAUSE_CAUSES.get(end.cause, "user"),
            event="killed" if end.killed else "preempted",
            message=f"Stopped ({end.cause}): the worker {how}, {took_ms:.0f} ms after it was asked.",
        )
    if end.exit_status in _KILLED_FROM_OUTSIDE:
        return Outcome(
            State.PAUSED, pause_cause="restart", event="killed", message="The worker was killed from outside."
        )
    failure = {
        "reason": "WORKER_DIED",
        "message": f"The worker ended with status {end.exit_status} and said nothing; its log may say why.",
        "metadata": {"exit_status": str(end.exit_status)},
    }
    return Outcome(State.FAILED, failure=failure, message=failure["message"])

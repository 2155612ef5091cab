"""What the trainer's tests share: a tiny model made once, and a supervisor that collects what it is told."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples import tiny_model
from nightshift_trainer.base_model import base_model_digest
from nightshift_trainer.launcher import WORKER_MODULE, worker_environment
from nightshift_trainer.spec import Spec, fill
from nightshift_trainer.supervisor import Job, Supervisor, WorkerEnd
from nightshift_trainer.weights import file_digest
from nightshift_trainer.worker.order import Order

# A shared machine may be slow; no test asserts a time below this.
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Fixture:
    """A tiny model and its rows."""

    model: Path
    rows: Path

    def spec(self, **given: Any) -> Spec:
        """A complete spec for it."""
        return fill(
            {
                "base_model": str(self.model),
                "dataset": str(self.rows),
                "dataset_digest": file_digest(self.rows),
                "base_model_digest": base_model_digest(self.model),
                "preset": "tiny",
                "device": "cpu",
                **given,
            }
        )


def make_fixture(folder: Path, *, hidden: int = 32, layers: int = 2, rows: int = 60) -> Fixture:
    """Makes model and rows below `folder`."""
    model, rows_file = tiny_model.make(folder, hidden=hidden, layers=layers, rows=rows, seed=0)
    return Fixture(model, rows_file)


@dataclass
class Told:
    """What a worker told, and how it ended."""

    messages: list[Mapping[str, Any]] = field(default_factory=list)
    end: WorkerEnd | None = None

    def steps(self) -> dict[int, str]:
        """Checkpoint digest by optimiser step."""
        return {
            message["step"]: message["checkpoint_digest"]
            for message in self.messages
            if message["kind"] == "step"
        }

    def losses(self) -> list[float]:
        """Loss by optimiser step."""
        return [message["loss"] for message in self.messages if message["kind"] == "step"]

    def events(self) -> list[str]:
        """Names of events."""
        return [message["event"] for message in self.messages if message["kind"] == "event"]

    def last(self) -> Mapping[str, Any]:
        """The worker's last word."""
        assert self.end is not None
        assert self.end.last is not None, self.end
        return self.end.last


class Bench:
    """A supervisor with its callbacks turned into a queue."""

    def __init__(self, folder: Path, worker_module: str = WORKER_MODULE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(
            environment=worker_environment(1, folder / "caches"),
            log_folder=folder,
            worker_module=worker_module,
        )
        self._news: queue.SimpleQueue[Sequence[Mapping[str, Any]] | WorkerEnd] = queue.SimpleQueue()

    def start(self, order: Order, *, fork: bool = True) -> None:
        """Starts a worker."""
        order.job_folder.mkdir(parents=True, exist_ok=True)
        self.supervisor.start(Job(order, fork=fork, told=self._news.put, ended=self._news.put))

    def follow(
        self, until: Callable[[Mapping[str, Any]], bool] | None = None, told: Told | None = None
    ) -> Told:
        """Collects until a message fulfils `until`, or the worker ends."""
        told = told or Told()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            news = self._news.get(timeout=max(0.1, deadline - time.monotonic()))
            if isinstance(news, WorkerEnd):
                told.end = news
                return told
            told.messages.extend(news)
            if until is not None and any(until(message) for message in news):
                return told

    def run(self, order: Order, *, fork: bool = True) -> Told:
        """Runs a worker to its end."""
        self.start(order, fork=fork)
        return self.follow()

    def close(self) -> None:
        """Ends everything."""
        self.supervisor.close()


def worker_log(order: Order) -> str:
    """What a worker printed."""
    return (order.job_folder / "worker.log").read_text(errors="replace")

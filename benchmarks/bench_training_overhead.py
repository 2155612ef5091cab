"""What the worker costs: the same training by it and by plain trl + peft, in turns.

The worker's side includes everything that a job has: a checkpoint after every optimiser step, progress
points over a socket, checks for stops and for numbers that are none. Both sides log the loss of every step.
Each round trains once on either side in a fresh process; figures are per optimiser step, without the first
ones. On a shared machine the CPU time says more than the wall clock, and the worker's own part, measured
where it is spent, more than either.

    python -m benchmarks.bench_training_overhead [--rounds 5] [--steps 40] [--hidden 256] [--layers 4]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from nightshift_trainer.launcher import worker_environment
from nightshift_trainer.spec import WARMUP_SHARE, Spec
from nightshift_trainer.worker.order import Order
from tests.trainer.training_support import make_fixture

# Allocators and caches settle during the first steps.
_DISCARDED_STEPS = 5


class OwnCost:
    """CPU time that one thread spends in a method, added up over its calls."""

    def __init__(self, owner: type, name: str) -> None:
        self.calls: list[float] = []
        inner = getattr(owner, name)

        def measured(*given: Any, **named: Any) -> Any:
            begin = time.thread_time()
            try:
                return inner(*given, **named)
            finally:
                self.calls.append(time.thread_time() - begin)

        setattr(owner, name, measured)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.calls[_DISCARDED_STEPS:]) * 1e3


class Moments:
    """Wall clock and CPU time (all threads) after each step."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def mark(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def as_json(self, loss: float, **more: float) -> str:
        wall, cpu = self.wall[_DISCARDED_STEPS:], self.cpu[_DISCARDED_STEPS:]
        durations = [later - earlier for earlier, later in itertools.pairwise(wall)]
        return json.dumps(
            {
                "wall_ms": statistics.median(durations) * 1e3,
                "cpu_ms": (cpu[-1] - cpu[0]) / (len(cpu) - 1) * 1e3,
                "loss": repr(loss),
                **more,
            }
        )


def run_worker(order: Order, channel: int) -> None:
    from nightshift_trainer.worker.backends.base import make_backend
    from nightshift_trainer.worker.reporter import Reporter
    from nightshift_trainer.worker.slots import Slots
    from nightshift_trainer.worker.training import Links, Training

    hooks = OwnCost(Training, "step_done")
    writer = OwnCost(Slots, "write")
    reporter = Reporter(socket.socket(fileno=channel))
    moments = Moments()
    losses: list[float] = []

    def put(message: Any) -> None:
        if message["kind"] == "step":
            moments.mark()
            losses.append(message["loss"])
        reporter.put(message)

    Training(
        order, make_backend("trl"), Links(put, lambda phase: None, lambda: False, reporter.wait_sent)
    ).run()
    print(moments.as_json(losses[-1], hooks_ms=hooks.median_ms, writer_ms=writer.median_ms))


def run_plain(order: Order) -> None:
    import torch
    import transformers
    from transformers.trainer_callback import PrinterCallback, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from nightshift_trainer.worker.backends.trl_peft import TrlBackend
    from nightshift_trainer.worker.exact import EpochSampler
    from nightshift_trainer.worker.rows import tokenized

    spec = order.spec
    torch.set_num_threads(order.threads)
    transformers.set_seed(spec.seed)
    loaded = TrlBackend().load(spec, "cpu")
    rows = tokenized(
        Path(spec.dataset),
        loaded.tokenizer,
        max_length=spec.max_length,
        key="bench",
        cache=order.job_folder / "rows.safetensors",
    )
    moments = Moments()
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                moments.mark()
                losses.append(logs["loss"])

    class Ordered(SFTTrainer):  # type: ignore[misc, unused-ignore]
        # The same rows in the same order, so that both sides do the same arithmetic and end with the same
        # loss.
        def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
            return EpochSampler(len(rows.dataset), spec.seed)

    trainer = Ordered(
        model=loaded.model,
        args=SFTConfig(
            output_dir=str(order.job_folder / "plain"),
            max_steps=spec.max_steps,
            per_device_train_batch_size=spec.batch_size,
            gradient_accumulation_steps=spec.gradient_accumulation,
            learning_rate=spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(WARMUP_SHARE * spec.max_steps),
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=spec.seed,
            data_seed=spec.seed,
        ),
        train_dataset=rows.dataset,
        processing_class=loaded.tokenizer,
        peft_config=loaded.peft_config,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(moments.as_json(losses[-1]))


def measure(side: str, spec: Spec, folder: Path) -> dict[str, Any]:
    """One training in a fresh process."""
    folder.mkdir(parents=True)
    ours, theirs = socket.socketpair()
    # Somebody reads, as the supervisor does.
    reader = threading.Thread(target=lambda: all(iter(lambda: ours.recv(65536), b"")), daemon=True)
    reader.start()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.bench_training_overhead",
            "--side",
            side,
            str(theirs.fileno()),
            json.dumps(Order(spec, folder).as_dict()),
        ],
        env=worker_environment(1, folder / "caches"),
        pass_fds=[theirs.fileno()],
        capture_output=True,
        text=True,
        check=False,
    )
    theirs.close()
    reader.join(5)
    ours.close()
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of the training worker against plain trl + peft.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "CHANNEL", "ORDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, channel, order = arguments.side
        parsed = Order.from_dict(json.loads(order))
        if side == "worker":
            run_worker(parsed, int(channel))
        else:
            run_plain(parsed)
        return
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "worker": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixture = make_fixture(folder / "fixture", hidden=arguments.hidden, layers=arguments.layers, rows=200)
        spec = fixture.spec(max_steps=arguments.steps, lora_dropout=0.05)
        for number in range(arguments.rounds):
            # Which side goes first changes, so that neither always meets the warmer machine.
            for side in ("plain", "worker") if number % 2 == 0 else ("worker", "plain"):
                found[side].append(measure(side, spec, folder / f"{side}{number}"))
    losses = {one["loss"] for side in found.values() for one in side}
    for unit in ("wall_ms", "cpu_ms"):
        medians = {side: statistics.median(one[unit] for one in runs) for side, runs in found.items()}
        ratios = [
            worker[unit] / plain[unit] - 1
            for plain, worker in zip(found["plain"], found["worker"], strict=True)
        ]
        print(
            f"{unit} a step: plain {medians['plain']:.2f}, worker {medians['worker']:.2f}; overhead "
            f"{medians['worker'] / medians['plain'] - 1:+.1%} of medians, "
            f"{statistics.median(ratios):+.1%} median of {len(ratios)} rounds"
        )
    hooks, writer = (
        statistics.median(one[key] for one in found["worker"]) for key in ("hooks_ms", "writer_ms")
    )
    plain = statistics.median(one["cpu_ms"] for one in found["plain"])
    print(
        f"the worker's own CPU a step: {hooks:.2f} ms in the training thread "
        f"({hooks / plain:.1%} of a plain step), {writer:.2f} ms in the writer's ({writer / plain:.1%})"
    )
    print(f"last loss the same on both sides in every run: {len(losses) == 1}")


if __name__ == "__main__":
    main()

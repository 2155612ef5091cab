"""One training from order to adapter. Runs in the worker process's main thread."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import itertools
import logging
import math
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback, TrainerState

from nightshift_trainer.base_model import tokenizer_digest
from nightshift_trainer.spec import WARMUP_SHARE, Spec, smaller_micro_batch
from nightshift_trainer.weights import weights_digest
from nightshift_trainer.worker import exact
from nightshift_trainer.worker.backends.base import Backend
from nightshift_trainer.worker.order import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, Order
from nightshift_trainer.worker.rows import TemplateUnusable, TokenizedRows, tokenized
from nightshift_trainer.worker.shadow import ShadowWriter
from nightshift_trainer.worker.slots import (
    CheckpointsCorrupt,
    Slots,
    StoredCheckpoint,
    UnsafeCheckpoint,
)
from nightshift_trainer.worker.snapshot import Snapshots

_log = logging.getLogger(__name__)

_SMOOTHING = 0.9
_RATE_WINDOW_STEPS = 20
# A supervisor that does not read for so long does not hold the training up.
_TELL_S = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "safetensors")


class TrainingFailed(Exception):
    """A training ends with an error that has a name."""

    def __init__(self, reason: str, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata or {})


@dataclass
class Links:
    """The worker process as a training sees it."""

    put: Callable[[Mapping[str, Any]], None]
    phase: Callable[[str], None]
    stopping: Callable[[], bool]
    wait_sent: Callable[[float], bool]
    before_micro_step: Callable[[int], None] | None = None


class Training:
    """Trains one adapter. `writer` is there from the beginning, so that a stop can wait for it."""

    def __init__(self, order: Order, backend: Backend, links: Links) -> None:
        self._order = order
        self._spec = order.spec
        self._backend = backend
        self._links = links
        self._slots = Slots(order.job_folder / CHECKPOINTS_FOLDER)
        self.writer = ShadowWriter(self._slots)
        self._snapshots: Snapshots | None = None
        self.restored: StoredCheckpoint | None = None
        self._rows: TokenizedRows | None = None
        self._total_steps = 0
        self._smoothed: float | None = None
        self._loss = 0.0
        self._learning_rate = 0.0
        self._gradient_norm = 0.0
        self._rates: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW_STEPS)
        self._warm = False
        # Stays open until the process ends, as it is read after every step.
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> None:
        """Trains to the end and leaves the adapter in the job's folder.

        Raises exact.StopRequested, TrainingFailed, OSError.
        """
        self._prepare_process()
        while True:
            try:
                return self._attempt()
            except torch.OutOfMemoryError as error:
                smaller = smaller_micro_batch(self._spec.batch_size, self._spec.gradient_accumulation)
                if smaller is None:
                    raise TrainingFailed(
                        "TRAINER_OOM",
                        "One sample at a time does not fit into memory. Lower max_length or lora_rank, "
                        "or choose a smaller base model.",
                        {"batch_size": "1", "max_length": str(self._spec.max_length)},
                    ) from error
                before = self._spec.batch_size
                self._spec = self._spec.replace(batch_size=smaller[0], gradient_accumulation=smaller[1])
                self._event(
                    "oom_split",
                    f"Out of memory: micro-batches of {smaller[0]} instead of {before}, "
                    f"{smaller[1]} to a step.",
                )
            # Outside the handler: the error's traceback holds the tensors that did not fit.
            self.writer.wait_idle()
            gc.collect()
            if self._order.device == "cuda":
                torch.cuda.empty_cache()

    def before_micro_step(self, step: int) -> None:
        """See exact.Session."""
        if self._links.before_micro_step is not None:
            self._links.before_micro_step(step)

    def stopping(self) -> bool:
        """See exact.Session."""
        return self._links.stopping()

    def began(self, trainer: Any) -> None:
        """See exact.Session. Makes sure that there is a checkpoint before the first step."""
        self._snapshots = Snapshots(exact.source_of(trainer))
        if self.restored is None:
            self._checkpoint(trainer, lambda digest: None)
            self.writer.wait_idle()
        self._links.phase("warming")
        self._rates.append((time.monotonic(), trainer._total_train_tokens))

    def step_done(self, trainer: Any, logs: dict[str, float]) -> None:
        """See exact.Session. Hands the state to the shadow writer; the step is told when that is durable."""
        if not self._warm:
            self._warm = True
            self._links.phase("training")
        loss = float(logs["loss"])
        self._loss = loss
        self._smoothed = (
            loss if self._smoothed is None else _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * loss
        )
        self._learning_rate = float(logs["learning_rate"])
        self._gradient_norm = float(logs.get("grad_norm", 0.0))
        self._rates.append((time.monotonic(), trainer._total_train_tokens))
        point = self._point(trainer.state.global_step, float(trainer.state.epoch))
        point["tokens_per_second"] = self._tokens_per_second()
        point["eta_s"] = self._eta_s(trainer.state.global_step)

        def tell(digest: str) -> None:
            # On the writer's thread. The next step becomes durable only once this one is told: a kill then
            # loses the telling of one step at most, and whoever resumes from it tells it.
            self._links.put({**point, "checkpoint_digest": digest})
            self._links.wait_sent(_TELL_S)

        self._checkpoint(trainer, tell)
        if self._links.stopping():
            raise exact.StopRequested

    # What follows is one attempt, in the order it happens.

    def _attempt(self) -> None:
        self._links.phase("loading")
        self.restored = self._load_checkpoint()
        if self.restored is not None:
            split = self.restored.state["split"]
            # After an out-of-memory split the checkpoint may still say the larger one; the smaller one
            # counts.
            if split["batch_size"] < self._spec.batch_size:
                self._spec = self._spec.replace(**split)
            self._smoothed = self.restored.state["smoothed_loss"]
            self._loss = self.restored.state["loss"]
            self._learning_rate = self.restored.state["learning_rate"]
            self._gradient_norm = self.restored.state["gradient_norm"]
        transformers.set_seed(self._spec.seed)
        loaded = self._backend.load(self._spec, self._order.device)
        rows = self._tokenize(loaded.tokenizer)
        self._rows = rows
        self._total_steps = self._spec.total_steps(len(rows.dataset))
        self._links.put(
            {
                "kind": "total",
                "total_steps": self._total_steps,
                "rows": len(rows.dataset),
                "skipped_rows": rows.skipped,
                "masking": rows.masking,
            }
        )
        trainer = self._build(loaded, rows)
        done = self.restored.step if self.restored is not None else 0
        if self.restored is not None:
            self._event("resumed", f"Goes on after step {done} of {self._total_steps}.")
            if done:
                # A kill between the disk and the telling leaves a step that nobody heard of.
                point = self._point(done, self.restored.state["epoch"])
                self._links.put({**point, "checkpoint_digest": self.restored.digest, "restored": True})
        if done < self._total_steps:
            trainer.train(resume_from_checkpoint=self._resume_folder())
            self.writer.wait_idle()
        else:
            assert self.restored is not None
            trainer._load_from_checkpoint("")
        self._links.phase("saving")
        self._save(trainer, loaded.tokenizer)

    def _prepare_process(self) -> None:
        torch.set_num_threads(self._order.threads)
        if self._order.device == "cuda":
            if not torch.cuda.is_available():
                raise TrainingFailed("GPU_UNAVAILABLE", "CUDA was asked for and torch finds no usable GPU.")
            # Kernels that are not deterministic warn instead of stopping: some of bitsandbytes' have no
            # other.
            torch.use_deterministic_algorithms(True, warn_only=True)

    def _load_checkpoint(self) -> StoredCheckpoint | None:
        try:
            stored = self._slots.load()
        except CheckpointsCorrupt as error:
            raise TrainingFailed("CHECKPOINT_CORRUPT", f"No checkpoint is good: {error}.") from error
        except UnsafeCheckpoint as error:
            raise TrainingFailed("UNSAFE_FORMAT", str(error)) from error
        if stored is not None and stored.fell_back:
            self._event(
                "fell_back", f"The newest checkpoint is damaged; the one of step {stored.step} is good."
            )
        return stored

    def _tokenize(self, tokenizer: Any) -> TokenizedRows:
        try:
            rows = tokenized(
                Path(self._spec.dataset),
                tokenizer,
                max_length=self._spec.max_length,
                key=f"{self._spec.dataset_digest}:{tokenizer_digest(Path(self._spec.base_model))}",
                cache=self._order.job_folder / "rows.safetensors",
            )
        except TemplateUnusable as error:
            raise TrainingFailed(
                "TOKENIZER_MISMATCH", f"The base model cannot be trained on chat rows: {error}."
            ) from error
        if len(rows.dataset) == 0:
            raise TrainingFailed(
                "CORPUS_EMPTY",
                f"No row has a response within {self._spec.max_length} tokens.",
                {"skipped": str(rows.skipped)},
            )
        if rows.skipped:
            self._event(
                "rows_skipped", f"{rows.skipped} rows have no response within {self._spec.max_length} tokens."
            )
        return rows

    def _build(self, loaded: Any, rows: TokenizedRows) -> Any:
        cuda = self._order.device == "cuda"
        config = self._backend.config_class()(
            output_dir=str(self._order.job_folder / "library"),
            max_steps=self._total_steps,
            per_device_train_batch_size=self._spec.batch_size,
            gradient_accumulation_steps=self._spec.gradient_accumulation,
            learning_rate=self._spec.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(WARMUP_SHARE * self._total_steps),
            optim="adamw_torch_fused" if cuda else "adamw_torch",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            use_cpu=not cuda,
            bf16=cuda,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=cuda,
            dataloader_pin_memory=cuda,
            disable_tqdm=True,
            seed=self._spec.seed,
            data_seed=self._spec.seed,
        )
        trainer = exact.build(
            self._backend.trainer_class(),
            self,
            self._spec.seed,
            model=loaded.model,
            args=config,
            train_dataset=rows.dataset,
            processing_class=loaded.tokenizer,
            peft_config=loaded.peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _resume_folder(self) -> str | None:
        """A folder with the one file that the library itself insists on reading."""
        if self.restored is None:
            return None
        folder = self._order.job_folder / "library" / "resume"
        folder.mkdir(parents=True, exist_ok=True)
        state = TrainerState(
            global_step=self.restored.step,
            epoch=self.restored.state["epoch"],
            max_steps=self._total_steps,
            logging_steps=1,
            train_batch_size=self._spec.batch_size,
        )
        state.save_to_json(str(folder / "trainer_state.json"))
        return str(folder)

    def _checkpoint(self, trainer: Any, durable: Callable[[str], None]) -> None:
        assert self._rows is not None
        assert self._snapshots is not None
        self.writer.wait_idle()
        tensors, state = self._snapshots.take()
        step = int(trainer.state.global_step)
        batches = math.ceil(len(self._rows.dataset) / self._spec.batch_size)
        steps_an_epoch = max(1, math.ceil(batches / self._spec.gradient_accumulation))
        state.update(
            {
                "step": step,
                "epoch": float(trainer.state.epoch or 0.0),
                "data": {
                    "seed": self._spec.seed,
                    "epoch": step // steps_an_epoch,
                    "step_in_epoch": step % steps_an_epoch,
                    "rows": len(self._rows.dataset),
                    "dataset_digest": self._spec.dataset_digest,
                },
                "split": {
                    "batch_size": self._spec.batch_size,
                    "gradient_accumulation": self._spec.gradient_accumulation,
                },
                "loss": self._loss,
                "smoothed_loss": self._smoothed,
                "learning_rate": self._learning_rate,
                "gradient_norm": self._gradient_norm,
            }
        )
        self.writer.submit(step, tensors, state, durable)

    def _save(self, trainer: Any, tokenizer: Any) -> None:
        folder = self._order.job_folder / ADAPTER_FOLDER
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        self._backend.prepare_to_save(trainer.model, folder)
        tokenizer.save_pretrained(folder)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                _sync(path, os.O_RDONLY)
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._links.put(
            {
                "kind": "succeeded",
                "loss": self._loss,
                "step": self._total_steps,
                "weights_digest": weights_digest(folder / "adapter_model.safetensors"),
                "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
                "code_versions": code_versions(),
                "peak_memory_bytes": _peak_memory_bytes(self._order.device),
            }
        )

    def _point(self, step: int, epoch: float) -> dict[str, Any]:
        return {
            "kind": "step",
            "time": time.time(),
            "step": step,
            "total_steps": self._total_steps,
            "epoch": epoch,
            "loss": self._loss,
            "smoothed_loss": self._smoothed,
            "learning_rate": self._learning_rate,
            "gradient_norm": self._gradient_norm,
            "tokens_per_second": 0.0,
            "memory_bytes": self._memory_bytes(),
            "eta_s": None,
        }

    def _event(self, event: str, message: str) -> None:
        self._links.put({"kind": "event", "time": time.time(), "event": event, "message": message})

    def _memory_bytes(self) -> int:
        if self._order.device == "cuda":
            return int(torch.cuda.memory_reserved())
        return int(os.pread(self._memory, 128, 0).split()[1]) * _PAGE_BYTES

    def _tokens_per_second(self) -> float:
        (first, before), (last, after) = self._rates[0], self._rates[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _eta_s(self, step: int) -> float | None:
        # The first step pays for warming up; two more make a median.
        moments = [moment for moment, _ in self._rates]
        if len(moments) < 4:
            return None
        durations = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return statistics.median(durations) * (self._total_steps - step)


def code_versions() -> dict[str, str]:
    """Versions of the libraries that made an adapter."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe_spec(spec: Spec) -> str:
    """One line for the job's log."""
    return (
        f"{spec.base_model}, {spec.quantization}, rank {spec.lora_rank}, "
        f"{spec.batch_size} x {spec.gradient_accumulation}, learning rate {spec.learning_rate:g}"
    )


def _peak_memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""trl's trainer made stoppable at any micro-step and resumable bit by bit.

The library's own checkpoints are not used: they pickle, upcast the adapter of a quantised model when
loading, and wait for the end of an optimiser step. Its hooks for loading are: they lie exactly where state
must be put back so that the next random number drawn is the one that would have been drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from transformers import TrainerCallback

from nightshift_trainer.worker.slots import StoredCheckpoint
from nightshift_trainer.worker.snapshot import (
    Source,
    restore_optimizer,
    restore_random_state,
    restore_weights,
)


class StopRequested(BaseException):
    """Leaves the training loop at once. No Exception, so that no library swallows it."""


class LossNonFinite(Exception):
    """Loss or gradient is NaN or infinite; the step was not taken."""


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation made of seed and epoch alone, so that the place in the data is two numbers."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed << 24) + self._epoch)
        return iter(torch.randperm(self._count, generator=generator).tolist())


class Session(Protocol):
    """What the trainer tells about, and asks, while it runs."""

    restored: StoredCheckpoint | None

    def before_micro_step(self, step: int) -> None:
        """A forward and backward pass is about to begin."""

    def stopping(self) -> bool:
        """Whether to leave."""

    def step_done(self, trainer: Any, logs: dict[str, float]) -> None:
        """An optimiser step is done and its loss known."""

    def began(self, trainer: Any) -> None:
        """Everything is built and, where there was a checkpoint, restored; no step is taken yet."""


class _Observer(TrainerCallback):
    def __init__(self, session: Session) -> None:
        self._session = session
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.began(self.trainer)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Gradients gathered so far are thrown away with the process. The checkpoint on the disk is the
        # state at the beginning of this very step, random numbers included, so there is nothing to save and
        # nothing to wait for.
        if self._session.stopping():
            raise StopRequested

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the step, so that no checkpoint with NaN in it is ever written.
        loss = float(self.trainer._tr_loss)
        gradient_norm = float(self.trainer.nightshift_gradient_norm or 0.0)
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise LossNonFinite(
                f"step {state.global_step + 1}: loss {loss:g}, gradient norm {gradient_norm:g}"
            )


def trainable(trainer: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's weights by name, in the model's order."""
    return {
        name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }


def source_of(trainer: Any) -> Source:
    """What a snapshot of a running trainer is taken of."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return Source(trainable(trainer), optimizer, trainer.lr_scheduler)


def build(trainer_class: Any, session: Session, seed: int, **arguments: Any) -> Any:
    """An SFTTrainer of `trainer_class` that trains exactly and stops when `session` says so."""

    class ExactTrainer(trainer_class):  # type: ignore[misc]
        nightshift_gradient_norm: Any = None
        _restored_tensors: dict[str, torch.Tensor]

        def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
            return EpochSampler(len(self.train_dataset if train_dataset is None else train_dataset), seed)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            assert session.restored is not None
            self._restored_tensors = restore_weights(trainable(self), session.restored.tensors)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                assert session.restored is not None
                restore_optimizer(source_of(self), self._restored_tensors, session.restored.state)

        def _load_rng_state(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                assert session.restored is not None
                restore_random_state(self._restored_tensors, session.restored.state["rng"])

        def _load_scaler(self, checkpoint: str | None) -> None:
            """Nothing is scaled: fp16 is not used."""

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            raise AssertionError("the library's checkpoints hold pickles and are not exact")

        def _get_grad_norm(self, *given: Any, **named: Any) -> Any:
            self.nightshift_gradient_norm = super()._get_grad_norm(*given, **named)
            return self.nightshift_gradient_norm

        def training_step(self, *given: Any, **named: Any) -> Any:
            session.before_micro_step(self.state.global_step)
            return super().training_step(*given, **named)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            for metrics in self._metrics.values():
                metrics.clear()
            if "loss" in logs:
                session.step_done(self, logs)

    observer = _Observer(session)
    trainer = ExactTrainer(callbacks=[observer], **arguments)
    observer.trainer = trainer
    return trainer

"""The interface of a backend.

A backend loads base model and tokenizer and names trl's trainer class; everything that makes training exact
and stoppable is the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nightshift_trainer.spec import Spec


@dataclass(frozen=True)
class Loaded:
    """A base model ready to train.

    Where the backend has attached the adapter itself, `peft_config` is None.
    """

    model: Any
    tokenizer: Any
    peft_config: Any


class Backend(Protocol):
    """Loads what is to be trained."""

    def load(self, spec: Spec, device: str) -> Loaded:
        """Base model, tokenizer and adapter for a spec on "cpu" or "cuda"."""
        ...

    def trainer_class(self) -> Any:
        """Trl's SFTTrainer, patched where the backend does so."""
        ...

    def config_class(self) -> Any:
        """Trl's SFTConfig."""
        ...

    def prepare_to_save(self, model: Any, folder: Path) -> None:
        """Writes the adapter in PEFT format."""
        ...


def make_backend(name: str) -> Backend:
    """The backend "trl" or "unsloth"; imports what it needs, which takes seconds.

    Raises ImportError, ValueError; unsloth also raises NotImplementedError or RuntimeError where there is
    no GPU for it.
    """
    if name == "trl":
        from nightshift_trainer.worker.backends.trl_peft import TrlBackend

        return TrlBackend()
    if name == "unsloth":
        from nightshift_trainer.worker.backends.unsloth import UnslothBackend

        return UnslothBackend()
    raise ValueError(f"there is no backend {name!r}")

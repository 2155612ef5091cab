"""Looks at what a training is asked to use, and fills in what was left open.

Blocking: call it in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_kit.errors import FieldInvalid
from nightshift_trainer.base_model import (
    BaseModel,
    base_model_digest,
    check_tokenizer,
    fingerprint,
    read_base_model,
)
from nightshift_trainer.dataset import Dataset, read_dataset
from nightshift_trainer.errors import BaseModelUnknown, CorpusChanged, GpuUnavailable
from nightshift_trainer.estimate import Room, memory_parts, room_for
from nightshift_trainer.gpu import Gpus
from nightshift_trainer.spec import Spec, fill


@dataclass(frozen=True)
class Inspection:
    """A complete spec and what it rests on."""

    spec: Spec
    model: BaseModel
    dataset: Dataset
    parts: Mapping[str, int]
    room: Room

    @property
    def memory_bytes(self) -> int:
        """Estimate in all."""
        return sum(self.parts.values())


class Inspector:
    """Reads base models and datasets; remembers digests of models that have not changed since."""

    def __init__(self, *, adapters_home: Path, gpus: Gpus, budget_bytes: int, reserve_bytes: int) -> None:
        self._adapters_home = adapters_home
        self._gpus = gpus
        self._budget_bytes = budget_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._digests: dict[Path, tuple[object, str]] = {}

    def inspect(self, given: Mapping[str, Any]) -> Inspection:
        """Fills in a spec and checks everything that can be checked before training.

        Raises FieldInvalid, BaseModelUnknown, UnsafeFormat, TokenizerMismatch, DatasetUnknown, CorpusEmpty,
        ChatRowInvalid, CorpusChanged where a given digest does not hold, GpuUnavailable.
        """
        spec = fill(given)
        spec = spec.replace(
            base_model=str(self._model_folder(spec.base_model)),
            dataset=str(_dataset_file(spec.dataset)),
            device=self._device(spec.device),
        )
        model = read_base_model(Path(spec.base_model))
        check_tokenizer(model)
        dataset = read_dataset(Path(spec.dataset))
        spec = self._with_digests(spec, dataset)
        parts = memory_parts(model, spec, spec.device)
        room = room_for(
            parts,
            spec.device,
            self._gpus,
            budget_bytes=self._budget_bytes,
            reserve_bytes=self._reserve_bytes,
        )
        return Inspection(spec, model, dataset, parts, room)

    def _with_digests(self, spec: Spec, dataset: Dataset) -> Spec:
        if spec.dataset_digest and spec.dataset_digest != dataset.digest:
            raise CorpusChanged(
                "The dataset has changed since it was planned with; estimate again.",
                metadata={"planned": spec.dataset_digest, "found": dataset.digest},
            )
        found = self._model_digest(Path(spec.base_model))
        if spec.base_model_digest and spec.base_model_digest != found:
            raise CorpusChanged(
                "The base model has changed since it was planned with; estimate again.",
                metadata={"planned": spec.base_model_digest, "found": found},
            )
        return spec.replace(dataset_digest=dataset.digest, base_model_digest=found)

    def _model_digest(self, folder: Path) -> str:
        try:
            now = fingerprint(folder)
            with self._lock:
                known = self._digests.get(folder)
            if known is not None and known[0] == now:
                return known[1]
            digest = base_model_digest(folder)
        except OSError as error:
            raise BaseModelUnknown(
                f"{folder} cannot be read: {error.strerror}.", metadata={"base_model": str(folder)}
            ) from error
        with self._lock:
            self._digests[folder] = (now, digest)
            while len(self._digests) > 64:
                self._digests.pop(next(iter(self._digests)))
        return digest

    def _device(self, wanted: str) -> str:
        gpu = self._gpus.memory() is not None
        if wanted == "cuda" and not gpu:
            raise GpuUnavailable(
                "CUDA was asked for, and NVML finds no GPU. Install the driver, or train with device cpu."
            )
        if wanted == "auto":
            return "cuda" if gpu else "cpu"
        return wanted

    def _model_folder(self, given: str) -> Path:
        path = Path(given)
        if path.is_absolute():
            return path
        below = self._adapters_home / path
        if ".." in path.parts:
            raise FieldInvalid.at("spec.base_model", "must be absolute, or lie below the adapters' home")
        return below


def _dataset_file(given: str) -> Path:
    path = Path(given)
    if not path.is_absolute():
        raise FieldInvalid.at("spec.dataset", "must be an absolute path")
    return path

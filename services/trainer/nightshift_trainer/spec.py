"""What to train and how: presets, limits, and how many optimiser steps that makes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nightshift_kit.errors import FieldInvalid, FieldViolation
from nightshift_trainer.errors import NonFinite

_ADAPTER_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

WARMUP_SHARE = 0.03


@dataclass(frozen=True)
class Spec:
    """A complete training specification: no value is left to a library's default.

    `batch_size` counts samples a micro-batch, `gradient_accumulation` micro-batches an optimiser step,
    `max_length` tokens; `max_steps` 0 means as many as `epochs` need. Digests are hex SHA-256.
    """

    base_model: str
    dataset: str
    dataset_digest: str
    base_model_digest: str
    preset: str
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    quantization: str
    batch_size: int
    gradient_accumulation: int
    max_steps: int
    epochs: float
    learning_rate: float
    max_length: int
    seed: int
    device: str
    adapter_id: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """The inverse of as_dict. Raises TypeError for unknown or missing keys."""
        return cls(**values)

    def replace(self, **changes: Any) -> Spec:
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)

    def total_steps(self, row_count: int) -> int:
        """Optimiser steps for so many rows, counted as the training loop counts them.

        A short last batch and a short last accumulation of an epoch are steps of their own.
        """
        if self.max_steps:
            return self.max_steps
        batches = math.ceil(row_count / self.batch_size)
        return math.ceil(self.epochs * max(1, math.ceil(batches / self.gradient_accumulation)))


_COMMON: dict[str, Any] = {"preset": "", "max_steps": 0, "seed": 42, "device": "auto", "adapter_id": ""}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # For the workshop's own models, 1 to 14 billion parameters.
    "workshop": {
        **_COMMON,
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "quantization": "nf4",
        "batch_size": 2,
        "gradient_accumulation": 8,
        "epochs": 3.0,
        "learning_rate": 2e-4,
        "max_length": 2048,
    },
    # For a model of examples/tiny_model.py on a CPU; learns visibly within a minute.
    "tiny": {
        **_COMMON,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "quantization": "nf4",
        "batch_size": 4,
        "gradient_accumulation": 2,
        "epochs": 2.0,
        "learning_rate": 5e-3,
        "max_length": 256,
    },
}

# What a person may set, from the smallest that makes sense to far more than is sensible; each bound keeps a
# typing error from becoming an hour of swapping.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "lora_rank": (1, 1024),
    "lora_alpha": (1, 4096),
    "batch_size": (1, 1024),
    "gradient_accumulation": (1, 4096),
    "max_steps": (0, 10_000_000),
    "epochs": (0.001, 10_000),
    "learning_rate": (1e-9, 10),
    "max_length": (8, 1_048_576),
    "seed": (0, 2**32 - 1),
}


def fill(given: Mapping[str, Any]) -> Spec:
    """Fills in a preset.

    `given` holds the values that were set; zero or empty ones count as not set, save for `lora_dropout` and
    `seed`, where None does.

    Raises NonFinite, FieldInvalid with every violation.
    """
    preset = str(given.get("preset") or "workshop")
    if preset not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise FieldInvalid(
            f"There is no preset {preset!r}; known are {known}.",
            violations=[FieldViolation("spec.preset", f"must be one of {known}")],
        )
    values: dict[str, Any] = {"base_model": "", "dataset": "", "dataset_digest": "", "base_model_digest": ""}
    values.update(PRESETS[preset])
    for key, value in given.items():
        if value is None or (key not in ("lora_dropout", "seed") and not value):
            continue
        values[key] = value
    values["preset"] = preset
    unbounded = [
        name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    if unbounded:
        raise NonFinite(
            f"{', '.join(unbounded)} must be finite.",
            violations=[FieldViolation(f"spec.{name}", "must be finite") for name in unbounded],
        )
    violations = list(_violations(values))
    if violations:
        described = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise FieldInvalid(f"The training spec is not usable: {described}.", violations=violations)
    return Spec.from_dict(values)


def _violations(values: Mapping[str, Any]) -> list[FieldViolation]:
    found = []

    def refuse(field: str, description: str) -> None:
        found.append(FieldViolation(f"spec.{field}", description))

    for field in ("base_model", "dataset"):
        if not values[field]:
            refuse(field, "is required")
        elif "\0" in values[field] or len(values[field]) > 4096:
            refuse(field, "must be a path of at most 4096 characters without NUL")
    for field, (lowest, highest) in _BOUNDS.items():
        if not lowest <= values[field] <= highest:
            refuse(field, f"must be {lowest:g} to {highest:g}")
    if not 0 <= values["lora_dropout"] < 1:
        refuse("lora_dropout", "must be at least 0 and below 1")
    if values["quantization"] not in ("nf4", "none"):
        refuse("quantization", 'must be "nf4" or "none"')
    if values["device"] not in ("auto", "cpu", "cuda"):
        refuse("device", 'must be "auto", "cpu" or "cuda"')
    if values["adapter_id"] and not _ADAPTER_ID.fullmatch(values["adapter_id"]):
        refuse("adapter_id", "must be 1 to 63 of a-z, 0-9 and -, not beginning or ending with -")
    for field in ("dataset_digest", "base_model_digest"):
        if values[field] and not _HEX_DIGEST.fullmatch(values[field]):
            refuse(field, "must be 64 hexadecimal digits")
    return found


def smaller_micro_batch(batch_size: int, gradient_accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch for the same samples a step.

    Halved where that divides, else by the smallest factor there is. None where a micro-batch is one sample
    already.
    """
    for factor in range(2, batch_size + 1):
        if batch_size % factor == 0:
            return batch_size // factor, gradient_accumulation * factor
    return None

"""What is known of the GPU and the models on it, whoever told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, order=True)
class ModelRef:
    """A model by its backend and the name that the backend knows it by."""

    backend: str
    model: str

    def __str__(self) -> str:
        return f"{self.model} ({self.backend})"


class Form(Enum):
    """Who told the memory; the names of the contract's enum without its prefix."""

    OLD = "OLD"
    NEW = "NEW"
    NVML = "NVML"


@dataclass(frozen=True)
class HostModel:
    """A loaded model.

    Attributes:
        in_use: How many use it; 0 where `use_known` is false.
        last_used_s: Unix time; None where the backend does not tell.
        whole_backend: Its backend unloads everything that it holds at once.
        mark: Changes with each use, as far as the backend shows it.
    """

    ref: ModelRef
    vram_bytes: int
    in_use: int
    use_known: bool
    last_used_s: float | None
    priority: str
    unloadable: bool
    whole_backend: bool
    mark: str


@dataclass(frozen=True)
class HostProcess:
    """A process on the GPU."""

    pid: int
    vram_bytes: int
    foreign: bool


@dataclass(frozen=True)
class Problem:
    """A part that could not be asked."""

    source: str
    reason: str
    message: str


@dataclass(frozen=True)
class Preload:
    """A model that the settings name for preloading; `vram_bytes` is 0 where unknown."""

    ref: ModelRef
    vram_bytes: int
    loaded: bool
    installed: bool


@dataclass(frozen=True)
class Reading:
    """The GPU at one moment; `models` in the order in which they would be unloaded."""

    form: Form
    total_bytes: int
    free_bytes: int
    foreign_bytes: int
    eviction_in_progress: bool
    models: Sequence[HostModel]
    processes: Sequence[HostProcess] = ()
    problems: Sequence[Problem] = ()
    preloads: Sequence[Preload] = ()
    read_time: dt.datetime = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

    @property
    def used_bytes(self) -> int:
        """What is not free."""
        return self.total_bytes - self.free_bytes

    def tells(self, ref: ModelRef) -> bool:
        """Whether who holds the model could be asked: else its absence says nothing."""
        return all(problem.source != ref.backend for problem in self.problems)

    def find(self, ref: ModelRef) -> HostModel | None:
        """A loaded model, or None."""
        return next((model for model in self.models if model.ref == ref), None)


def in_order(models: Sequence[HostModel]) -> list[HostModel]:
    """Used longest ago first; those whose last use is not told come after all others."""
    return sorted(
        models,
        key=lambda one: (one.last_used_s is None, one.last_used_s or 0.0, one.ref),
    )

"""What the supervisor asks a worker to do, and how a worker ends. No torch here: both sides read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_trainer.spec import Spec

EXIT_SUCCEEDED = 0
EXIT_FAILED = 70
EXIT_ORPHANED = 71
EXIT_STOPPED = 75

CHECKPOINTS_FOLDER = "checkpoints"
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class Order:
    """One training.

    `job_folder` holds its checkpoints, caches and the finished adapter; `spec` names absolute paths.
    `stop_grace_s` is how long a stop waits, for the end of a micro-step and of what is being written, before
    the worker leaves from where it is.
    """

    spec: Spec
    job_folder: Path
    backend: str = "trl"
    device: str = "cpu"
    threads: int = 1
    stop_grace_s: float = 0.1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "job_folder": str(self.job_folder)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Order:
        """The inverse of as_dict."""
        return cls(
            **{
                **values,
                "spec": Spec.from_dict(values["spec"]),
                "job_folder": Path(values["job_folder"]),
            }
        )

"""What is kept of jobs and adapters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nightshift_trainer.spec import Spec


class State(Enum):
    """States of a job; see TrainingJobState."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether the job may still train."""
        return self in OPEN

    @property
    def is_active(self) -> bool:
        """Whether it has, or is about to have, a worker."""
        return self in ACTIVE


ACTIVE = frozenset({State.STARTING, State.RUNNING})
OPEN = ACTIVE | {State.PAUSED}


@dataclass(frozen=True)
class TrainingJob:
    """A job as stored."""

    id: str
    state: State
    spec: Spec
    adapter_id: str
    skill_run: str
    fence: int
    on_purpose: bool
    create_time: dt.datetime
    step: int = 0
    total_steps: int = 0
    loss: float = 0.0
    end_time: dt.datetime | None = None
    failure: Mapping[str, Any] | None = None
    pause_count: int = 0
    pause_cause: str = ""
    checkpoint_digest: str = ""
    timed_s: float = 0.0
    timed_steps: int = 0
    estimated_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Adapter:
    """An adapter with its lineage. `path` is relative to NIGHTSHIFT_HOME."""

    id: str
    training_job: str
    path: str
    weights_digest: str
    base_model_digest: str
    dataset_digest: str
    spec: Spec
    loss: float
    create_time: dt.datetime
    code_versions: Mapping[str, str]
    size_bytes: int

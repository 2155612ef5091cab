"""What was seen: answers of probes and GPUs, as plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class ProbeState(enum.IntEnum):
    """Answer of one look; the numbers are those of the contract and of the store."""

    UNSPECIFIED = 0
    UP = 1
    DEGRADED = 2
    DOWN = 3
    UNKNOWN = 4

    @property
    def answers(self) -> bool:
        """Whether the thing looked at is there, be it slow or nearly full."""
        return self in (ProbeState.UP, ProbeState.DEGRADED)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look saw, before it is timed and named."""

    state: ProbeState
    detail: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One look and its answer; ``probe`` is the bare id, ``probe_time`` is UTC."""

    probe: str
    state: ProbeState
    probe_time: datetime
    latency_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds GPU memory; ``used_bytes`` is 0 where NVML does not say."""

    pid: int
    used_bytes: int
    kind: str = "compute"
    """``compute``, ``graphics`` or ``compute,graphics``."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML shows it."""

    index: int
    display_name: str
    total_bytes: int
    used_bytes: int
    utilization_percent: int
    processes: tuple[GpuProcess, ...]
    detail: str = ""
    """What NVML does not tell of it, and why."""
    mig: bool = False
    """Whether it is divided into instances."""
    failed: bool = False
    """Whether it is lost or in need of a reset; its figures are 0 then."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The GPUs at one instant; ``detail`` says why there is none, and is empty where there are some."""

    gpus: tuple[Gpu, ...]
    detail: str
    failed: bool = False
    """Whether something that was there does not answer: NVML hangs, or a GPU is lost."""

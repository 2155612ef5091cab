"""What is promised about files, and what becomes of it."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from nightshift_kit.errors import Code, DriftDetected, NightshiftError


class EffectPending(NightshiftError):
    """Another change of the same file is promised and not yet done."""

    code = Code.ABORTED
    reason = "EFFECT_PENDING"
    default_retry_after_s = 0.5


class Outcome(enum.Enum):
    """What recovery did with an intent."""

    REDONE = "redone"
    CONFIRMED = "confirmed"
    DRIFTED = "drifted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery found.

    Attributes:
        intent_id: Of the intent.
        path: Of its file, relative to the root.
        outcome: REDONE: the change was missing and is done now. CONFIRMED: it was there already. DRIFTED: the
            file is somebody else's by now. FAILED: see ``error``; the intent stays planned.
        error: Only with FAILED.
    """

    intent_id: str
    path: str
    outcome: Outcome
    error: NightshiftError | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A promised change of one file.

    Attributes:
        id: UUIDv7.
        path: Relative to the root.
        state: "planned", "done", "withdrawn" or "drifted".
        old_digest: SHA-256 of the file before, hex; None where there was none.
        old_content: Its bytes.
        old_mode: Its permission bits.
        new_digest: SHA-256 of the file after; None where there shall be none.
        new_content: Its bytes.
        new_mode: Its permission bits.
        planned_at: When it was promised, UTC.
        finished_at: When it left "planned".
    """

    id: str
    path: str
    state: str
    old_digest: str | None
    old_content: bytes | None
    old_mode: int | None
    new_digest: str | None
    new_content: bytes | None
    new_mode: int | None
    planned_at: dt.datetime
    finished_at: dt.datetime | None


def drift(path: str) -> DriftDetected:
    """The error for a file that is not what it was known to be."""
    return DriftDetected(
        f"{path}: the file is not what it was known to be; look at it and propose anew",
        metadata={"path": path},
    )

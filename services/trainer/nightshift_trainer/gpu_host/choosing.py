"""Which model goes next, if any: pure, from one reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nightshift_trainer.gpu_host.models import HostModel, ModelRef, Reading


class Outcome(Enum):
    """What becomes of a wish to unload; the names of the contract's enum without its prefix."""

    UNLOADED = "UNLOADED"
    ENOUGH_FREE = "ENOUGH_FREE"
    NONE_IDLE = "NONE_IDLE"


IN_USE = "in use"
USED_MEANWHILE = "used meanwhile"
NOT_LOADED = "not loaded"
NOT_ASKED = "its backend cannot be asked"
NO_WAY = "its backend has no way to unload it"
NOT_ALONE = "its backend unloads all its models at once, and another one may not go"


@dataclass(frozen=True)
class Spared:
    """A model that is left alone, and why."""

    ref: ModelRef
    reason: str


@dataclass(frozen=True)
class Choice:
    """The model to unload; None with the outcome where none is to go."""

    model: HostModel | None
    outcome: Outcome
    spared: tuple[Spared, ...]


def choose(reading: Reading, allowed: Sequence[ModelRef], target_used_bytes: int) -> Choice:
    """Of the allowed models the idle one that was used longest ago, while more than the target is in use.

    Args:
        reading: Its models are in the order of last use.
        allowed: Nothing else may go, whatever else is loaded.
        target_used_bytes: Nothing goes once no more than this is in use.
    """
    loaded = {model.ref for model in reading.models}
    spared = [
        Spared(ref, NOT_LOADED if reading.tells(ref) else NOT_ASKED) for ref in sorted(set(allowed) - loaded)
    ]
    if reading.used_bytes <= target_used_bytes:
        return Choice(None, Outcome.ENOUGH_FREE, tuple(spared))
    chosen: HostModel | None = None
    for model in reading.models:
        if model.ref not in allowed:
            continue
        reason = _why_not(model, reading, allowed)
        if reason:
            spared.append(Spared(model.ref, reason))
        elif chosen is None:
            chosen = model
    return Choice(chosen, Outcome.UNLOADED if chosen else Outcome.NONE_IDLE, tuple(spared))


def _why_not(model: HostModel, reading: Reading, allowed: Sequence[ModelRef]) -> str:
    if not model.unloadable:
        return NO_WAY
    if model.in_use:
        return IN_USE
    if model.whole_backend:
        siblings = [one for one in reading.models if one.ref.backend == model.ref.backend]
        if any(one.in_use or one.ref not in allowed for one in siblings):
            return NOT_ALONE
    return ""

"""What is explored: the protocol as it is, short and long, and each wrong variant with what breaks in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models import approvals, effects, leases
from models.approvals import Approvals
from models.effects import Effects, Left
from models.leases import Leases

# A model is made when it is explored: those of the approvals hold a store.
Make = Callable[[], Any]

SHORT: tuple[Make, ...] = (
    lambda: Leases(),
    lambda: Leases(faults=2),
    lambda: Effects(left=Left(1, 0, 1, 0)),
    lambda: Effects(left=Left(1, 1, 0, 0)),
    lambda: Effects(on_purpose=True, left=Left(0, 0, 1, 1)),
    lambda: Effects(on_purpose=True, late_calls=True, left=Left(0, 0, 1, 1)),
    lambda: Approvals(),
    lambda: Approvals(two_person=True),
)
LONG: tuple[Make, ...] = (
    *SHORT,
    lambda: Effects(left=Left(2, 0, 0, 0)),
    lambda: Effects(left=Left(0, 1, 0, 1)),
    lambda: Effects(left=Left(1, 1, 1, 0)),
    lambda: Effects(on_purpose=True, left=Left(0, 1, 0, 1)),
    lambda: Approvals(entries=2),
    lambda: Approvals(two_person=True, entries=2),
)


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A wrong variant, the invariant that breaks in it, and after how many steps at the earliest."""

    make: Make
    wrong: leases.Wrong | effects.Wrong | approvals.Wrong
    broken: str
    steps: int


def _lease(wrong: leases.Wrong, broken: str, steps: int) -> Counterexample:
    return Counterexample(lambda: Leases(wrong), wrong, broken, steps)


def _effect(wrong: effects.Wrong, broken: str, steps: int, left: Left, **how: Any) -> Counterexample:
    return Counterexample(lambda: Effects(wrong, left=left, **how), wrong, broken, steps)


def _approval(wrong: approvals.Wrong, broken: str, steps: int, **how: Any) -> Counterexample:
    return Counterexample(lambda: Approvals(wrong, **how), wrong, broken, steps)


_LOWER = "EFFECT_UNDER_A_LOWER_FENCE_THAN_TOLD"
_USER = "BACKGROUND_WORK_BEGAN_WITH_A_USER_HERE"
_BEYOND = "ON_THE_GPU_BEYOND_ITS_LEASE"

WRONG: tuple[Counterexample, ...] = (
    _lease(leases.Wrong.NO_WATCHDOG, "ON_THE_GPU_BEYOND_ITS_WATCHDOG", 15),
    _lease(leases.Wrong.WALL_CLOCK, _BEYOND, 18),
    _lease(leases.Wrong.MONOTONIC, _BEYOND, 7),
    _lease(leases.Wrong.NO_KILL, _BEYOND, 17),
    _lease(leases.Wrong.FROM_THE_BEAT, _BEYOND, 17),
    _lease(leases.Wrong.LEFT_BEHIND, "TWO_GPU_HOLDERS", 3),
    _effect(effects.Wrong.FENCE_NOT_RECHECKED, _LOWER, 12, Left(1, 0, 0, 0)),
    _effect(effects.Wrong.JTI_AFTER_EFFECT, "EFFECT_TWICE", 12, Left(0, 0, 1, 0)),
    _effect(effects.Wrong.CALL_NOT_STORED, "EFFECT_TWICE", 12, Left(0, 1, 0, 0)),
    _effect(effects.Wrong.CLOSED_AFTER_STOP, _USER, 5, Left(1, 0, 0, 0)),
    _effect(effects.Wrong.OPENS_BLINDLY, _USER, 5, Left(1, 0, 0, 0)),
    _effect(
        effects.Wrong.SERVICE_STARTS_OPEN,
        "BACKGROUND_EFFECT_BEFORE_THE_FENCE_WAS_TOLD",
        10,
        Left(1, 0, 1, 0),
    ),
    _effect(effects.Wrong.FENCES_BEGIN_ANEW, "EFFECT_OF_AN_EARLIER_LIFE", 11, Left(0, 1, 0, 0)),
    _effect(effects.Wrong.OUTLIVES_CONNECTION, _LOWER, 11, Left(0, 0, 1, 1), on_purpose=True),
    _effect(effects.Wrong.NOT_FENCED_AT_START, _LOWER, 11, Left(0, 0, 1, 1), on_purpose=True),
    _effect(effects.Wrong.LOCK_NOT_STORED, "WORK_BEGAN_UNDER_THE_LOCK", 4, Left(0, 1, 0, 1), on_purpose=True),
    _effect(effects.Wrong.LOCK_STOPS_WHAT_RUNS, _LOWER, 9, Left(0, 0, 0, 1), on_purpose=True),
    _approval(approvals.Wrong.DIGEST_NOT_COMPARED, "DECIDED_WITHOUT_HAVING_SEEN_THE_PLAN", 2),
    _approval(approvals.Wrong.LAST_DECISION_COUNTS, "A_DECISION_DID_NOT_STAND", 2),
    _approval(approvals.Wrong.NOT_PLANNED_AGAIN, "RAN_A_PLAN_THAT_HAD_CHANGED", 3),
    _approval(approvals.Wrong.OUTDATED_STAYS_OPEN, "TWO_QUESTIONS_FOR_ONE_SUBJECT", 3, entries=2),
    _approval(approvals.Wrong.EXPIRY_NOT_LOOKED_AT, "DECIDED_AFTER_ITS_END", 4),
    _approval(approvals.Wrong.ONE_PERSON_IS_TWO, "APPROVED_BY_ITS_OWN_PROPOSER", 2),
)

"""What one run adds to its project's profile, as counters that can be taken back.

Scopes: "profile" (key ""), "profile_mode" and "profile_strategy" (key: the mode, the strategy),
"profile_tuned" (key: JSON of the field that auto-tune changed, its value before, and the one taken). Metrics:

    runs                      runs
    qa:{status}               runs with this verdict of `QaStatus`, UNKNOWN left out
    cost:{bucket}             runs whose cost lies in the bucket (`sketch`)
    cost_nanos:{bucket}       sum of their costs in 10⁻⁹ $
    durations, duration_us    runs that tell a duration, and the sum
    rounds:{n}:{own|cut}      runs that used n rounds: they ended by themselves, or at their own limit (also
                              where their limit is not told)
    model:{name}              runs that used the model (scope "profile" alone)
    left_out:{state}          runs that are not counted, by `MeasureState` (scope "profile" alone)

All are integers, so the order in which runs come and go cannot matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import orjson

from nightshift_experience.profiles.sketch import bucket_of, nanos_of
from nightshift_experience.runs import Orchestration

# Beyond these a record is broken, not expensive: one of them would be the whole mean.
MOST_COST_USD = 10_000.0
MOST_ROUNDS = 10_000
MOST_DURATION_US = 30 * 86_400 * 1_000_000

SCOPES = ("profile", "profile_mode", "profile_strategy", "profile_tuned")
# Columns of `runs` that `stored_measures` takes, in this order.
MEASURE_COLUMNS = (
    "mode",
    "strategy",
    "max_rounds",
    "rounds",
    "qa_status",
    "cost_usd",
    "duration_us",
    "models",
    "profiled",
    "tuned",
)


class MeasureState(IntEnum):
    """Whether the profile counts a run, or why it does not."""

    UNTOLD = 0
    COUNTED = 1
    COST_IMPLAUSIBLE = 2
    ROUNDS_IMPLAUSIBLE = 3
    DURATION_IMPLAUSIBLE = 4
    NOT_PRODUCTION = 5


@dataclass(frozen=True, slots=True)
class Measures:
    """What a profile counts of one run. 0 and None: not told; a cost of 0 means that nothing was measured."""

    mode: str
    strategy: str
    max_rounds: int | None
    rounds: int | None
    qa_status: int
    cost_nanos: int
    duration_us: int | None
    models: tuple[str, ...]
    state: int
    # Keys of what auto-tune changed.
    tuned: tuple[str, ...] = ()


UNMEASURED = Measures("", "", None, None, 0, 0, None, (), MeasureState.UNTOLD)


def measure(
    told: Orchestration | None,
    cost_usd: float | None,
    duration_us: int | None,
    models: Mapping[str, str],
    *,
    is_user: bool,
) -> Measures | None:
    """What a merged record tells; None where it tells neither settings, nor a verdict, nor a cost.

    Args:
        told: Settings and what came of them.
        cost_usd: What it cost.
        duration_us: How long it took.
        models: Models by stage.
        is_user: Whether it is production, or no device is told (an orchestrator's run).
    """
    if told is None:
        if not cost_usd:
            return None
        told = Orchestration()
    return Measures(
        told.mode.strip().lower(),
        told.strategy.strip(),
        told.max_rounds,
        told.rounds,
        told.qa_status,
        _cost_nanos(cost_usd),
        duration_us,
        tuple(sorted(set(models.values()))),
        _state(told, cost_usd, duration_us, is_user),
        _tuned_keys(told.tuned),
    )


def stored_measures(
    mode: str,
    strategy: str,
    max_rounds: int | None,
    rounds: int | None,
    qa_status: int,
    cost_usd: float | None,
    duration_us: int | None,
    models: str,
    state: int,
    tuned: str,
) -> Measures | None:
    """As `measure`, out of a row of `runs`."""
    if state == MeasureState.UNTOLD:
        return None
    names = () if models == "{}" else tuple(sorted(set(orjson.loads(models).values())))
    keys = () if tuned == "[]" else _tuned_keys(orjson.loads(tuned))
    return Measures(
        mode, strategy, max_rounds, rounds, qa_status, _cost_nanos(cost_usd), duration_us, names, state, keys
    )


def add_measures(totals: Counter[tuple[str, str, str]], run: Measures, sign: int) -> None:
    """Add (`sign` 1) or take back (-1) what `run` counts."""
    if run.state != MeasureState.COUNTED:
        totals["profile", "", f"left_out:{run.state}"] += sign
        return
    _add_to(totals, "profile", "", run, sign)
    if run.mode:
        _add_to(totals, "profile_mode", run.mode, run, sign)
    if run.strategy:
        _add_to(totals, "profile_strategy", run.strategy, run, sign)
    for key in run.tuned:
        _add_to(totals, "profile_tuned", key, run, sign)
    for model in run.models:
        totals["profile", "", f"model:{model}"] += sign


def _add_to(totals: Counter[tuple[str, str, str]], scope: str, key: str, run: Measures, sign: int) -> None:
    totals[scope, key, "runs"] += sign
    if run.qa_status:
        totals[scope, key, f"qa:{run.qa_status}"] += sign
    if run.cost_nanos:
        bucket = bucket_of(run.cost_nanos)
        totals[scope, key, f"cost:{bucket}"] += sign
        totals[scope, key, f"cost_nanos:{bucket}"] += sign * run.cost_nanos
    if run.duration_us is not None:
        totals[scope, key, "durations"] += sign
        totals[scope, key, "duration_us"] += sign * run.duration_us
    if run.rounds:
        is_own = run.max_rounds is not None and run.rounds < run.max_rounds
        totals[scope, key, f"rounds:{run.rounds}:{'own' if is_own else 'cut'}"] += sign


def _tuned_keys(tuned: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({orjson.dumps(each[:3]).decode() for each in tuned}))


def _cost_nanos(cost_usd: float | None) -> int:
    if cost_usd is None or not math.isfinite(cost_usd) or not 0 < cost_usd <= MOST_COST_USD:
        return 0
    return nanos_of(cost_usd)


def _state(told: Orchestration, cost_usd: float | None, duration_us: int | None, is_user: bool) -> int:
    if cost_usd is not None and not 0 <= cost_usd <= MOST_COST_USD:
        return MeasureState.COST_IMPLAUSIBLE
    for rounds in (told.rounds, told.max_rounds):
        if rounds is not None and not 0 <= rounds <= MOST_ROUNDS:
            return MeasureState.ROUNDS_IMPLAUSIBLE
    if duration_us is not None and not 0 <= duration_us <= MOST_DURATION_US:
        return MeasureState.DURATION_IMPLAUSIBLE
    return MeasureState.COUNTED if is_user else MeasureState.NOT_PRODUCTION

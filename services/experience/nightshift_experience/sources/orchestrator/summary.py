"""From the bytes of a run_summary.json to a run record.

    {"run_id", "started_at", "finished_at", "mode", "project_dir", "rounds_completed", "qa_status",
     "final_status", "cost_summary": {"total_cost_usd" or "total_usd"}, "models_used",
     "config": {"prompt_strategy", "max_rounds", "max_cost_usd"}}

Its writers spelt the cost in both ways. What cannot be believed is left out and named in a flag; the record
stays. What has no run id or no start is no record.
"""

from __future__ import annotations

import math
from datetime import UTC
from typing import Any

from nightshift_experience.runs import Orchestration, Outcome, QaStatus, RunRecord, is_valid_id
from nightshift_experience.sources.devserver.instants import local_us, span_us
from nightshift_experience.sources.devserver.metadata import parse_metadata
from nightshift_experience.sources.devserver.reading import Unreadable

SOURCE = "orchestrator-log"

_VERDICTS = {"passed": QaStatus.PASSED, "warning": QaStatus.WARNING, "failed": QaStatus.FAILED}
_FAILED = frozenset(("failed", "error", "aborted", "crashed", "timeout"))
_MOST_ROUNDS_TOLD = 1 << 31


def read_summary(data: bytes, path: str = "") -> RunRecord:
    """The record of one run.

    Flags: those of `parse_metadata`, cost_invalid, rounds_invalid, limits_invalid, models_invalid. Raises
    Unreadable with the reasons of `parse_metadata`, RUN_ID_INVALID or START_INVALID.
    """
    try:
        document, flags = parse_metadata(data)
    except Unreadable as error:
        raise Unreadable(error.reason, error.detail.replace("metadata.json", "run_summary.json")) from None
    run_id = document.get("run_id")
    if not isinstance(run_id, str) or not is_valid_id(run_id):
        raise Unreadable("RUN_ID_INVALID", "run_id is missing or cannot be an id")
    started, finished = _text(document.get("started_at")), _text(document.get("finished_at"))
    start_us = local_us(started, UTC)
    if start_us is None:
        raise Unreadable("START_INVALID", "started_at is missing or no instant of 2000 to 2100")
    duration_us = span_us(started, finished)
    config = _mapping(document.get("config"))
    told = Orchestration(
        mode=_id(document.get("mode")),
        strategy=_id(config.get("prompt_strategy")),
        max_rounds=_whole(config.get("max_rounds"), 1, flags, "limits_invalid"),
        max_cost_usd=_amount(config.get("max_cost_usd"), flags, "limits_invalid") or None,
        rounds=_whole(document.get("rounds_completed"), 0, flags, "rounds_invalid"),
        qa_status=int(_VERDICTS.get(_text(document.get("qa_status")).lower(), QaStatus.UNKNOWN)),
    )
    return RunRecord(
        run_id=run_id,
        source=SOURCE,
        start_us=start_us,
        end_us=start_us + duration_us if duration_us is not None else None,
        duration_us=duration_us,
        outcome=int(_outcome(_text(document.get("final_status")), is_finished=duration_us is not None)),
        cost_usd=_cost(_mapping(document.get("cost_summary")), flags),
        models=_models(document.get("models_used"), flags),
        flags=sorted(set(flags)),
        source_path=path,
        orchestration=None if told == Orchestration() else told,
    )


def _cost(summary: dict[str, Any], flags: list[str]) -> float | None:
    """Either spelling; the first that is there counts."""
    for key in ("total_cost_usd", "total_usd"):
        if summary.get(key) is not None:
            return _amount(summary[key], flags, "cost_invalid")
    return None


def _amount(value: Any, flags: list[str], flag: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        flags.append(flag)
        return None
    try:
        amount = float(value)
    except OverflowError:
        amount = math.inf
    if not math.isfinite(amount) or amount < 0:
        flags.append(flag)
        return None
    return amount


def _whole(value: Any, least: int, flags: list[str], flag: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST_ROUNDS_TOLD:
        flags.append(flag)
        return None
    return value


def _models(value: Any, flags: list[str]) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        flags.append("models_invalid")
        return {}
    found = {_id(stage): _id(model) for stage, model in value.items()}
    return dict(sorted((stage, model) for stage, model in found.items() if stage and model))


def _outcome(status: str, *, is_finished: bool) -> Outcome:
    if status.lower() in _FAILED:
        return Outcome.FAILED
    return Outcome.SUCCEEDED if is_finished else Outcome.INCOMPLETE


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _id(value: Any) -> str:
    """A name as it may stand in a run; "" for what is none."""
    text = _text(value).strip()
    return text if is_valid_id(text.replace("/", "_")) else ""

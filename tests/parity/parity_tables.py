"""The tables of what the predecessors answered, and how a difference is accounted for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = Path(__file__).with_name("tables")


@dataclass(frozen=True)
class Case:
    """One case of a table."""

    table: str
    label: str
    given: Any
    answered: Any
    is_defect: bool

    @property
    def id(self) -> str:
        """For pytest."""
        return f"{self.table}-{self.label}"


@dataclass(frozen=True)
class Difference:
    """A deliberate difference: why, and whether it accounts for what we answer to a case."""

    reason: str
    accounts_for: Callable[[Any, Any, Any], bool]


def tables(system: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, table) of one predecessor, out of the folder of NIGHTSHIFT_PARITY_DIR or our own copy."""
    root = Path(os.environ.get("NIGHTSHIFT_PARITY_DIR") or OWN)
    paths = sorted((root / system).glob("*.json"))
    return [(path.stem, _finite(json.loads(path.read_text(encoding="utf-8")))) for path in paths]


def cases(table: str, content: dict[str, Any]) -> list[Case]:
    """Its cases; tables differ in where they keep what was given and answered."""
    whole = "known_defect" in content
    found = []
    for number, each in enumerate(content["cases"]):
        told = {key: value for key, value in each.items() if key not in ("label", "known_defect")}
        found.append(
            Case(
                table,
                str(each.get("label", number)),
                told.pop("in", None) or {key: value for key, value in told.items() if key != "out"},
                each.get("out", {key: each[key] for key in each if key in ("preferred", "scores")}),
                whole or "known_defect" in each,
            )
        )
    return found


def unaccounted(
    case: Case, ours: Any, same: bool, differences: dict[str, Difference]
) -> tuple[str | None, str]:
    """(name of the difference that accounts for it or None, what to say where nothing does)."""
    if same:
        return None, ""
    for name, difference in differences.items():
        if difference.accounts_for(case.given, case.answered, ours):
            return name, ""
    return None, f"{case.id}: given {case.given}, they answered {case.answered}, we {ours}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value["__float__"]]
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value

"""The filter of ListRuns and ExportRuns: terms joined by AND.

production = true AND outcome != "blocked" AND start_time >= 2026-02-02T00:00:00Z
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nightshift_experience.runs import Outcome
from nightshift_kit.errors import FilterInvalid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LIMIT_CHARACTERS = 4096
_TERM = re.compile(
    r"\s*(?P<field>[a-z_]+)\s*(?P<operator>!=|>=|<=|=|<|>)\s*"
    r"(?:\"(?P<quoted>(?:[^\"\\]|\\[\"\\])*)\"|(?P<bare>[^\s\"()]+))\s*"
)
_AND = re.compile(r"AND(?=\s)")
_BOOLEANS = {"production": "production", "favorite": "favorite"}
_TEXTS = {
    "outcome": "outcome",
    "language": "language",
    "interception_config": "interception_config",
    "output_config": "output_config",
    "device": "device",
    "session_key": "session_key",
    "source": "source",
}


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison of a column: operator "=", "!=", ">=" or "<"."""

    column: str
    operator: str
    value: bool | int | str


def parse_filter(text: str) -> list[Term]:
    """Terms of a filter; none for a blank one. Raises FilterInvalid."""
    if len(text) > _LIMIT_CHARACTERS:
        raise FilterInvalid.at("filter", f"longer than {_LIMIT_CHARACTERS} characters")
    terms: list[Term] = []
    position = 0
    while text[position:].strip():
        if terms:
            joined = _AND.match(text, position)
            if joined is None:
                raise FilterInvalid.at("filter", f"expected AND at character {position}")
            position = joined.end()
        match = _TERM.match(text, position)
        if match is None:
            raise FilterInvalid.at(
                "filter", f'expected a term like outcome = "succeeded" at character {position}'
            )
        quoted = match["quoted"]
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match["bare"]
        terms.append(_term(match["field"], match["operator"], value))
        position = match.end()
    return terms


def _term(field: str, operator: str, value: str) -> Term:
    if field in _BOOLEANS:
        if operator != "=" or value not in ("true", "false"):
            raise FilterInvalid.at("filter", f"{field} takes = true or = false")
        return Term(_BOOLEANS[field], "=", value == "true")
    if field == "start_time":
        if operator not in (">=", "<"):
            raise FilterInvalid.at("filter", "start_time takes >= or <")
        return Term("start_us", operator, _instant_us(value))
    if field not in _TEXTS:
        names = ", ".join([*_BOOLEANS, *_TEXTS, "start_time"])
        raise FilterInvalid.at("filter", f"there is no field {field!r}; the fields are {names}")
    if operator not in ("=", "!="):
        raise FilterInvalid.at("filter", f"{field} takes = or !=")
    if "\0" in value:
        raise FilterInvalid.at("filter", "a NUL character")
    if field == "outcome":
        name = value.upper().removeprefix("RUN_OUTCOME_")
        if name not in Outcome.__members__:
            raise FilterInvalid.at("filter", "outcome is one of succeeded, blocked, failed, incomplete")
        return Term("outcome", operator, int(Outcome[name]))
    return Term(_TEXTS[field], operator, value)


def _instant_us(value: str) -> int:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise FilterInvalid.at("filter", "start_time needs a zone: 2026-02-02T08:00:00Z")
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise FilterInvalid.at("filter", "start_time is an RFC 3339 instant: 2026-02-02T08:00:00Z") from error

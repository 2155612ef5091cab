"""A day in numbers and in words: what its sessions were after. Holds nothing of what users wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from nightshift_experience.sessions.modes import EngagementMode
from nightshift_experience.store import session_tables
from nightshift_experience.store.session_tables import StoredSession

_TOP: Final = 5
# What sessions after a mode did.
_DID: Final[Mapping[EngagementMode, str]] = {
    EngagementMode.IDENTITY_EXPRESSION: "expressed who they are",
    EngagementMode.AESTHETIC_SEARCH: "searched for a look",
    EngagementMode.DECONSTRUCTION: "took the configs apart",
    EngagementMode.EXPLORATION: "explored",
    EngagementMode.BOUNDARY_TESTING: "tested the limits",
    EngagementMode.SELF_ARTICULATION: "put themselves into words",
    EngagementMode.OPTIMIZATION: "tuned parameters",
}


def summary_of(day: str, sessions: Sequence[StoredSession]) -> dict[str, Any]:
    """The document of session_summaries/{date}.json.

    `modes` are expected numbers of sessions: the sum of their probabilities, so that a session between two
    modes counts for both.

    Args:
        day: "YYYY-MM-DD".
        sessions: Those that began on it, at least one.
    """
    languages: Counter[str] = Counter()
    configs: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    modes: Counter[EngagementMode] = Counter()
    expected = dict.fromkeys(EngagementMode, 0.0)
    for session in sessions:
        languages.update(dict(session.payload["languages"]))
        configs.update(dict(session.payload["configs"]))
        totals.update(session.payload["counts"])
        modes[EngagementMode(session.mode)] += 1
        for one in session.payload["modes"]:
            expected[EngagementMode(one["mode"])] += one["probability"]
    document: dict[str, Any] = {
        "date": day,
        "sessions": len(sessions),
        "runs": sum(session.runs for session in sessions),
        "favorites": totals["favorites"],
        "blocked": totals["blocked"],
        "failed": totals["failed"],
        "regenerations": totals["regenerations"],
        "languages": dict(_top(languages)),
        "configs": dict(_top(configs)),
        "modes": {mode.name.lower(): round(expected[mode], 2) for mode in EngagementMode},
    }
    document["text"] = _words(document, modes)
    return document


def tell_days(connection: sa.Connection, project: str, days: Iterable[str], now_us: int) -> None:
    """Summarize days anew from their sessions; one without sessions is dropped."""
    for day in days:
        sessions = session_tables.sessions_of_day(connection, project, day)
        document = summary_of(day, sessions) if sessions else None
        session_tables.put_day(connection, project, day, document, now_us)


def _top(counted: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:_TOP]


def _words(document: Mapping[str, Any], modes: Counter[EngagementMode]) -> str:
    ordered = sorted(modes.items(), key=lambda pair: (-pair[1], pair[0]))
    did = _joined([f"{count} {_DID[mode]}" for mode, count in ordered])
    sentences = [
        f"{_count(document['sessions'], 'session')} with {_count(document['runs'], 'run')}: {did}.",
    ]
    happened = [
        f"{_count(document[key], singular, plural)} {verb}"
        for key, singular, plural, verb in (
            ("favorites", "run", "runs", "marked as favourite"),
            ("regenerations", "request", "requests", "made again with a new seed"),
            ("blocked", "run", "runs", "stopped by a check"),
            ("failed", "run", "runs", "failed"),
        )
        if document[key]
    ]
    if happened:
        sentences.append(f"{_joined(happened)}.")
    if document["configs"]:
        config, count = next(iter(document["configs"].items()))
        sentences.append(f"Most used config: {config} ({_count(count, 'run')}).")
    if document["languages"]:
        sentences.append(f"Languages: {', '.join(document['languages'])}.")
    return " ".join(sentences)


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

"""What search and the opportunities keep in SQL: how far the index is, and what was found.

Functions take a connection and commit nothing. The index itself is not here: it can be rebuilt from `runs`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Double, Integer, PrimaryKeyConstraint, SmallInteger, Table, Text

from ..runs import PRIVACY_WITHHELD
from .tables import metadata, projects, runs

search_state = Table(
    "search_state",
    metadata,
    Column("project", Text, primary_key=True),
    # Table of the index that the next two speak of; another one means that everything waits again.
    Column("index_table", Text, nullable=False),
    # Every run with a change_seq up to here is in the index as it should be.
    Column("indexed_seq", BigInteger, nullable=False),
    # Rows that the index had then; fewer later mean that it was lost.
    Column("indexed_rows", BigInteger, nullable=False),
)

opportunities = Table(
    "opportunities",
    metadata,
    Column("project", Text, nullable=False),
    Column("opportunity_id", Text, nullable=False),
    # 0 is the best.
    Column("place", Integer, nullable=False),
    # The proto's OpportunityKind.
    Column("kind", SmallInteger, nullable=False),
    Column("score", Double, nullable=False),
    # JSON of the evidence, keywords and masked examples.
    Column("payload", Text, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("project", "opportunity_id"),
)

# What a search may find. A prompt that a privacy check withheld is NULL in the store.
_SEARCHABLE = sa.and_(
    runs.c.production, runs.c.prompt.is_not(None), runs.c.prompt != "", runs.c.prompt_digest.is_not(None)
)


@dataclass(frozen=True)
class SearchState:
    """How far a project's index is."""

    indexed_seq: int = 0
    indexed_rows: int = 0


@dataclass(frozen=True)
class ChangedRun:
    """One run as the index should know it; ``searchable`` False means: not at all."""

    run_id: str
    change_seq: int
    searchable: bool
    language: str
    interception_config: str
    prompt_digest: str
    start_us: int
    prompt: str


@dataclass(frozen=True)
class StoredOpportunity:
    """One opportunity as it is kept."""

    opportunity_id: str
    kind: int
    score: float
    payload: dict[str, Any]
    create_us: int = 0


def read_state(connection: sa.Connection, project: str, index_table: str) -> SearchState:
    """State of a project under this table of the index; a fresh one where another table was used."""
    row = connection.execute(
        sa.select(search_state.c.index_table, search_state.c.indexed_seq, search_state.c.indexed_rows).where(
            search_state.c.project == project
        )
    ).one_or_none()
    if row is None or row.index_table != index_table:
        return SearchState()
    return SearchState(row.indexed_seq, row.indexed_rows)


def write_state(connection: sa.Connection, project: str, index_table: str, state: SearchState) -> None:
    """Stores how far the index is."""
    values = {
        "index_table": index_table,
        "indexed_seq": state.indexed_seq,
        "indexed_rows": state.indexed_rows,
    }
    changed = connection.execute(
        sa.update(search_state).where(search_state.c.project == project).values(**values)
    )
    if changed.rowcount == 0:
        connection.execute(sa.insert(search_state).values(project=project, **values))


def states(connection: sa.Connection, index_table: str) -> dict[str, SearchState]:
    """States of all projects under this table of the index."""
    rows = connection.execute(
        sa.select(search_state.c.project, search_state.c.indexed_seq, search_state.c.indexed_rows).where(
            search_state.c.index_table == index_table
        )
    ).all()
    return {row.project: SearchState(row.indexed_seq, row.indexed_rows) for row in rows}


def forget_states(connection: sa.Connection, names: Sequence[str] | None = None) -> None:
    """Makes everything wait for embedding again, of the named projects or of all."""
    statement = sa.delete(search_state)
    if names is not None:
        statement = statement.where(search_state.c.project.in_(names))
    connection.execute(statement)


def changed_runs(connection: sa.Connection, project: str, after_seq: int, limit: int) -> list[ChangedRun]:
    """Runs stored or changed after a sequence number, in its order."""
    rows = connection.execute(
        sa.select(
            runs.c.run_id,
            runs.c.change_seq,
            _SEARCHABLE.label("searchable"),
            runs.c.language,
            runs.c.interception_config,
            runs.c.prompt_digest,
            runs.c.start_us,
            runs.c.prompt,
        )
        .where(runs.c.project == project, runs.c.change_seq > after_seq)
        .order_by(runs.c.change_seq)
        .limit(limit)
    ).all()
    return [
        ChangedRun(
            run_id=row.run_id,
            change_seq=row.change_seq,
            searchable=bool(row.searchable),
            language=row.language,
            interception_config=row.interception_config,
            prompt_digest=bytes(row.prompt_digest or b"").hex(),
            start_us=row.start_us,
            prompt=row.prompt or "",
        )
        for row in rows
    ]


def waiting_count(connection: sa.Connection, project: str, after_seq: int) -> int:
    """How many runs were stored or changed after a sequence number and are, or may be, no longer as indexed.

    Those that a privacy check withheld count once something is indexed: their words may have to go.
    """
    wanted = _SEARCHABLE
    if after_seq:
        wanted = sa.or_(wanted, sa.and_(runs.c.production, runs.c.flags.contains(f'"{PRIVACY_WITHHELD}"')))
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(runs)
        .where(runs.c.project == project, runs.c.change_seq > after_seq, wanted)
    ).scalar_one()


def searchable_digests(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> dict[str, str]:
    """Prompt digest of those of the runs that a search may show now."""
    rows = connection.execute(
        sa.select(runs.c.run_id, runs.c.prompt_digest).where(
            runs.c.project == project, runs.c.run_id.in_(run_ids), _SEARCHABLE
        )
    ).all()
    return {row.run_id: bytes(row.prompt_digest).hex() for row in rows}


def change_seq(connection: sa.Connection, project: str) -> int:
    """Highest sequence number given in a project; 0 for an unknown one."""
    found = connection.execute(sa.select(projects.c.change_seq).where(projects.c.project == project))
    return found.scalar_one_or_none() or 0


def production_facts(connection: sa.Connection, project: str, limit: int) -> list[dict[str, Any]]:
    """The newest production runs that have a prompt, as the detection reads them, newest first."""
    rows = connection.execute(
        sa.select(
            runs.c.run_id,
            runs.c.session_key,
            runs.c.start_us,
            runs.c.language,
            runs.c.interception_config,
            runs.c.favorite,
            runs.c.outcome,
            runs.c.prompt,
            runs.c.prompt_digest,
        )
        .where(runs.c.project == project, _SEARCHABLE)
        .order_by(runs.c.start_us.desc(), runs.c.run_id)
        .limit(limit)
    ).all()
    return [
        {
            "run_id": row.run_id,
            "session": row.session_key,
            "start_us": row.start_us,
            "language": row.language,
            "config": row.interception_config,
            "favorite": bool(row.favorite),
            "outcome": row.outcome,
            "prompt": row.prompt,
            "digest": bytes(row.prompt_digest).hex(),
        }
        for row in rows
    ]


def known_keywords(connection: sa.Connection, project: str) -> dict[str, list[str]]:
    """Keywords of the stored opportunities that have any, by id."""
    rows = connection.execute(
        sa.select(opportunities.c.opportunity_id, opportunities.c.payload).where(
            opportunities.c.project == project
        )
    ).all()
    found = {row.opportunity_id: json.loads(row.payload).get("keywords", []) for row in rows}
    return {opportunity_id: words for opportunity_id, words in found.items() if words}


def replace_opportunities(
    connection: sa.Connection, project: str, found: Sequence[StoredOpportunity], *, seq: int, now_us: int
) -> None:
    """Stores what a detection found, best first; what it did not find again is gone.

    An opportunity that was known keeps the time of its first finding.
    """
    known = {
        row.opportunity_id: row.create_us
        for row in connection.execute(
            sa.select(opportunities.c.opportunity_id, opportunities.c.create_us).where(
                opportunities.c.project == project
            )
        )
    }
    connection.execute(sa.delete(opportunities).where(opportunities.c.project == project))
    if found:
        connection.execute(
            sa.insert(opportunities),
            [
                {
                    "project": project,
                    "opportunity_id": item.opportunity_id,
                    "place": place,
                    "kind": item.kind,
                    "score": item.score,
                    "payload": json.dumps(item.payload, ensure_ascii=False, sort_keys=True),
                    "create_us": known.get(item.opportunity_id, now_us),
                }
                for place, item in enumerate(found)
            ],
        )
    connection.execute(
        sa.update(projects).where(projects.c.project == project).values(detected_seq=seq, detect_us=now_us)
    )


def forget_examples(connection: sa.Connection, project: str) -> None:
    """Drops the example prompts of all opportunities; the next detection chooses others.

    For when a prompt is withheld after it was stored: which example came from it is not known.
    """
    rows = connection.execute(
        sa.select(opportunities.c.opportunity_id, opportunities.c.payload).where(
            opportunities.c.project == project
        )
    ).all()
    for row in rows:
        payload = json.loads(row.payload)
        if payload.get("example_prompts"):
            without = json.dumps(payload | {"example_prompts": []}, ensure_ascii=False, sort_keys=True)
            connection.execute(
                sa.update(opportunities)
                .where(
                    opportunities.c.project == project, opportunities.c.opportunity_id == row.opportunity_id
                )
                .values(payload=without)
            )


def list_opportunities(
    connection: sa.Connection, project: str, after_place: int, limit: int
) -> list[tuple[int, StoredOpportunity]]:
    """(place, opportunity) best first, after a place (-1 for the first)."""
    rows = connection.execute(
        sa.select(opportunities)
        .where(opportunities.c.project == project, opportunities.c.place > after_place)
        .order_by(opportunities.c.place)
        .limit(limit)
    ).all()
    return [(row.place, _opportunity(row)) for row in rows]


def get_opportunity(connection: sa.Connection, project: str, opportunity_id: str) -> StoredOpportunity | None:
    """One opportunity, None if unknown."""
    row = connection.execute(
        sa.select(opportunities).where(
            opportunities.c.project == project, opportunities.c.opportunity_id == opportunity_id
        )
    ).one_or_none()
    return None if row is None else _opportunity(row)


def _opportunity(row: Any) -> StoredOpportunity:
    return StoredOpportunity(row.opportunity_id, row.kind, row.score, json.loads(row.payload), row.create_us)

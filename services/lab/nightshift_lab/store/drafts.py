"""Kept drafts of translations, and what they cost. Every function runs inside the caller's transaction."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from ..records import KeptText
from .tables import llm_costs, translation_drafts


def kept(connection: sa.Connection, config_id: str) -> dict[tuple[str, str], KeptText]:
    """What is kept for a config: (field, language) → text."""
    query = sa.select(translation_drafts).where(translation_drafts.c.config_id == config_id)
    return {
        (row.field, row.language): KeptText(row.field, row.language, row.basis, row.text, row.problem)
        for row in connection.execute(query)
    }


def keep(connection: sa.Connection, config_id: str, text: KeptText, at: dt.datetime) -> None:
    """Keep one text instead of the earlier one."""
    connection.execute(
        translation_drafts.delete().where(
            translation_drafts.c.config_id == config_id,
            translation_drafts.c.field == text.field,
            translation_drafts.c.language == text.language,
        )
    )
    connection.execute(
        translation_drafts.insert().values(
            config_id=config_id,
            field=text.field,
            language=text.language,
            basis=text.basis,
            text=text.text,
            problem=text.problem,
            drafted_at=at,
        )
    )


def forget(connection: sa.Connection, config_id: str) -> None:
    """Forget everything that is kept for a config."""
    connection.execute(translation_drafts.delete().where(translation_drafts.c.config_id == config_id))


def spent_usd(connection: sa.Connection, day: str) -> float:
    """What models cost on a UTC day (2026-03-01)."""
    query = sa.select(llm_costs.c.cost_usd).where(llm_costs.c.day == day)
    return float(connection.execute(query).scalar_one_or_none() or 0.0)


def spend(connection: sa.Connection, day: str, cost_usd: float) -> None:
    """Add to a day's costs; a negative amount gives back what was set aside and not needed."""
    total = max(0.0, spent_usd(connection, day) + cost_usd)
    connection.execute(llm_costs.delete().where(llm_costs.c.day == day))
    connection.execute(llm_costs.insert().values(day=day, cost_usd=total))

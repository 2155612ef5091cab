"""Promotions in SQL. Every function runs inside the caller's transaction and commits nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ..errors import AlreadyRolledBack, PromotionUnknown
from ..records import Kind, Promotion
from .tables import kit, promotions


def _record(row: sa.Row[Any]) -> Promotion:
    values = dict(row._mapping)
    return Promotion(
        **{
            **values,
            "kind": Kind(values["kind"]),
            "proposal_id": values["proposal_id"] or "",
            "previous_content": None
            if values["previous_content"] is None
            else bytes(values["previous_content"]),
            "content": None if values["content"] is None else bytes(values["content"]),
        }
    )


def insert(connection: sa.Connection, promotion: Promotion) -> None:
    """Store a new promotion."""
    values = {
        **asdict(promotion),
        "kind": promotion.kind.value,
        "proposal_id": promotion.proposal_id or None,
    }
    connection.execute(promotions.insert().values(values))


def get(connection: sa.Connection, promotion_id: str, *, for_update: bool = False) -> Promotion:
    """One promotion.

    Args:
        connection: The caller's.
        promotion_id: Its id.
        for_update: Hold the row until the transaction ends.

    Raises:
        PromotionUnknown: there is none.
    """
    query = sa.select(promotions).where(promotions.c.promotion_id == promotion_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise PromotionUnknown(
            "There is no such promotion.", metadata={"promotion": f"promotions/{promotion_id}"}
        )
    return _record(row)


def by_intent(connection: sa.Connection, intent_id: str) -> Promotion | None:
    """The promotion that an intent belongs to."""
    row = connection.execute(sa.select(promotions).where(promotions.c.intent_id == intent_id)).one_or_none()
    return None if row is None else _record(row)


def newest(connection: sa.Connection, path: str) -> Promotion | None:
    """The last promotion of a path."""
    query = sa.select(promotions).where(promotions.c.path == path)
    row = connection.execute(query.order_by(promotions.c.promotion_id.desc()).limit(1)).one_or_none()
    return None if row is None else _record(row)


def page(connection: sa.Connection, limit: int, *, before: str | None = None) -> list[Promotion]:
    """At most `limit` promotions, newest first, older than the id `before`."""
    query = sa.select(promotions).order_by(promotions.c.promotion_id.desc()).limit(limit)
    if before is not None:
        query = query.where(promotions.c.promotion_id < before)
    return [_record(row) for row in connection.execute(query)]


def mark_rolled_back(connection: sa.Connection, promotion_id: str, by: str) -> None:
    """Note which promotion took this one back.

    Raises:
        AlreadyRolledBack: another one did.
    """
    done = connection.execute(
        promotions.update()
        .where(promotions.c.promotion_id == promotion_id, promotions.c.rolled_back_by == "")
        .values(rolled_back_by=by)
    )
    if done.rowcount != 1:
        raise AlreadyRolledBack("The promotion has been taken back already.")


def withdraw(connection: sa.Connection, promotion: Promotion) -> None:
    """Undo the rows of a promotion whose file could not be changed: as if the call had never been made.

    The grant's redemption goes too, so that a retry of the same call does the work instead of hearing of a
    success.
    """
    connection.execute(promotions.delete().where(promotions.c.promotion_id == promotion.promotion_id))
    if promotion.rolls_back:
        connection.execute(
            promotions.update()
            .where(
                promotions.c.promotion_id == promotion.rolls_back,
                promotions.c.rolled_back_by == promotion.promotion_id,
            )
            .values(rolled_back_by="")
        )
    connection.execute(kit.redeemed.delete().where(kit.redeemed.c.jti == promotion.jti))


def standing(connection: sa.Connection) -> dict[str, str]:
    """What Nightshift has put into production's folder and not taken away: path → digest.

    Configs that people wrote and Nightshift only translated are not among them.
    """
    last = (
        sa.select(promotions.c.path, sa.func.max(promotions.c.promotion_id).label("last"))
        .group_by(promotions.c.path)
        .subquery()
    )
    query = (
        sa.select(promotions.c.path, promotions.c.digest)
        .join(last, promotions.c.promotion_id == last.c.last)
        .where(promotions.c.digest != "", promotions.c.proposal_id.is_not(None))
    )
    return {row.path: row.digest for row in connection.execute(query)}

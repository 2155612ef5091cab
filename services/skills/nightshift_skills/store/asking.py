"""How often persons were asked, and how many questions are open, of all skills at once; commits nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from nightshift_skills.approvals import ApprovalState
from nightshift_skills.store import tables


def pending_counts(connection: sa.Connection) -> Mapping[str, int]:
    """Approvals that wait for a person, by skill; skills without any are left out."""
    table = tables.approvals
    query = (
        sa.select(table.c.skill, sa.func.count().label("open_count"))
        .where(table.c.state == ApprovalState.PENDING.value)
        .group_by(table.c.skill)
    )
    return {row.skill: row.open_count for row in connection.execute(query)}


def asked_times(connection: sa.Connection, since: datetime) -> Mapping[str, Sequence[datetime]]:
    """When triggers asked for approvals after an instant, by skill, oldest first."""
    table = tables.approvals
    query = (
        sa.select(table.c.skill, table.c.create_time)
        .where(table.c.create_time > since, table.c.proposer.not_like("%/person/%"))
        .order_by(table.c.id)
    )
    times: dict[str, list[datetime]] = defaultdict(list)
    for skill, create_time in connection.execute(query):
        times[skill].append(create_time)
    return times

"""Reports on generations that wait for the monitor, in SQL."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from nightshift_kit.storage import Database
from nightshift_skills.activity import GenerationReport
from nightshift_skills.store import tables

_table = tables.generation_reports


def save_report(connection: sa.Connection, report: GenerationReport) -> None:
    """Keeps one."""
    connection.execute(
        sa.insert(_table).values(
            id=report.id,
            kind=report.kind,
            run_id=report.run_id,
            report_count=report.count,
            time=report.time,
        )
    )


def drop_reports(connection: sa.Connection, ids: Sequence[str]) -> None:
    """Forgets these."""
    connection.execute(sa.delete(_table).where(_table.c.id.in_(ids)))


def list_reports(connection: sa.Connection) -> list[GenerationReport]:
    """All that wait, oldest first."""
    rows = connection.execute(sa.select(_table).order_by(_table.c.id))
    return [
        GenerationReport(row.id, row.kind, row.run_id, row.report_count, row.time, kept=True) for row in rows
    ]


class KeptReports:
    """ReportStore over the service's database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def save(self, report: GenerationReport) -> None:
        """See ReportStore."""
        await self._db.write(save_report, report)

    async def drop(self, ids: Sequence[str]) -> None:
        """See ReportStore."""
        await self._db.write(drop_reports, ids)

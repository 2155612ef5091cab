"""Reports on production's configs in SQL. Every function runs inside the caller's transaction."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa

from ..records import ConfigReport
from ..validation.report import Finding, Severity
from .tables import config_reports, validations


def _record(row: sa.Row[Any]) -> ConfigReport:
    return ConfigReport(
        config_id=row.config_id,
        path=row.path,
        digest=row.digest,
        basis=row.basis,
        findings=tuple(
            Finding(level, Severity(severity), field, reason, message)
            for level, severity, field, reason, message in json.loads(row.findings)
        ),
        missing=tuple((field, tuple(languages)) for field, languages in json.loads(row.missing)),
        validated_at=row.validated_at,
    )


def put(connection: sa.Connection, report: ConfigReport) -> None:
    """Store a report instead of the config's earlier one."""
    drop(connection, report.config_id)
    connection.execute(
        config_reports.insert().values(
            config_id=report.config_id,
            path=report.path,
            digest=report.digest,
            basis=report.basis,
            findings=json.dumps(
                [[f.level, f.severity.value, f.field, f.reason, f.message] for f in report.findings]
            ),
            missing=json.dumps(report.missing),
            valid=report.valid,
            validated_at=report.validated_at,
        )
    )


def drop(connection: sa.Connection, config_id: str) -> None:
    """Forget a report; nothing happens where there is none."""
    connection.execute(config_reports.delete().where(config_reports.c.config_id == config_id))


def get(connection: sa.Connection, config_id: str) -> ConfigReport | None:
    """One report."""
    query = sa.select(config_reports).where(config_reports.c.config_id == config_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _record(row)


def everything(connection: sa.Connection) -> list[ConfigReport]:
    """All reports, by config id in the order of code points (databases sort texts differently)."""
    found = [_record(row) for row in connection.execute(sa.select(config_reports))]
    return sorted(found, key=lambda report: report.config_id)


def bases(connection: sa.Connection) -> dict[str, str]:
    """Config id → basis of its report."""
    query = sa.select(config_reports.c.config_id, config_reports.c.basis)
    return {row.config_id: row.basis for row in connection.execute(query)}


def note_validation(connection: sa.Connection, at: dt.datetime) -> None:
    """All of production was looked at."""
    connection.execute(validations.delete())
    connection.execute(validations.insert().values(id=1, validated_at=at))


def last_validation(connection: sa.Connection) -> dt.datetime | None:
    """When all of production was last looked at."""
    found: dt.datetime | None = connection.execute(sa.select(validations.c.validated_at)).scalar_one_or_none()
    return found

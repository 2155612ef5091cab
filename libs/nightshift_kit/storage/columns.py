"""Column types that mean the same on both databases."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa


class UtcDateTime(sa.types.TypeDecorator[dt.datetime]):
    """An instant: aware datetimes in, aware UTC datetimes out, microseconds kept.

    PostgreSQL stores ``timestamptz``. SQLite has no such type and would drop the offset, so the instant is
    turned to UTC first; its text form then sorts as the instants do.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        """Refuse naive datetimes: nobody knows what instant they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone: use the injected clock")
        value = value.astimezone(dt.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dt.datetime | None:
        """Give the instant in UTC."""
        if value is None:
            return None
        instant: dt.datetime = value
        return instant.replace(tzinfo=dt.UTC) if instant.tzinfo is None else instant.astimezone(dt.UTC)

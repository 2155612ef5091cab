"""Leaving nothing of what was deleted in a database's own files."""

from __future__ import annotations

import time
from typing import Any, Final

import sqlalchemy as sa

from nightshift_kit.errors import DbBusy
from nightshift_kit.storage.problems import storage_error

_PATIENCE_S: Final = 20.0
_RETRY_S: Final = 0.05


def scrub(engine: sa.Engine, name: str) -> None:
    """See `Database.scrub`; blocks."""
    connection: Any = engine.raw_connection()
    try:
        if engine.dialect.name == "sqlite":
            _empty_log(connection, name)
        else:
            connection.rollback()
            connection.driver_connection.autocommit = True
            connection.cursor().execute("VACUUM")
    except Exception as error:
        raise storage_error(error, name) or error from error
    finally:
        # Not given back: what was set on it would stay.
        connection.detach()
        connection.close()


def _empty_log(connection: Any, name: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        if time.monotonic() > deadline_s:
            raise DbBusy(f"{name}: the log could not be emptied; others read or write all the time")
        time.sleep(_RETRY_S)

"""Text in a store that is no text any more, because a bit of the file has changed or somebody wrote bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nightshift_kit.storage.problems import storage_error


def read_rows(
    connection: sa.Connection, query: sa.Select[Any], values: Mapping[str, object] | None = None
) -> tuple[Sequence[sa.Row[Any]], bool]:
    """Rows of a query, whatever their texts hold.

    SQLite keeps what is written, and its driver refuses a whole result for one text that is no UTF-8. Such a
    result is read once more: bytes that are no UTF-8 come as lone surrogates, which no encoder takes. So
    what a check says of them is for the check, and nothing else pays for it.

    Returns:
        The rows, and whether every text is one.
    """
    try:
        return connection.execute(query, values).all(), True
    except sa.exc.OperationalError as error:
        if connection.dialect.name != "sqlite" or storage_error(error, "") is not None:
            raise
    driver: Any = connection.connection.driver_connection
    usual = driver.text_factory
    driver.text_factory = _any_text
    try:
        return connection.execute(query, values).all(), False
    finally:
        driver.text_factory = usual


def is_text(value: object) -> bool:
    """Whether a value is no text with lone surrogates."""
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


def _any_text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")

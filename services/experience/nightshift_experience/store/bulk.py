"""Many rows by few statements, on SQLite and PostgreSQL alike.

SQLAlchemy's per-row work is half of the time of a bulk insert, so the hot paths hand tuples straight to the
driver; the SQL is made from the tables once per backend and shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

# Numbers of placeholders that IN lists are padded to, so that few different statements exist.
_SIZES = (1, 4, 16, 64, 256, 512, 1024)
_DELETED_AT_ONCE = 500


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows (values in the table's column order); a row of the same key is replaced."""
    if rows:
        connection.exec_driver_sql(_upsert_sql(table, connection.dialect.name, "replace"), list(rows))


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows; those whose key is there already are left out."""
    if rows:
        connection.exec_driver_sql(_upsert_sql(table, connection.dialect.name, "keep"), list(rows))


def add_counts(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows; where the key is there already, the last column is added to it."""
    if rows:
        connection.exec_driver_sql(_upsert_sql(table, connection.dialect.name, "add"), list(rows))


def select_in(
    connection: sa.Connection,
    table: sa.Table,
    columns: Sequence[str],
    project: str,
    key: str,
    values: Sequence[Any],
) -> list[Any]:
    """Rows of a project whose column `key` is one of `values`."""
    found: list[Any] = []
    for begin in range(0, len(values), _SIZES[-1]):
        part = list(values[begin : begin + _SIZES[-1]])
        size = next(size for size in _SIZES if size >= len(part))
        part += [part[-1]] * (size - len(part))
        sql = _select_sql(table, tuple(columns), key, size, connection.dialect.name)
        found.extend(connection.exec_driver_sql(sql, (project, *part)).fetchall())
    return found


def delete_in(
    connection: sa.Connection, table: sa.Table, project: str, key: str, values: Sequence[Any]
) -> None:
    """Delete rows of a project whose column `key` is one of `values`."""
    for begin in range(0, len(values), _DELETED_AT_ONCE):
        part = values[begin : begin + _DELETED_AT_ONCE]
        connection.execute(sa.delete(table).where(table.c.project == project, table.c[key].in_(part)))


def _mark(dialect: str) -> str:
    return "?" if dialect == "sqlite" else "%s"


@functools.cache
def _upsert_sql(table: sa.Table, dialect: str, conflict: str) -> str:
    names = [column.name for column in table.columns]
    keys = [column.name for column in table.primary_key.columns]
    marks = ", ".join([_mark(dialect)] * len(names))
    quoted = ", ".join(f'"{name}"' for name in names)
    head = f'INSERT INTO "{table.name}" ({quoted}) VALUES ({marks}) ON CONFLICT ({", ".join(keys)})'  # noqa: S608 - only names out of our own tables
    if conflict == "keep":
        return f"{head} DO NOTHING"
    if conflict == "add":
        last = names[-1]
        return f'{head} DO UPDATE SET "{last}" = "{table.name}"."{last}" + excluded."{last}"'
    sets = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in keys)
    return f"{head} DO UPDATE SET {sets}"


@functools.cache
def _select_sql(table: sa.Table, columns: tuple[str, ...], key: str, size: int, dialect: str) -> str:
    mark = _mark(dialect)
    quoted = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join([mark] * size)
    return f'SELECT {quoted} FROM "{table.name}" WHERE "project" = {mark} AND "{key}" IN ({marks})'  # noqa: S608 - only names out of our own tables

"""Forgetting a device: what is known of it, and taking it out of every table.

A device is a browser: its name changes each UTC day and bears suffixes for parallel requests, so every name
with the same beginning is meant. Functions take a connection and commit nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_experience.sessions.cutting import browser_of
from nightshift_experience.sources.devserver.devices import session_key
from nightshift_experience.store import tables
from nightshift_experience.store.bulk import delete_in, insert_new, upsert
from nightshift_experience.store.session_tables import sessions


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is stored of a device. Instants are microseconds since 1970 UTC, None where there is no run."""

    run_ids: tuple[str, ...] = ()
    session_count: int = 0
    first_us: int | None = None
    last_us: int | None = None


def device_browser(device: str) -> str:
    """What all names of the device begin with."""
    return browser_of(session_key(device))


def device_digest(device: str) -> str:
    """By which a forgotten device is recognised: SHA-256 (hex); nobody can tell the device from it."""
    return hashlib.sha256(device_browser(device).encode("utf-8", "surrogatepass")).hexdigest()


def forgotten_devices(connection: sa.Connection, project: str) -> dict[str, int]:
    """When devices were forgotten, by digest."""
    column = tables.forgotten_devices.c
    rows = connection.execute(
        sa.select(column.device_digest, column.forget_us).where(column.project == project)
    )
    return {row.device_digest: row.forget_us for row in rows}


def footprint(connection: sa.Connection, project: str, device: str) -> Footprint:
    """What is stored of a device."""
    found = _runs_of(connection, project, device)
    starts = [start_us for _, start_us in found]
    known = connection.execute(
        sa.select(sa.func.count())
        .select_from(sessions)
        .where(sessions.c.project == project, sessions.c.browser == device_browser(device))
    ).scalar_one()
    run_ids = tuple(run_id for run_id, _ in found)
    return Footprint(run_ids, known, min(starts, default=None), max(starts, default=None))


def remember_forgotten(connection: sa.Connection, project: str, device: str, now_us: int) -> None:
    """Refuse from now on what it did until now."""
    upsert(connection, tables.forgotten_devices, [(project, device_digest(device), now_us)])


def drop_traces(connection: sa.Connection, project: str, device: str, run_ids: Sequence[str]) -> list[str]:
    """Drop what else names the device or its runs: sessions, paths of imports.

    Returns the days whose sessions changed.
    """
    browser = device_browser(device)
    here = sa.and_(sessions.c.project == project, sessions.c.browser == browser)
    touched = list(connection.execute(sa.select(sessions.c.day).where(here).distinct()).scalars())
    connection.execute(sa.delete(sessions).where(here))
    moved = tables.session_moves.c
    connection.execute(
        sa.delete(tables.session_moves).where(
            moved.project == project, moved.session_key.startswith(browser, autoescape=True)
        )
    )
    path = tables.import_paths.c
    connection.execute(
        sa.delete(tables.import_paths).where(
            path.project == project, path.path.contains(f"/{browser}", autoescape=True)
        )
    )
    delete_in(connection, tables.import_paths, project, "run_id", run_ids)
    insert_new(connection, tables.index_removals, [(project, run_id) for run_id in run_ids])
    return touched


def index_removals(connection: sa.Connection, project: str | None = None) -> dict[str, list[str]]:
    """Runs that the index has to lose, by project; of one project or of all."""
    column = tables.index_removals.c
    query = sa.select(column.project, column.run_id)
    if project is not None:
        query = query.where(column.project == project)
    found: dict[str, list[str]] = {}
    for row in connection.execute(query.order_by(column.project, column.run_id)):
        found.setdefault(row.project, []).append(row.run_id)
    return found


def removed_from_index(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> None:
    """The index has lost them."""
    delete_in(connection, tables.index_removals, project, "run_id", run_ids)


def _runs_of(connection: sa.Connection, project: str, device: str) -> list[tuple[str, int]]:
    """(run id, start) of its runs. Looks through the project: devices are forgotten seldom."""
    browser = device_browser(device)
    column = tables.runs.c
    rows = connection.execute(
        sa.select(column.run_id, column.start_us, column.session_key).where(
            column.project == project, column.session_key.startswith(browser, autoescape=True)
        )
    )
    return [(row.run_id, row.start_us) for row in rows if browser_of(row.session_key) == browser]

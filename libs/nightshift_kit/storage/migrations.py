"""Alembic, run from the program: one shared environment, a package brings only its ``versions``.

Nearly every start finds its schema at head. That is seen without Alembic, whose import is a third of what a
service imports: it is imported where it has something to do.
"""

from __future__ import annotations

import ast
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from nightshift_kit.errors import MigrationFailed, NightshiftError
from nightshift_kit.storage.engines import open_engine
from nightshift_kit.storage.problems import storage_error

if TYPE_CHECKING:
    from alembic.config import Config

_ENVIRONMENT = Path(__file__).parent / "alembic_env"
# Another process may be rebuilding a large table.
_BUSY_TIMEOUT_S = 120.0
# Alembic's ``op`` and ``context`` are global to the process.
_alembic_is_global = threading.Lock()


def migrate(url: str, *, migrations: str, name: str, revision: str = "head") -> None:
    """Upgrade a database, in one transaction that holds the write lock.

    Args:
        url: As for ``Database``.
        migrations: As for ``Database``.
        name: As for ``Database``.
        revision: Where to; "base" empties the database.

    Raises:
        MigrationFailed: A migration failed, or the database is newer than this version.
        NightshiftError: The typed storage errors.
    """
    folder = migrations_folder(migrations)
    if revision == "head" and _is_at_head(url, folder, name):
        return
    import alembic.command
    import alembic.util

    config = _config(folder)
    engine = open_engine(url, role="migrate", name=name, busy_timeout_s=_BUSY_TIMEOUT_S)
    try:
        with _alembic_is_global, engine.connect() as connection, connection.begin():
            config.attributes["connection"] = connection
            if revision == "base":
                alembic.command.downgrade(config, "base")
            else:
                alembic.command.upgrade(config, revision)
            _check_foreign_keys(connection, name)
    except NightshiftError:
        raise
    except Exception as error:
        typed = storage_error(error, name)
        if typed is not None:
            raise typed from error
        what = str(error) if isinstance(error, alembic.util.CommandError) else type(error).__name__
        raise MigrationFailed(f"{name}: the schema could not be migrated: {what}") from error
    finally:
        engine.dispose()


def schema_differences(connection: sa.Connection, metadata: sa.MetaData) -> list[object]:
    """What the metadata has and the database has not, or the other way round; [] where they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def migrations_folder(migrations: str) -> Path:
    """Folder with ``versions`` for a dotted name.

    Raises:
        MigrationFailed: There is none.
    """
    spec = importlib.util.find_spec(migrations)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for folder in (
            Path(location),
            Path(location) / "store" / "migrations",
            Path(location) / "migrations",
        ):
            if (folder / "versions").is_dir():
                return folder
    raise MigrationFailed(f"{migrations} has no migrations/versions folder")


def _is_at_head(url: str, folder: Path, name: str) -> bool:
    """Whether the database says that it is at the folder's only head."""
    revisions: set[str] = set()
    replaced: set[str] = set()
    for path in (folder / "versions").glob("[!_]*.py"):
        told = _assigned_text(path)
        revisions.add(told.get("revision", ""))
        replaced.add(told.get("down_revision", ""))
    heads = revisions - replaced
    engine = open_engine(url, role="read", name=name, busy_timeout_s=_BUSY_TIMEOUT_S)
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    except Exception:  # noqa: BLE001 - a new database has no such table; what else is wrong, migrating tells
        return False
    finally:
        engine.dispose()
    return len(heads) == 1 and set(found) == heads


def _assigned_text(path: Path) -> dict[str, str]:
    """Names that a module assigns a literal string to."""
    assigned: dict[str, str] = {}
    targets: Sequence[ast.expr]
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        elif isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        else:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            assigned.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return assigned


def _config(folder: Path) -> Config:
    from alembic.config import Config

    config = Config()
    # The configuration is an ini file to Alembic: a percent sign in a path needs doubling.
    config.set_main_option("script_location", str(_ENVIRONMENT).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _check_foreign_keys(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise MigrationFailed(f"{name}: a migration left rows whose foreign keys point nowhere")

"""Alembic, run from the program: one shared environment, a package brings only its ``versions``."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nightshift_kit.errors import MigrationFailed, NightshiftError
from nightshift_kit.storage.engines import open_engine
from nightshift_kit.storage.problems import storage_error

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
    config = _config(migrations_folder(migrations))
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


def _config(folder: Path) -> alembic.config.Config:
    config = alembic.config.Config()
    # The configuration is an ini file to Alembic: a percent sign in a path needs doubling.
    config.set_main_option("script_location", str(_ENVIRONMENT).replace("%", "%%"))
    config.set_main_option("version_locations", str(folder / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _check_foreign_keys(connection: sa.Connection, name: str) -> None:
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise MigrationFailed(f"{name}: a migration left rows whose foreign keys point nowhere")

"""The storage engine: one database a service, one writer that groups commits, SQLite or PostgreSQL."""

from nightshift_kit.storage.columns import UtcDateTime
from nightshift_kit.storage.database import Database
from nightshift_kit.storage.kit_schema import KIT, KitTables, create_kit_tables, drop_kit_tables, kit_tables
from nightshift_kit.storage.migrations import schema_differences

__all__ = [
    "KIT",
    "Database",
    "KitTables",
    "UtcDateTime",
    "create_kit_tables",
    "drop_kit_tables",
    "kit_tables",
    "schema_differences",
]

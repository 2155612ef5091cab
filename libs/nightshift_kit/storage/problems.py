"""What a database's own errors mean to a caller."""

from __future__ import annotations

import errno

import psycopg
import pysqlite3
import sqlalchemy.exc

from nightshift_kit.errors import (
    DbBusy,
    DiskFull,
    NightshiftError,
    Overloaded,
    StorageCorrupt,
    StorageIo,
    StorageReadOnly,
)

# Primary result codes, https://www.sqlite.org/rescode.html; extended ones carry them in the low byte.
_SQLITE: dict[int, type[NightshiftError]] = {
    5: DbBusy,  # BUSY
    6: DbBusy,  # LOCKED
    8: StorageReadOnly,  # READONLY
    10: StorageIo,  # IOERR, among them a failed fsync
    11: StorageCorrupt,  # CORRUPT
    13: DiskFull,  # FULL
    14: StorageIo,  # CANTOPEN
    15: DbBusy,  # PROTOCOL: lost the race for the WAL locks
    26: StorageCorrupt,  # NOTADB
}

# SQLSTATE, https://www.postgresql.org/docs/15/errcodes-appendix.html.
_POSTGRES: dict[str, type[NightshiftError]] = {
    "25006": StorageReadOnly,  # read_only_sql_transaction
    "25P03": DbBusy,  # idle_in_transaction_session_timeout: we hung while we held the write lock
    "40001": DbBusy,  # serialization_failure
    "40P01": DbBusy,  # deadlock_detected
    "53100": DiskFull,
    "53200": DbBusy,  # out_of_memory
    "53300": DbBusy,  # too_many_connections
    "55P03": DbBusy,  # lock_not_available
    "57014": DbBusy,  # query_canceled, by statement_timeout
    "58030": StorageIo,  # io_error
    "XX001": StorageCorrupt,  # data_corrupted
    "XX002": StorageCorrupt,  # index_corrupted
}

_MESSAGES: dict[type[NightshiftError], str] = {
    DbBusy: "the database is held by another process; nothing was done, try again",
    DiskFull: "no space left for the database; nothing was done, free some space",
    StorageReadOnly: "the database is read-only",
    StorageIo: "reading or writing the database failed; whether the call's effect is stored is not known",
    StorageCorrupt: "the database is damaged; restore it from a backup",
}


def storage_error(error: BaseException, name: str) -> NightshiftError | None:
    """Typed error for what the machine did to us; None for everything else, constraint violations included.

    Args:
        error: From SQLAlchemy or a driver.
        name: The database's name, for the message.
    """
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return DbBusy(f"{name}: {_MESSAGES[DbBusy]}")
    original = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    kind: type[NightshiftError] | None = None
    if isinstance(original, pysqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        kind = _SQLITE.get(code & 0xFF) if isinstance(code, int) else None
    elif isinstance(original, psycopg.Error):
        state = original.sqlstate
        kind = _POSTGRES.get(state) if state else None
        # 08: connection exceptions; 57P0x: the server stops. Without a state the connection broke.
        lost = state is None and isinstance(original, psycopg.OperationalError)
        if kind is None and (lost or (state or "").startswith(("08", "57P0"))):
            kind = StorageIo
    if kind is None:
        return None
    return kind(f"{name}: {_MESSAGES[kind]} ({detail(original)})")


def file_error(error: OSError, name: str) -> NightshiftError:
    """Typed error for a failed system call on a file.

    Args:
        error: As raised by ``os``.
        name: Of what was read or written, for the message; no absolute path.
    """
    what = errno.errorcode.get(error.errno or 0, "unknown")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{name}: no space left; free some space and try again ({what})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageReadOnly(f"{name}: writing is not allowed here ({what})")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.EINTR):
        return Overloaded(f"{name}: the machine has too much open at once; try again ({what})")
    return StorageIo(f"{name}: reading or writing failed; what is on disk is not known ({what})")


def detail(error: BaseException | None) -> str:
    """Name of the database's error, without its text: that may quote users' data."""
    name = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None)
    return str(name or type(error).__name__)

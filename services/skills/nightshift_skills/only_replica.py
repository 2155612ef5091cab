"""On SQLite there is one replica: whoever has the file keeps a lock beside it for as long as it lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import sqlalchemy as sa

from nightshift_skills.errors import StoreInUse


class OnlyReplica:
    """The lock of an SQLite file; holds nothing for another database.

    The lock lies beside the file, not on it: closing a handle of the file itself would drop SQLite's own
    locks. The kernel lets it go when the process ends, however it ends.
    """

    def __init__(self, database_url: str) -> None:
        """Takes the lock.

        Raises:
            StoreInUse: another process has it.
        """
        self._handle: int | None = None
        url = sa.make_url(database_url)
        if url.get_backend_name() != "sqlite" or not url.database:
            return
        path = Path(url.database).absolute()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            raise StoreInUse(
                f"process {holder or 'unknown'} of skills has {path} already. On SQLite there is one "
                "replica: stop the other one (nightshift down), or give both a PostgreSQL database "
                "(NIGHTSHIFT_SKILLS_DATABASE_URL), and one of them stands by",
                metadata={"process": holder},
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Lets go; harmless where nothing is held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

"""The platform's list of favourites."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from nightshift_experience.sources.devserver.entities import mapping, text
from nightshift_experience.sources.devserver.instants import local_us
from nightshift_experience.sources.devserver.metadata import METADATA_LIMIT_BYTES, parse_metadata
from nightshift_experience.sources.devserver.reading import Unreadable

FAVORITES_FILE = "favorites.json"


@dataclass(frozen=True, slots=True)
class Favorite:
    """One entry; notes and users of the entry are not read."""

    run_id: str
    # Microseconds since 1970 UTC; 0 if the entry does not tell.
    added_us: int


def read_favorites(root_fd: int, zone: tzinfo) -> list[Favorite] | None:
    """Favourites of the tree, each run once; None where there is no list.

    Raises Unreadable where there is one that cannot be read: then nothing is known about favourites,
    and what was known before stands.
    """
    try:
        fd = os.open(
            FAVORITES_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root_fd
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        reason = "SYMLINK" if error.errno == errno.ELOOP else "RECORD_UNREADABLE"
        raise Unreadable(reason, os.strerror(error.errno or 0)) from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unreadable("NOT_REGULAR_FILE", "the list of favourites is not a regular file")
        document, _ = parse_metadata(file.read(METADATA_LIMIT_BYTES + 1))
    return parse_favorites(document, zone)


def parse_favorites(document: dict[str, Any], zone: tzinfo) -> list[Favorite]:
    """Favourites of a parsed list; entries without a run id are left out."""
    entries = document.get("favorites")
    if not isinstance(entries, list):
        raise Unreadable("RECORD_MALFORMED", "the list of favourites holds no list named favorites")
    found: dict[str, Favorite] = {}
    for entry in entries:
        run_id = text(mapping(entry).get("run_id"))
        if run_id and run_id not in found:
            found[run_id] = Favorite(run_id, local_us(text(entry.get("added_at")), zone) or 0)
    return list(found.values())

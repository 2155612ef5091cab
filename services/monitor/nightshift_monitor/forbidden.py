"""URLs that must never be polled.

Reading the platform's list of active users or its queue registers the reader as an active user: a monitor
that polled them would keep the machine from ever being idle.
"""

from __future__ import annotations

import posixpath
from urllib.parse import unquote, urlsplit

FORBIDDEN_ENDINGS = ("/api/active-users", "/api/queue-status")


def forbidden_path(url: str) -> str | None:
    """The forbidden path that a URL amounts to, or None.

    Percent-encoding (also doubled), letter case, doubled and trailing slashes, dot segments and path
    parameters do not hide it.
    """
    path = urlsplit(url).path
    for _ in range(3):
        path = unquote(path)
    path = "/".join(segment.split(";", 1)[0] for segment in path.replace("\\", "/").split("/"))
    path = posixpath.normpath("/" + path.lstrip("/")).casefold()
    for ending in FORBIDDEN_ENDINGS:
        if path.endswith(ending) or f"{ending}/" in path:
            return ending
    return None

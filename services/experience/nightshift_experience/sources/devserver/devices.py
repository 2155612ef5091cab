"""What a device's name tells: its session key and whether a real user sat there.

No field of a record says whether it is production. A browser names itself {uuid4}_{UTC date}, or, without
a secure context, up to 8 random base-36 characters followed by base-36 milliseconds. Everything else
(dev_, api_, canvas_, test-, lab_, legacy_, nothing) is made by developers, scripts or migrations.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_SUFFIX = re.compile(r"_(?:cmp|persona)\d+$")
_BROWSER = re.compile(
    r"(?:[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|[0-9a-z]{13,16})"
    r"_(\d{4}-\d{2}-\d{2})"
)


@functools.lru_cache(maxsize=4096)
def session_key(device: str) -> str:
    """The device without one suffix of requests that the same browser made in parallel."""
    return _SUFFIX.sub("", device)


# The runs of a sitting come from the same few devices.
@functools.lru_cache(maxsize=4096)
def _browser_date(key: str) -> str | None:
    match = _BROWSER.fullmatch(key)
    return match.group(1) if match is not None else None


@dataclass(frozen=True)
class ProductionRule:
    """Which session keys are production.

    `deny` are shell patterns of session keys that never are (a teacher's tablet). `workshop_dates`, where
    not empty, are the only UTC dates ("YYYY-MM-DD") of production: between workshops people rehearse.
    """

    deny: Sequence[str] = ()
    workshop_dates: Sequence[str] = ()

    def is_production(self, key: str) -> bool:
        """Whether a real user made the runs of this session key."""
        date = _browser_date(key)
        if date is None or (self.workshop_dates and date not in self.workshop_dates):
            return False
        # The list is nearly always empty, and a stream of runs comes through here.
        return not self.deny or not any(fnmatchcase(key, pattern) for pattern in self.deny)

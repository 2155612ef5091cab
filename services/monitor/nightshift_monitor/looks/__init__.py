"""Ways of looking: each takes a declared probe and tells what it saw; none raises for what it may meet."""

from __future__ import annotations

from typing import Protocol

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.observations import Seen


class Look(Protocol):
    """One way of looking; the caller bounds it by the probe's ``timeout_s``."""

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """Looks once."""
        ...

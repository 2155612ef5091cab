"""TCP: whether somebody accepts a connection."""

from __future__ import annotations

import asyncio
import contextlib

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.looks.http_look import describe
from nightshift_monitor.observations import ProbeState, Seen


class TcpLook:
    """Connects and hangs up."""

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """UP once the connection stands."""
        host, port = probe.host_and_port
        try:
            async with asyncio.timeout(probe.timeout_s):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            return Seen(ProbeState.DOWN, f"no connection within {probe.timeout_s:g} s")
        except OSError as error:
            return Seen(ProbeState.DOWN, describe(error))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return Seen(ProbeState.UP, "connection accepted")

"""Disk: free space of the file system that holds a folder."""

from __future__ import annotations

import asyncio
import os

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.looks.http_look import describe
from nightshift_monitor.observations import ProbeState, Seen


class DiskLook:
    """Asks the file system; in a thread, because a network mount may hang."""

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """DEGRADED and DOWN below the declared parts of free space; DOWN where the folder is gone."""
        try:
            async with asyncio.timeout(probe.timeout_s):
                answer = await asyncio.to_thread(os.statvfs, probe.target)
        except TimeoutError:
            return Seen(ProbeState.DOWN, f"the file system did not answer within {probe.timeout_s:g} s")
        except OSError as error:
            return Seen(ProbeState.DOWN, describe(error))
        total_bytes = answer.f_blocks * answer.f_frsize
        if total_bytes == 0:
            return Seen(ProbeState.UNKNOWN, "the file system does not tell its size")
        # f_bavail: what an ordinary user may still take, without root's reserve.
        free_bytes = answer.f_bavail * answer.f_frsize
        ratio = free_bytes / total_bytes
        detail = f"{free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free ({ratio:.0%})"
        if ratio < probe.down_free_ratio:
            return Seen(ProbeState.DOWN, detail)
        if ratio < probe.degraded_free_ratio:
            return Seen(ProbeState.DEGRADED, detail)
        return Seen(ProbeState.UP, detail)

"""Witnesses of use that settings may name: the GPU service, ComfyUI's queue, the newest export.

They corroborate the reported activity, because a platform may forget to report. A witness that cannot be
asked is not counted, and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import httpx

from nightshift_kit.clock import Clock
from nightshift_monitor.idleness import ExportsFact, UseFact
from nightshift_monitor.looks.http_look import describe, fetch

TIMEOUT_S = 2.0
# date/device/run/entry: a new entity changes its folder's time, a late one metadata.json's; no need to go
# deeper.
MAX_DEPTH = 3
MAX_ENTRIES = 100_000


class GpuServiceWitness:
    """The platform's GPU service: whether a loaded model is in use."""

    def __init__(self, client: httpx.AsyncClient, base_url: str) -> None:
        self._client = client
        self._url = f"{base_url}/api/health/vram"

    async def ask(self) -> UseFact:
        """Reads ``loaded_models[].in_use``."""
        document, problem = await _json(self._client, self._url)
        models = document.get("loaded_models") if isinstance(document, dict) else None
        if not isinstance(models, list):
            return UseFact(
                "GPU_IN_USE",
                None,
                f"The GPU service cannot be asked and is not counted: {problem or 'unexpected answer'}.",
            )
        used = [model for model in models if isinstance(model, dict) and model.get("in_use")]
        if used:
            return UseFact(
                "GPU_IN_USE", True, f"{len(used)} of {len(models)} loaded models are in use on the GPU."
            )
        return UseFact("GPU_IN_USE", False, f"None of {len(models)} loaded models is in use on the GPU.")


class ComfyUiWitness:
    """ComfyUI's queue: whether work runs or waits."""

    def __init__(self, client: httpx.AsyncClient, base_url: str) -> None:
        self._client = client
        self._url = f"{base_url}/queue"

    async def ask(self) -> UseFact:
        """Reads ``queue_running`` and ``queue_pending``."""
        document, problem = await _json(self._client, self._url)
        running = document.get("queue_running") if isinstance(document, dict) else None
        pending = document.get("queue_pending") if isinstance(document, dict) else None
        if not isinstance(running, list) or not isinstance(pending, list):
            return UseFact(
                "GPU_IN_USE",
                None,
                f"ComfyUI cannot be asked and is not counted: {problem or 'unexpected answer'}.",
            )
        if running or pending:
            return UseFact(
                "GPU_IN_USE", True, f"ComfyUI has {len(running)} running and {len(pending)} waiting jobs."
            )
        return UseFact("GPU_IN_USE", False, "ComfyUI's queue is empty.")


class ExportsWitness:
    """The newest modification time in today's (and, around midnight, yesterday's) export folder."""

    def __init__(self, folder: str, time_zone: str, clock: Clock) -> None:
        """``folder`` is the platform's ``exports/json``; date folders are local to ``time_zone``."""
        self._folder = folder
        self._zone = ZoneInfo(time_zone)
        self._clock = clock
        self._newest_seen_ns: int | None = None
        self._counts_as_ns: int | None = None

    async def ask(self) -> ExportsFact:
        """Looks at the folders, in a thread."""
        now = self._clock.now()
        local = now.astimezone(self._zone)
        days = (local.date().isoformat(), (local - timedelta(days=1)).date().isoformat())
        try:
            newest_ns = await asyncio.to_thread(newest_mtime_ns, self._folder, days)
        except OSError as error:
            return ExportsFact(
                None, f"The export folder cannot be read and is not counted: {describe(error)}."
            )
        if newest_ns is None:
            return ExportsFact(None, "No export of today.")
        if newest_ns != self._newest_seen_ns:
            # A time in the future (another clock wrote it) counts from when it was first seen, not until
            # then.
            wall_ns = _wall_ns(now)
            age_ns = max(0, wall_ns - newest_ns)
            self._newest_seen_ns = newest_ns
            self._counts_as_ns = self._clock.boottime_ns() - age_ns
        return ExportsFact(self._counts_as_ns, "")


def newest_mtime_ns(folder: str, days: tuple[str, ...]) -> int | None:
    """Newest modification time below the date folders, nanoseconds of Unix time; None where there is nothing.

    Follows no symbolic link and looks at ``MAX_ENTRIES`` entries at most, so that a planted tree cannot
    hold it up.

    Raises:
        OSError: if the folder itself cannot be read; what vanishes meanwhile is passed over.
    """
    os.stat(folder)  # noqa: PTH116 - the error of a missing folder is wanted, its result is not
    newest: int | None = None
    left = MAX_ENTRIES
    stack = [(os.path.join(folder, day), 0) for day in days]  # noqa: PTH118 - scandir gives strings
    while stack:
        path, depth = stack.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return newest
                    mtime_ns = entry.stat(follow_symlinks=False).st_mtime_ns
                    newest = mtime_ns if newest is None else max(newest, mtime_ns)
                    if depth + 1 < MAX_DEPTH and entry.is_dir(follow_symlinks=False):
                        stack.append((entry.path, depth + 1))
        except OSError:
            continue
    return newest


async def _json(client: httpx.AsyncClient, url: str) -> tuple[object, str]:
    try:
        status, _, body = await fetch(client, url, timeout_s=TIMEOUT_S)
        if status != 200:
            return None, f"HTTP {status}"
        return json.loads(body), ""
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as error:
        return None, describe(error)


def _wall_ns(now: datetime) -> int:
    return round(now.timestamp() * 1e6) * 1000

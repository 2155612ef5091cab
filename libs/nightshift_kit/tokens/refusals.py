"""Refused uses of tokens, on their way into the audit.

A refusal is noted at once and written beside the calls: whoever is refused must not wait for the disk, nor
fill it. The first refusal of a token for a reason is an event of its own, those of the following minute are
counted in one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
import structlog

from nightshift_kit.audit import Outbox
from nightshift_kit.errors import NightshiftError
from nightshift_kit.storage import Database

COUNTED_S: Final = 60.0
_RETRY_S: Final = 5.0
_MOST_METHODS: Final = 8


@dataclass(slots=True)
class _Refusals:
    actor: str
    count: int = 0
    methods: list[str] = field(default_factory=list)
    due_s: float = 0.0


class RefusedUses:
    """Collects refusals and writes them into a service's outbox.

    Args:
        db: Has the kit's tables.
        outbox: Of the service.
        counted_s: For how long further refusals of the same kind are counted before they are written.
        monotonic: Seconds that only go forward.
    """

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        counted_s: float = COUNTED_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._counted_s = counted_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], _Refusals] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._logger: Any = structlog.get_logger()

    def note(self, *, token: str, actor: str, reason: str, method: str) -> None:
        """Notes one refusal, from any thread; never blocks.

        Args:
            token: "tokens/{token}", "" where it is nobody's: what such a one calls itself proves nothing.
            actor: Who it is as far as that is known, "" for nobody.
            reason: Of the refusal.
            method: Full name of the method.
        """
        with self._lock:
            refusals = self._waiting.setdefault((token, reason), _Refusals(actor))
            refusals.count += 1
            if method not in refusals.methods and len(refusals.methods) < _MOST_METHODS:
                refusals.methods.append(method)
            loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:
                # The loop has ended; `flush` writes what is left.
                return

    async def run(self) -> None:
        """Writes what is due, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            wait_s = await self._write_due()
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                continue
            self._wake.clear()

    async def flush(self) -> None:
        """Writes everything that waits; what cannot be written is told in the log."""
        await self._write_due(everything=True)

    async def _write_due(self, *, everything: bool = False) -> float | None:
        """Seconds until something is due again, None for nothing."""
        now = self._monotonic()
        due: dict[tuple[str, str], _Refusals] = {}
        with self._lock:
            for key, refusals in self._waiting.items():
                if refusals.count and (everything or refusals.due_s <= now):
                    # Taken out before the writing: what comes meanwhile begins to count anew.
                    due[key] = refusals
                    self._waiting[key] = _Refusals(refusals.actor, due_s=now + self._counted_s)
        if due:
            try:
                await self._db.write(self._append, due)
            except NightshiftError as error:
                self._logger.warning("refused tokens not audited yet", reason=error.reason, kinds=len(due))
                self._put_back(due)
                return _RETRY_S
        with self._lock:
            self._waiting = {
                key: refusals
                for key, refusals in self._waiting.items()
                if refusals.count or refusals.due_s > now
            }
            times = [refusals.due_s for refusals in self._waiting.values()]
        return max(0.05, min(times) - self._monotonic()) if times else None

    def _put_back(self, due: dict[tuple[str, str], _Refusals]) -> None:
        with self._lock:
            for key, unwritten in due.items():
                later = self._waiting.get(key)
                if later is not None:
                    unwritten.count += later.count
                    unwritten.methods = [*dict.fromkeys(unwritten.methods + later.methods)][:_MOST_METHODS]
                self._waiting[key] = unwritten

    def _append(self, connection: sa.Connection, due: dict[tuple[str, str], _Refusals]) -> None:
        for (token, reason), refusals in due.items():
            self._outbox.append(
                connection,
                kind="token.refused",
                actor=refusals.actor or "unknown",
                subject=token or "tokens/-",
                payload={
                    "reason": reason,
                    "count": refusals.count,
                    "methods": sorted(refusals.methods),
                },
            )

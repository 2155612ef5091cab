"""Calls under way: the killer looks at them; each is repeated with the same content until it is answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from nightshift_kit.rpc.channels import RichError, decode_error

# Nothing may stay away for longer than this, however often it is killed.
PATIENCE_S = 150.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5

_AGAIN_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED"})
# A killed server's connection shows as one of these too, then without our details.
_TRANSPORT_CODES = frozenset({"UNKNOWN", "INTERNAL"})
_AGAIN_REASONS = frozenset({"OVERLOADED", "DB_BUSY", "EFFECT_PENDING"})


class Refused(AssertionError):
    """A call got an answer that no kill explains."""

    def __init__(self, operation: str, rich: RichError) -> None:
        super().__init__(f"{operation}: {rich.code.name} {rich.reason}: {rich.message}")
        self.rich = rich


class Flights:
    """Which operations are under way now, and how often one had to be asked again.

    Attributes:
        retried: Calls that were made again after an error, by operation.
        found_done: Of these, calls whose effect had taken place though their answer was lost.
    """

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.found_done: Counter[str] = Counter()

    @contextmanager
    def under_way(self, operation: str) -> Iterator[None]:
        """An operation is under way within the block."""
        self._now[operation] += 1
        try:
            yield
        finally:
            self._now[operation] -= 1

    def now(self) -> set[str]:
        """Operations under way."""
        return {operation for operation, count in list(self._now.items()) if count}

    async def insist(
        self, operation: str, call: Callable[[], Awaitable[Any]], *, quiet: bool = False
    ) -> tuple[Any, int]:
        """Calls until it is answered; the answer and how many calls went before.

        Args:
            operation: Its name among the flights.
            call: Makes the call, each time with the same content.
            quiet: Not counted among flights and retries (a read that waits for something).

        Raises:
            Refused: with an answer that does not come from a kill.
        """
        ends_s = time.monotonic() + PATIENCE_S
        pause_s, tries = _FIRST_PAUSE_S, 0
        while True:
            try:
                if quiet:
                    return await call(), tries
                with self.under_way(operation):
                    return await call(), tries
            except grpc.aio.AioRpcError as error:
                rich = decode_error(error)
                if not _again(rich):
                    raise Refused(operation, rich) from error
                assert time.monotonic() < ends_s, f"{operation}: no answer in {PATIENCE_S:.0f} s: {rich}"
            tries += 1
            if not quiet:
                self.retried[operation] += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _again(rich: RichError) -> bool:
    code = rich.code.name
    return (
        code in _AGAIN_CODES
        or rich.reason in _AGAIN_REASONS
        or (code in _TRANSPORT_CODES and not rich.reason)
    )

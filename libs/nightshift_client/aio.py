"""The client for platforms on asyncio."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nightshift_client.core import ClientCore, answer_within_s, left_s
from nightshift_client.delivery import Delivery, Statistics
from nightshift_client.errors import ClientClosed, ClientError, RecordRefused
from nightshift_client.line import Answer
from nightshift_client.spool import Entry, SpoolFailed
from nightshift_client.tuned import TunedSettings, tuned_request, tuned_settings

if TYPE_CHECKING:
    from nightshift.experience.v1 import resources_pb2


class AsyncClient:
    """``Client`` for asyncio: the same arguments and promises; it never blocks the event loop."""

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        project: str = "default",
        deadline_s: float = 0.05,
        raise_errors: bool = False,
        identity: str = "platform/default",
        spool_dir: str | Path | None = None,
        spool_max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._core = ClientCore(
            home=home,
            project=project,
            deadline_s=deadline_s,
            raise_errors=raise_errors,
            identity=identity,
            spool_dir=spool_dir,
            spool_max_bytes=spool_max_bytes,
        )
        atexit.register(self._core.close)

    def report_activity(self, kind: str = "request", run_id: str = "") -> None:
        """As ``Client.report_activity``: fire and forget, so there is nothing to await."""
        self._core.report_activity(kind, run_id)

    async def record_run(
        self,
        run: resources_pb2.Run | Mapping[str, Any],
        *,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> Delivery:
        """As ``Client.record_run``.

        Raises:
            ClientError: only with ``raise_errors``.
        """
        began = time.monotonic()
        try:
            payload = self._core.begin_run(run, project)
        except RecordRefused as error:
            return self._core.refused(error)
        return await self._deliver("run", payload, began, deadline_s)

    async def record_feedback(
        self,
        run_id: str,
        kind: str | int,
        value: float | None = None,
        *,
        time_given: datetime | None = None,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> Delivery:
        """As ``Client.record_feedback``.

        Raises:
            ClientError: only with ``raise_errors``.
        """
        began = time.monotonic()
        try:
            payload = self._core.begin_feedback(run_id, kind, value, time_given, project)
        except RecordRefused as error:
            return self._core.refused(error)
        return await self._deliver("feedback", payload, began, deadline_s)

    async def tuned_settings(
        self,
        settings: Mapping[str, Any],
        *,
        explicit: Collection[str] = (),
        skip: bool = False,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> TunedSettings:
        """As ``Client.tuned_settings``."""
        began = time.monotonic()
        deadline_s = self._core.deadline_s if deadline_s is None else deadline_s
        try:
            payload = tuned_request(settings, explicit, skip, project=project or self._core.project)
            answer, waited = await self._answer("tuned", payload, began, deadline_s)
        except ClientError as error:
            return TunedSettings(dict(settings), reason=getattr(error, "reason", "") or "CLIENT_CLOSED")
        return tuned_settings(settings, self._core.asked(answer, waited=waited))

    def statistics(self) -> Statistics:
        """Counters since the client began."""
        return self._core.statistics()

    async def close(self) -> None:
        """Ends the background work within half a second; waiting records stay on disk."""
        await asyncio.to_thread(self._core.close)
        atexit.unregister(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(
        self, kind: str, payload: bytes, began: float, deadline_s: float
    ) -> tuple[Answer | None, bool]:
        """(what was answered in time, whether anybody was asked). Raises ClientClosed."""
        loop = asyncio.get_running_loop()
        settled = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(settled.set)

        job = self._core.send(kind, payload, deadline_s, wake)
        if job is None:
            return None, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(answer_within_s(deadline_s, began)):
                await settled.wait()
        return job.give_up(), True

    async def _deliver(self, kind: str, payload: bytes, began: float, deadline_s: float | None) -> Delivery:
        deadline_s = self._core.deadline_s if deadline_s is None else deadline_s
        try:
            answer, waited = await self._answer(kind, payload, began, deadline_s)
        except ClientClosed as error:
            return self._core.failed(error)
        delivery, why = self._core.settle(answer, waited=waited)
        if delivery is not None:
            return delivery
        writing = asyncio.wrap_future(self._core.keeper.keep(kind, payload))
        problem: BaseException | None = None
        try:
            # The disk may be slow: the record then stays in memory until it takes it.
            await asyncio.wait_for(asyncio.shield(writing), left_s(deadline_s, began))
        except TimeoutError:
            writing.add_done_callback(_looked_at)
        except SpoolFailed as error:
            problem = error
        return self._core.kept(why, problem)


def _looked_at(writing: asyncio.Future[Entry]) -> None:
    """Takes note of a late failure; the spool has counted it."""
    if not writing.cancelled():
        writing.exception()

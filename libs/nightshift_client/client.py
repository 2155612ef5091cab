"""The client for synchronous platforms (Flask, Django, anything with threads)."""

from __future__ import annotations

import atexit
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nightshift_client.core import ClientCore, answer_within_s, left_s
from nightshift_client.delivery import Delivery, Statistics
from nightshift_client.errors import ClientClosed, ClientError, RecordRefused
from nightshift_client.tuned import TunedSettings, tuned_request, tuned_settings

if TYPE_CHECKING:
    from nightshift.experience.v1 import resources_pb2


class Client:
    """Tells the plane what happens on a platform, and never gets in the platform's way.

    With the plane down, slow or mad a call costs at most its deadline, and after three failures next to
    nothing; runs and feedback wait on disk and are delivered later. Safe to share between threads; make one
    a process, or one before forking (each child begins its own connection).

    Args:
        home: The plane's folder; None means NIGHTSHIFT_HOME, else the XDG state folder.
        project: Project that runs belong to.
        deadline_s: What a call of ``record_run`` or ``record_feedback`` may cost.
        raise_errors: Whether failures are raised; else the returned ``Delivery`` alone tells them.
        identity: Credential below HOME/credentials.
        spool_dir: Folder of the waiting records; None means one below ``home``.
        spool_max_bytes: Bound of that folder; the oldest records go first.
    """

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
        atexit.register(self.close)

    def report_activity(self, kind: str = "request", run_id: str = "") -> None:
        """Says that a user is here. Fire and forget: takes microseconds, is coalesced to one report a 250 ms.

        Args:
            kind: "request", "generation_started", "generation_finished" (these two are never put together),
            or
                another word of at most 32 of [a-z_].
            run_id: Run that a generation belongs to.
        """
        self._core.report_activity(kind, run_id)

    def record_run(
        self,
        run: resources_pb2.Run | Mapping[str, Any],
        *,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> Delivery:
        """Records one run.

        Args:
            run: The proto, or its fields by name (``run_id`` for the id; see ``nightshift_client.messages``).
            project: Another project than the client's.
            deadline_s: Another deadline than the client's.

        Raises:
            ClientError: only with ``raise_errors``.
        """
        began = time.monotonic()
        try:
            payload = self._core.begin_run(run, project)
        except RecordRefused as error:
            return self._core.refused(error)
        return self._deliver("run", payload, began, deadline_s)

    def record_feedback(
        self,
        run_id: str,
        kind: str | int,
        value: float | None = None,
        *,
        time_given: datetime | None = None,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> Delivery:
        """Records one signal about a run, which need not be known yet.

        Args:
            run_id: The platform's run id.
            kind: "favorite", "unfavorite", "export", "regenerate", "delete", "rating" or "dwell".
            value: 0 to 1 for a rating, seconds for a dwell.
            time_given: When; None means now.
            project: Another project than the client's.
            deadline_s: Another deadline than the client's.

        Raises:
            ClientError: only with ``raise_errors``.
        """
        began = time.monotonic()
        try:
            payload = self._core.begin_feedback(run_id, kind, value, time_given, project)
        except RecordRefused as error:
            return self._core.refused(error)
        return self._deliver("feedback", payload, began, deadline_s)

    def tuned_settings(
        self,
        settings: Mapping[str, Any],
        *,
        explicit: Collection[str] = (),
        skip: bool = False,
        project: str | None = None,
        deadline_s: float | None = None,
    ) -> TunedSettings:
        """Settings that a run should take: tuned where the project lets them be, else the originals.

        Never fails a run and never changes ``settings``: with the plane down, slow or mad the originals come
        back, at the price of at most the deadline. Nothing is kept for later.

        Args:
            settings: What the run would have; "mode", "strategy", "max_rounds" and "max_cost_usd" of it are
                looked at.
            explicit: Keys that were set for this very run, which nothing changes.
            skip: Whether the run wants no tuning at all.
            project: Another project than the client's.
            deadline_s: Another deadline than the client's.
        """
        began = time.monotonic()
        deadline_s = self._core.deadline_s if deadline_s is None else deadline_s
        try:
            payload = tuned_request(settings, explicit, skip, project=project or self._core.project)
            job = self._core.send("tuned", payload, deadline_s)
        except ClientError as error:
            return TunedSettings(dict(settings), reason=getattr(error, "reason", "") or "CLIENT_CLOSED")
        answer = None if job is None else job.wait(answer_within_s(deadline_s, began))
        return tuned_settings(settings, self._core.asked(answer, waited=job is not None))

    def statistics(self) -> Statistics:
        """Counters since the client began."""
        return self._core.statistics()

    def close(self) -> None:
        """Ends the background work within half a second; waiting records stay on disk."""
        self._core.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, kind: str, payload: bytes, began: float, deadline_s: float | None) -> Delivery:
        deadline_s = self._core.deadline_s if deadline_s is None else deadline_s
        try:
            job = self._core.send(kind, payload, deadline_s)
        except ClientClosed as error:
            return self._core.failed(error)
        answer = None if job is None else job.wait(answer_within_s(deadline_s, began))
        delivery, why = self._core.settle(answer, waited=job is not None)
        if delivery is not None:
            return delivery
        writing = self._core.keeper.keep(kind, payload)
        try:
            problem = writing.exception(left_s(deadline_s, began))
        except TimeoutError:
            # The disk is slow. The record stays in memory until it takes it.
            problem = None
        return self._core.kept(why, problem)

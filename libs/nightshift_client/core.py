"""What the synchronous and the asynchronous client share."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightshift_client.activity import ActivityQueue
from nightshift_client.breaker import Breaker
from nightshift_client.courier import Courier, Job
from nightshift_client.delivery import Delivery, DeliveryState, Statistics
from nightshift_client.errors import ClientClosed, ClientError, DeliveryFailed, RecordRefused
from nightshift_client.home import Home, default_home
from nightshift_client.keeper import Keeper
from nightshift_client.line import Answer, Line
from nightshift_client.spool import Spool

if TYPE_CHECKING:
    from nightshift.experience.v1 import resources_pb2

_LOG = logging.getLogger("nightshift_client")

# Kept back of a caller's deadline for writing the record to the spool once the answer did not come.
RESERVE_S = 0.005
CLOSE_TIMEOUT_S = 0.5


class ClientCore:
    """Everything but the waiting; see ``Client`` for the arguments."""

    def __init__(
        self,
        *,
        home: str | Path | None,
        project: str,
        deadline_s: float,
        raise_errors: bool,
        identity: str,
        spool_dir: str | Path | None,
        spool_max_bytes: int,
    ) -> None:
        if deadline_s <= 0:
            raise ValueError("deadline_s must be above 0")
        place = Home(Path(home).expanduser() if home is not None else default_home())
        self.project = project
        self.deadline_s = deadline_s
        self.raise_errors = raise_errors
        folder = (
            Path(spool_dir)
            if spool_dir is not None
            else place.path / "client" / "spool" / identity.replace("/", "-")
        )
        self.spool = Spool(folder, max_bytes=spool_max_bytes)
        self.activity = ActivityQueue()
        self._experience = Line(place, "experience", control=False, identity=identity, breaker=Breaker())
        self._control = Line(place, "skills", control=True, identity=identity, breaker=Breaker())
        self.keeper = Keeper(self.spool)
        self.courier = Courier(self._experience, self._control, self.activity, self.spool, self.keeper)
        self._closed = False
        self._counts = dict.fromkeys(DeliveryState, 0)
        self._counts_lock = threading.Lock()
        _preload()
        if len(self.spool):
            # Somebody left records here: deliver them without waiting for the first call.
            self.courier.wake()

    def report_activity(self, kind: str, run_id: str) -> None:
        """Notes the activity and wakes the courier."""
        if self._closed:
            if self.raise_errors:
                raise ClientClosed("the client is closed")
            return
        self.activity.add(kind, run_id)
        self.courier.wake()

    def begin_run(self, run: resources_pb2.Run | Mapping[str, Any], project: str | None) -> bytes:
        """The serialised request.

        Raises:
            RecordRefused: if the record cannot be sent as it is.
        """
        from nightshift_client.messages import run_request

        return run_request(run, project=project or self.project).SerializeToString()

    def begin_feedback(
        self, run_id: str, kind: str | int, value: float | None, time: datetime | None, project: str | None
    ) -> bytes:
        """The serialised request.

        Raises:
            RecordRefused: if the record cannot be sent as it is.
        """
        from nightshift_client.messages import feedback_request

        return feedback_request(
            run_id, kind, value, time, project=project or self.project
        ).SerializeToString()

    def send(
        self, kind: str, payload: bytes, deadline_s: float, on_settled: Callable[[], None] | None = None
    ) -> Job | None:
        """Hands a job to the courier; None where nobody should wait, because the breaker is open.

        Raises:
            ClientClosed: after ``close``.
        """
        if self._closed:
            raise ClientClosed("the client is closed")
        if not self._experience.breaker.closed:
            return None
        job = Job(kind, payload, deadline_s, on_settled)
        self.courier.submit(job)
        return job

    def settle(self, answer: Answer | None, *, waited: bool) -> tuple[Delivery | None, str]:
        """What became of the record: a delivery, or None and why it has to be kept in the spool."""
        if answer is not None and answer.ok:
            return self._counted(Delivery(DeliveryState.STORED)), ""
        if answer is not None and answer.refused:
            return self.refused(RecordRefused(answer.message, reason=answer.reason)), ""
        if answer is not None:
            return None, f"{answer.code}: {answer.message}"
        if not waited:
            return None, "the plane is away"
        # The courier may not even have come to send it; for whoever waits that is the same failure.
        self._experience.breaker.failure()
        return None, "no answer in time"

    def asked(self, answer: Answer | None, *, waited: bool) -> Answer | None:
        """The answer to a question; that there is none in time counts as a failure of the plane."""
        if answer is None and waited:
            self._experience.breaker.failure()
        return answer

    def kept(self, why: str, problem: BaseException | None) -> Delivery:
        """Says that the record waits in the spool, or why it does not."""
        if problem is None:
            delivery = self._counted(Delivery(DeliveryState.SPOOLED, "", why))
            self.courier.wake()
        else:
            delivery = self._counted(Delivery(DeliveryState.DROPPED, "SPOOL_FAILED", f"{why}; {problem}"))
        if self.raise_errors:
            raise DeliveryFailed(f"{why}; the record is {delivery.state.value}")
        return delivery

    def refused(self, error: RecordRefused) -> Delivery:
        """Counts a refusal, and raises it where that is wanted."""
        _LOG.warning("a record is refused: %s", error.reason)
        delivery = self._counted(Delivery(DeliveryState.REFUSED, error.reason, str(error)))
        if self.raise_errors:
            raise error
        return delivery

    def failed(self, error: ClientError) -> Delivery:
        """The client itself could not try."""
        if self.raise_errors:
            raise error
        return self._counted(Delivery(DeliveryState.DROPPED, "CLIENT_CLOSED", str(error)))

    def statistics(self) -> Statistics:
        """Counters since the client began."""
        counts = self._counts
        return Statistics(
            stored=counts[DeliveryState.STORED],
            spooled=counts[DeliveryState.SPOOLED],
            refused=counts[DeliveryState.REFUSED] + self.spool.refused_count,
            dropped=max(counts[DeliveryState.DROPPED], self.spool.dropped_count),
            delivered_later=self.courier.delivered_count,
            waiting=len(self.spool),
            reports_sent=self.courier.reported_count,
            reports_lost=self.activity.lost_count,
            experience_breaker=self._experience.breaker.state.value,
            control_breaker=self._control.breaker.state.value,
        )

    def close(self) -> None:
        """Ends the background thread; never takes longer than half a second."""
        self._closed = True
        self.keeper.close(CLOSE_TIMEOUT_S / 2)
        self.courier.close(CLOSE_TIMEOUT_S / 2)

    def _counted(self, delivery: Delivery) -> Delivery:
        with self._counts_lock:
            self._counts[delivery.state] += 1
        return delivery


def answer_within_s(deadline_s: float, began: float) -> float:
    """How long an answer may still take, so that the reserve for the spool is left; ≥ 0."""
    return max(0.0, deadline_s - min(RESERVE_S, deadline_s / 4) - (time.monotonic() - began))


def left_s(deadline_s: float, began: float) -> float:
    """What is left of a caller's deadline; ≥ 0."""
    return max(0.0, deadline_s - (time.monotonic() - began))


def _preload() -> None:
    """Imports what the first call needs, so that no request of the platform pays for it."""
    # grpc tells of every failed handshake on stderr; a platform's log is not the place for that.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from nightshift_client import line, messages

    del line, messages
    import grpc
    from google.rpc import error_details_pb2, status_pb2

    from nightshift.skills.v1 import control_service_pb2, skills_service_pb2

    del grpc, error_details_pb2, status_pb2, control_service_pb2, skills_service_pb2

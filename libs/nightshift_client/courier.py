"""The background thread of a client: the only one that speaks with the plane.

A caller hands over and waits for at most its deadline; whatever grpc, the network or the plane does, nobody
but this thread meets it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nightshift_client.activity import ActivityQueue, Report
from nightshift_client.keeper import Keeper
from nightshift_client.line import Answer, Line
from nightshift_client.spool import Entry, Spool, SpoolFailed

_LOG = logging.getLogger("nightshift_client")

METHODS = {
    "run": "/nightshift.experience.v1.ExperienceService/RecordRun",
    "feedback": "/nightshift.experience.v1.ExperienceService/RecordFeedback",
    "tuned": "/nightshift.experience.v1.ExperienceService/GetTunedSettings",
}
REPORT_METHOD = "/nightshift.skills.v1.ControlService/ReportActivity"

REPORT_TIMEOUT_S = 1.0
TRIAL_TIMEOUT_S = 2.0
SPOOL_TIMEOUT_S = 5.0
REFRESH_INTERVAL_S = 1.0
RESCAN_INTERVAL_S = 30.0
# Forcing to the disk may stall every writer of the file system, so records are forced together.
SYNC_DELAY_S = 1.0
# A record that the plane cannot digest (INTERNAL, time after time, while it is healthy) is set aside after
# these tries.
MAX_TRIES = 5


@dataclass(eq=False)
class Job:
    """One record on its way; settled once, by the answer or by the caller who gave up."""

    kind: str
    payload: bytes
    timeout_s: float
    on_settled: Callable[[], None] | None = None
    _settled: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    answer: Answer | None = None
    abandoned: bool = False

    def settle(self, answer: Answer) -> None:
        """Gives the answer to the caller, if it still waits."""
        with self._lock:
            if self.abandoned or self.answer is not None:
                return
            self.answer = answer
        self._settled.set()
        if self.on_settled is not None:
            self.on_settled()

    def wait(self, timeout_s: float) -> Answer | None:
        """Waits for the answer; None if there is none in time, and then none will be given any more."""
        self._settled.wait(max(0.0, timeout_s))
        return self.give_up()

    def give_up(self) -> Answer | None:
        """The answer, or None; afterwards the job is the caller's again."""
        with self._lock:
            if self.answer is None:
                self.abandoned = True
            return self.answer


class Courier:
    """Sends jobs, reports and the spool; starts its thread when there is something to do."""

    def __init__(
        self,
        experience: Line,
        control: Line,
        activity: ActivityQueue,
        spool: Spool,
        keeper: Keeper,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._experience = experience
        self._control = control
        self._activity = activity
        self._spool = spool
        self._keeper = keeper
        self._clock = clock
        self._condition = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._events: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False
        self._trials = 0
        self._spool_in_flight = False
        self._spool_after = 0.0
        self._refresh_at = 0.0
        self._rescan_at = 0.0
        self._sync_at: float | None = None
        self._tries: dict[str, int] = {}
        self.delivered_count = 0
        self.reported_count = 0
        _COURIERS.add(self)

    def submit(self, job: Job) -> None:
        """Hands over a job; it is settled later, by another thread."""
        with self._condition:
            if self._closed:
                job.settle(Answer("CANCELLED", "", "the client is closed"))
                return
            self._jobs.append(job)
            self._start()
            self._condition.notify()

    def wake(self) -> None:
        """Says that there is something to do: activity, or a record in the spool."""
        with self._condition:
            if not self._closed:
                self._start()
                self._condition.notify()

    def close(self, timeout_s: float) -> None:
        """Sends what waits if that goes at once, then ends the thread; records stay in the spool."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._condition.notify()
        _COURIERS.discard(self)
        if thread is not None and thread is not threading.current_thread() and self._pid == os.getpid():
            thread.join(timeout_s)

    def after_fork(self) -> None:
        """Begins anew in a forked child: the thread stayed with the parent, and so did its jobs."""
        self._condition = threading.Condition()
        self._jobs = deque()
        self._events = deque()
        self._thread = None
        self._pid = os.getpid()
        self._trials = 0
        self._spool_in_flight = False
        self._experience.after_fork()
        self._control.after_fork()
        self._activity.after_fork()
        self._spool.after_fork()
        self._keeper.after_fork()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            # A daemon: a platform that ends must not wait for us.
            self._thread = threading.Thread(target=self._work, name="nightshift-client", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._condition:
                if not self._jobs and not self._events and not self._closed:
                    wait_s = self._wait_s()
                    if wait_s is None or wait_s > 0:
                        self._condition.wait(wait_s)
                jobs, self._jobs = self._jobs, deque()
                events, self._events = self._events, deque()
                closed = self._closed
            try:
                for event in events:
                    event()
                for job in jobs:
                    self._send_job(job)
                self._tend()
            except Exception:  # noqa: BLE001 - a bug of ours must not take the platform's records along
                _LOG.exception("the courier stumbled")
                time.sleep(0.1)
            if closed:
                self._finish()
                return

    def _wait_s(self) -> float | None:
        """Time until there is something to do without being woken."""
        now = self._clock()
        waits: list[float] = []
        if self._control.breaker.closed and (due := self._activity.next_in_s()) is not None:
            waits.append(due)
        if self._sync_at is not None:
            waits.append(self._sync_at - now)
        if len(self._spool) and not self._spool_in_flight and self._experience.breaker.closed:
            waits.append(self._spool_after - now)
        for line in (self._experience, self._control):
            trial_s = line.breaker.trial_in_s()
            if trial_s is not None:
                waits.append(min(trial_s, max(0.0, self._refresh_at - now)))
        waits.append(max(0.0, self._rescan_at - now))
        return max(0.0, min(waits))

    def _tend(self) -> None:
        now = self._clock()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_INTERVAL_S
            self._experience.refresh()
            self._control.refresh()
        if now >= self._rescan_at:
            self._rescan_at = now + RESCAN_INTERVAL_S
            self._spool.rescan()
        for line in (self._experience, self._control):
            if line.breaker.begin_trial():
                line.check(TRIAL_TIMEOUT_S, self._later(line, lambda _: None))
        if self._control.breaker.closed:
            for report in self._activity.take():
                self._send_report(report)
        else:
            self._activity.drop_requests()
        if self._sync_at is not None and now >= self._sync_at:
            self._sync_at = None
            self._spool.sync()
        if self._sync_at is None and self._spool.needs_sync:
            self._sync_at = now + SYNC_DELAY_S
        if self._experience.breaker.closed and not self._spool_in_flight and now >= self._spool_after:
            self._send_spooled()

    def _send_job(self, job: Job) -> None:
        if job.abandoned:
            return
        self._experience.call(
            METHODS[job.kind], job.payload, job.timeout_s, self._later(self._experience, lambda _: None, job)
        )

    def _send_report(self, report: Report) -> None:
        from google.protobuf.timestamp_pb2 import Timestamp

        from nightshift.skills.v1 import skills_service_pb2

        send_time = Timestamp()
        send_time.FromNanoseconds(report.time_ns)
        request = skills_service_pb2.ReportActivityRequest(
            kind=report.kind, send_time=send_time, count=report.count, run_id=report.run_id
        )

        def answered(answer: Answer) -> None:
            # What the plane refuses it would refuse again.
            self._activity.done(report, sent=answer.ok or answer.refused)
            self.reported_count += report.count if answer.ok else 0

        self._control.call(
            REPORT_METHOD, request.SerializeToString(), REPORT_TIMEOUT_S, self._later(self._control, answered)
        )

    def _send_spooled(self) -> None:
        waiting = self._spool.oldest_first()
        # One that the plane stumbles over must not hold up those behind it.
        waiting.sort(key=lambda entry: (self._tries.get(entry.name, 0), entry.name))
        for entry in waiting:
            payload = self._spool.read(entry)
            if payload is not None:
                self._spool_in_flight = True
                answered = self._later(self._experience, functools.partial(self._spooled_answered, entry))
                self._experience.call(METHODS[entry.kind], payload, SPOOL_TIMEOUT_S, answered)
                return
        self._tries.clear()

    def _spooled_answered(self, entry: Entry, answer: Answer) -> None:
        self._spool_in_flight = False
        if answer.ok:
            self._spool.remove(entry)
            self._tries.pop(entry.name, None)
            self.delivered_count += 1
            return
        if answer.refused:
            _LOG.warning("the plane refuses a waiting record (%s); it is set aside", answer.reason)
            self._spool.set_aside(entry, answer.reason)
            self._tries.pop(entry.name, None)
            return
        self._spool_after = self._clock() + 0.5
        if answer.code in ("INTERNAL", "UNKNOWN", "DATA_LOSS"):
            self._tries[entry.name] = self._tries.get(entry.name, 0) + 1
            if self._tries[entry.name] >= MAX_TRIES and self.delivered_count:
                self._spool.set_aside(entry, answer.code)

    def _later(
        self, line: Line, then: Callable[[Answer], None], job: Job | None = None
    ) -> Callable[[Answer], None]:
        """A receiver of an answer: settles breaker and job at once, the rest on our own thread."""

        def receive(answer: Answer) -> None:
            if answer.alive:
                line.breaker.success()
            elif answer.code != "CANCELLED" and not (job is not None and job.abandoned):
                # A caller that gave up has counted its failure itself.
                line.breaker.failure()
            if job is not None:
                job.settle(answer)
            with self._condition:
                self._events.append(lambda: then(answer))
                self._condition.notify()

        return receive

    def _finish(self) -> None:
        """Gives the last reports a moment, then hangs up; what callers wait for goes back to them."""
        deadline = self._clock() + 0.1
        while self._clock() < deadline and self._control.breaker.closed:
            for report in self._activity.take():
                self._send_report(report)
            with self._condition:
                if not self._events:
                    if self._activity.idle:
                        break
                    self._condition.wait(0.01)
                events, self._events = self._events, deque()
            for event in events:
                event()
        with contextlib.suppress(SpoolFailed, OSError):
            self._spool.sync()
        self._experience.disconnect()
        self._control.disconnect()


_COURIERS: weakref.WeakSet[Courier] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for courier in list(_COURIERS):
        courier.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

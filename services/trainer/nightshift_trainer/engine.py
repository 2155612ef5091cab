"""The one worker: from a committed job to its process, and from the end of that process to the job's state.

What the worker causes is written when its process has exited, never on its word alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.storage import Database
from nightshift_trainer.adapters import publish
from nightshift_trainer.backend_choice import BackendChoice
from nightshift_trainer.errors import JobState
from nightshift_trainer.gpu import Gpus, wait_released
from nightshift_trainer.job_files import JobFiles
from nightshift_trainer.orphans import kill_orphan
from nightshift_trainer.progress import PointLog
from nightshift_trainer.records import Adapter, State, TrainingJob
from nightshift_trainer.resources import TrainingJobName
from nightshift_trainer.running import Outcome, Pending, Running, outcome_of
from nightshift_trainer.store import jobs as store
from nightshift_trainer.supervisor import Job, Supervisor, WorkerEnd
from nightshift_trainer.worker.order import Order

_log = logging.getLogger(__name__)

# How often what a worker told is written to the job's row while it runs.
_PERSIST_S = 1.0

_RELEASE_TIMEOUT_S = 3.0
_SETTLE_RETRY_S = 1.0

# A worker leaves within a second; a database that takes no writes must not keep the service from ending.
_CLOSE_S = 5.0

_ACTOR = "service/trainer"


@dataclass(frozen=True, kw_only=True)
class BackgroundWork:
    """A worker as whoever stops it sees it.

    `stop` and `kill` may be called from any thread and do not block.
    """

    name: str
    skill_run: str
    fence: int
    on_purpose: bool
    stop: Callable[[str], None]
    kill: Callable[[], None]


class Registered(Protocol):
    """Work that whoever stops it knows of. From any thread."""

    @property
    def over_ns(self) -> int:
        """When its lease is over, on CLOCK_BOOTTIME; 0 where it has none."""
        ...

    def done(self) -> None:
        """It has ended."""
        ...


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of the jobs; see config.TrainerSettings."""

    cpu_threads: int = 1
    stop_grace_s: float = 0.1
    keep_warm_s: float = 0.0
    fork_on_cpu: bool = True


class Engine:
    """Runs workers, one at a time. One event loop owns it.

    Args:
        register: Makes work known to whoever stops it.
        encode: A job as the bytes of its answer, kept for a retry of the same call.
    """

    def __init__(
        self,
        *,
        db: Database,
        files: JobFiles,
        outbox: Outbox,
        clock: Clock,
        supervisor: Supervisor,
        backends: BackendChoice,
        gpus: Gpus,
        register: Callable[[BackgroundWork], Registered],
        encode: Callable[[TrainingJob], bytes],
        tuning: Tuning,
    ) -> None:
        self._db = db
        self._files = files
        self._outbox = outbox
        self._clock = clock
        self._supervisor = supervisor
        self._backends = backends
        self._gpus = gpus
        self._register = register
        self._tuning = tuning
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        # One thread, so that points keep their order and no disk delays heartbeats or calls.
        self._absorber = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="points")
        self.encode = encode
        self.running: Running | None = None

    async def recover(self) -> None:
        """Ends what a previous service left running, and says so in its jobs.

        Call it once, before serving.
        """
        self._loop = asyncio.get_running_loop()
        found = await self._db.read(store.open_jobs)
        for job_id in set(await asyncio.to_thread(self._files.with_rest)) - {job.id for job in found}:
            # The end was stored, and then there was no time to tidy up.
            await asyncio.to_thread(self._files.remove_rest, job_id)
        for job in found:
            killed = await asyncio.to_thread(kill_orphan, self._files.folder(job.id))
            if killed is not None:
                _log.warning("killed orphaned worker %d of job %s", killed, job.id)
            if job.state.is_active:
                log = await self.log_of(job.id)
                running = Running(job, log, forget=lambda: None)
                outcome = Outcome(
                    State.PAUSED,
                    pause_cause="restart",
                    event="preempted",
                    message="The service was restarted.",
                )
                await self._settle_as(running, outcome, None)

    async def close(self) -> None:
        """Stops the worker, keeps its state, ends the threads."""
        running = self.running
        if running is not None:
            self.stop(running, "shutdown")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.settled.wait(), _CLOSE_S)
        self._closing = True
        await asyncio.to_thread(self._supervisor.close)
        self._absorber.shutdown()
        await asyncio.to_thread(self._files.close)

    async def commit_and_start(
        self, job: TrainingJob, transaction: Callable[[sa.Connection], bytes | None]
    ) -> bytes:
        """Commits a job's beginning and starts its worker.

        Answers the encoded job, or what `transaction` found stored for an earlier call of the same kind.
        """
        self._loop = asyncio.get_running_loop()
        log = await self.log_of(job.id)
        running = Running(job, log, forget=lambda: None)
        # Registered before the fence is checked in the transaction: a stop in between reaches one or the
        # other.
        registered = self._register(
            BackgroundWork(
                name=f"{TrainingJobName(job.id).name} worker",
                skill_run=job.skill_run,
                fence=job.fence,
                on_purpose=job.on_purpose,
                stop=lambda cause: self.stop(running, cause),
                kill=lambda: self._supervisor.kill("user"),
            )
        )
        running.forget = registered.done
        try:
            backend = await asyncio.to_thread(self._backends.choose, job.spec.device)
            stored = await self._db.write(transaction)
        except BaseException:
            running.forget()
            raise
        if stored is not None:
            running.forget()
            return stored
        self.running = running
        running.written = job
        self._start(running, backend, lambda: registered.over_ns)
        self._spawn(self._persist(running))
        return self.encode(job)

    def _start(self, running: Running, backend: str, over_ns: Callable[[], int]) -> None:
        job = running.job
        folder = self._files.folder(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        order = Order(
            spec=job.spec,
            job_folder=folder,
            backend=backend,
            device=job.spec.device,
            threads=self._tuning.cpu_threads,
            stop_grace_s=self._tuning.stop_grace_s,
        )
        with running.lock:
            if not running.stop_cause:
                running.started = True
                self._supervisor.start(
                    Job(
                        order,
                        fork=job.spec.device == "cpu" and self._tuning.fork_on_cpu,
                        told=lambda messages: self._told(running, messages),
                        ended=lambda end: self._ended(running, end),
                        over_ns=over_ns,
                    )
                )
                return
        # Stopped before it began.
        now_ns = self._clock.boottime_ns()
        self._ended(running, WorkerEnd(None, running.stop_cause, False, None, now_ns, now_ns))

    def stop(self, running: Running, cause: str) -> None:
        """Asks a job's worker to leave. Any thread."""
        with running.lock:
            first = not running.stop_cause
            running.stop_cause = running.stop_cause or cause
            if running.started and first:
                self._supervisor.stop(cause)

    def _told(self, running: Running, messages: Sequence[Mapping[str, Any]]) -> None:
        """On the supervisor's thread."""
        self._absorber.submit(self._absorb, running, messages)

    def _absorb(self, running: Running, messages: Sequence[Mapping[str, Any]]) -> None:
        try:
            running.absorb(messages)
        except OSError:
            # Nobody's training fails because its progress cannot be written down.
            _log.exception("progress points are lost")

    def _ended(self, running: Running, end: WorkerEnd) -> None:
        """On the supervisor's thread, or on the loop where there was no worker."""
        running.forget()
        loop = self._loop
        assert loop is not None

        def settle() -> None:
            self._spawn(self._settle(running, end))

        # Behind what the worker told.
        self._absorber.submit(loop.call_soon_threadsafe, settle)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, running: Running) -> None:
        """Writes what the worker told to the job's row, now and then."""
        while not running.settled.is_set():
            job = running.job
            if job != running.written:
                try:
                    await self._db.write(_update_live, job)
                    running.written = job
                except NightshiftError as error:
                    _log.warning("a job's progress is not stored: %s", error)
            try:
                await asyncio.wait_for(running.settled.wait(), _PERSIST_S)
            except TimeoutError:
                continue

    async def _settle(self, running: Running, end: WorkerEnd) -> None:
        cancelled = any(pending.kind == "cancel" for pending in running.pending)
        outcome = outcome_of(end, cancelled=cancelled)
        if outcome.state is State.SUCCEEDED:
            assert end.last is not None
            outcome = await self._publish(running, end.last, outcome)
        if running.job.spec.device == "cuda" and running.worker_pid:
            await self._confirm_release(running)
        await self._settle_as(running, outcome, end.last)

    async def _confirm_release(self, running: Running) -> None:
        took_s = await asyncio.to_thread(wait_released, self._gpus, running.worker_pid, _RELEASE_TIMEOUT_S)
        message = (
            f"NVML lists no process of ours after {took_s * 1000:.0f} ms."
            if took_s is not None
            else f"NVML still lists the worker after {_RELEASE_TIMEOUT_S:.0f} s."
        )
        running.log.append([running.point("event", event="released", message=message)])

    async def _publish(self, running: Running, last: Mapping[str, Any], outcome: Outcome) -> Outcome:
        job = running.job
        try:
            await asyncio.to_thread(
                publish,
                self._files.staged_adapter(job.id),
                self._files.adapter_folder(job.adapter_id),
                last["weights_digest"],
            )
        except NightshiftError as error:
            failure = {"reason": error.reason, "message": str(error), "metadata": {}}
            return Outcome(State.FAILED, failure=failure, message=str(error))
        except OSError as error:
            _log.exception("an adapter could not be published")
            message = f"The adapter could not be put in place: {error.strerror}."
            failure = {"reason": "STORAGE_IO", "message": message, "metadata": {}}
            return Outcome(State.FAILED, failure=failure, message=message)
        return outcome

    async def _settle_as(self, running: Running, outcome: Outcome, last: Mapping[str, Any] | None) -> None:
        """Makes an outcome the job's state, with everything that hangs on it, in one transaction."""
        checkpoint = await asyncio.to_thread(self._files.last_checkpoint, running.job.id)
        job = dataclasses.replace(running.job, state=outcome.state, pause_cause=outcome.pause_cause)
        if checkpoint is not None:
            job = dataclasses.replace(
                job,
                step=checkpoint.step,
                loss=checkpoint.state["loss"],
                checkpoint_digest=checkpoint.digest,
            )
        if outcome.state is State.PAUSED:
            job = dataclasses.replace(job, pause_count=job.pause_count + 1)
        else:
            job = dataclasses.replace(job, end_time=self._clock.now(), failure=outcome.failure)
        adapter: Adapter | None = None
        if outcome.state is State.SUCCEEDED and last is not None:
            adapter = self._adapter_of(job, last)
            job = dataclasses.replace(job, peak_bytes=last["peak_memory_bytes"])
        answered: list[tuple[Pending, bytes | NightshiftError]] = []

        def transaction(connection: sa.Connection) -> None:
            answered.clear()
            store.update_job(connection, job)
            if adapter is not None:
                store.insert_adapter(connection, adapter)
            actor = running.pending[0].effect.actor if running.pending else _ACTOR
            self.record(connection, _event_kind(outcome.state), actor, job)
            for pending in running.pending:
                answered.append((pending, self._answer(connection, pending, job)))

        while not self._closing:
            try:
                await self._db.write(transaction)
                break
            except NightshiftError as error:
                # The worker has gone whatever the database says. What is not written now is written when it
                # can be, or found by recover() after a restart.
                _log.error("a job's end is not stored yet: %s", error)
                for pending in running.pending:
                    if not pending.answer.done():
                        pending.answer.set_exception(error)
                running.pending.clear()
                await asyncio.sleep(_SETTLE_RETRY_S)
        else:
            # Never stored: nothing may be removed, and the next start takes it from here.
            running.settled.set()
            return
        await asyncio.to_thread(self.tell_end, running, job, outcome)
        running.job = job
        if self.running is running:
            self.running = None
        running.settled.set()
        if not job.state.is_open:
            self.cool_down_later()
        running.log.wake()
        for pending, answer in answered:
            if pending.answer.done():
                continue
            if isinstance(answer, bytes):
                pending.answer.set_result(answer)
            else:
                pending.answer.set_exception(answer)
        for pending in running.pending:
            # Asked after the end was decided.
            if not pending.answer.done():
                pending.answer.set_exception(wrong_state(job, "running"))

    def tell_end(self, running: Running, job: TrainingJob, outcome: Outcome) -> None:
        """Tells the end, and removes what an ended job needs no more."""
        running.phase = "ended" if not job.state.is_open else "paused"
        values = {"step": job.step, "total_steps": job.total_steps}
        try:
            running.log.append(
                [
                    running.point("event", **values, event=outcome.event, message=outcome.message),
                    running.point("phase", **values),
                ]
            )
            if not job.state.is_open:
                self._files.remove_rest(job.id)
        except OSError:
            _log.exception("the end of job %s is not in its progress", job.id)

    def _answer(
        self, connection: sa.Connection, pending: Pending, job: TrainingJob
    ) -> bytes | NightshiftError:
        wanted = State.PAUSED if pending.kind == "pause" else State.CANCELLED
        if job.state is not wanted:
            return wrong_state(job, "running")
        try:
            stored = pending.effect.begin(connection)
        except NightshiftError as error:
            # The job has stopped all the same; only this caller's right has lapsed.
            return error
        answer = self.encode(job)
        if stored is None:
            pending.effect.finish(connection, answer)
        return stored or answer

    def cool_down_later(self) -> None:
        """No job is open any more: gives the warm parent's memory back, at once or after a while."""

        def cool_down() -> None:
            if self.running is None and not self._supervisor.closed:
                self._supervisor.cool_down()

        asyncio.get_running_loop().call_later(self._tuning.keep_warm_s, cool_down)

    def record(self, connection: sa.Connection, kind: str, actor: str, job: TrainingJob) -> None:
        """Writes an audit event about a job in the caller's transaction."""
        payload = {
            "state": job.state.value,
            "step": job.step,
            "total_steps": job.total_steps,
            "pause_cause": job.pause_cause,
            "checkpoint_digest": job.checkpoint_digest,
            "base_model_digest": job.spec.base_model_digest,
            "dataset_digest": job.spec.dataset_digest,
            "skill_run": job.skill_run,
        }
        if job.failure is not None:
            payload["reason"] = job.failure["reason"]
        self._outbox.append(
            connection, kind=kind, actor=actor, subject=TrainingJobName(job.id).name, payload=payload
        )

    def _adapter_of(self, job: TrainingJob, last: Mapping[str, Any]) -> Adapter:
        return Adapter(
            id=job.adapter_id,
            training_job=job.id,
            path=str(self._files.adapter_path(job.adapter_id)),
            weights_digest=last["weights_digest"],
            base_model_digest=job.spec.base_model_digest,
            dataset_digest=job.spec.dataset_digest,
            spec=job.spec,
            loss=last["loss"],
            create_time=self._clock.now(),
            code_versions=last["code_versions"],
            size_bytes=last["size_bytes"],
        )

    async def log_of(self, job_id: str) -> PointLog:
        """The progress points of a job."""

        def open_jobs() -> list[str]:
            return [job.id for job in self._db.read_sync(store.open_jobs)]

        return await asyncio.to_thread(self._files.log, job_id, open_jobs)


def _update_live(connection: sa.Connection, job: TrainingJob) -> None:
    # Not after the end: another transaction may have been quicker.
    found = store.get_job(connection, job.id)
    if found is not None and found.state.is_active:
        store.update_job(connection, job)


def _event_kind(state: State) -> str:
    return {State.PAUSED: "training.paused", State.CANCELLED: "training.cancelled"}.get(
        state, "training.ended"
    )


def wrong_state(job: TrainingJob, wanted: str) -> JobState:
    """The error for a job that is not in the state it would have to be in."""
    return JobState(
        f"{TrainingJobName(job.id).name} is {job.state.value}, not {wanted}.",
        metadata={"state": job.state.value},
    )

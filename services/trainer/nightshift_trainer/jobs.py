"""Training jobs: at most one open, each with at most one worker.

A job's row says what is; its folder holds what it needs to go on:

    HOME/trainer/jobs/<id>/checkpoints/   see worker.slots
    HOME/trainer/jobs/<id>/points/        see progress
    HOME/trainer/jobs/<id>/worker.log
    HOME/trainer/adapters/<adapter>/      what came of it

What callers cause happens in the transaction of their grant; what the worker causes, when its process has
exited.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, FieldViolation, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database
from nightshift_trainer.adapters import publish
from nightshift_trainer.backend_choice import BackendChoice
from nightshift_trainer.errors import (
    AdapterExists,
    AdapterUnknown,
    CheckpointCorrupt,
    GpuBusy,
    JobState,
    TrainingJobUnknown,
    UnsafeFormat,
    VramInsufficient,
)
from nightshift_trainer.gpu import Gpus, wait_released
from nightshift_trainer.inspection import Inspection, Inspector
from nightshift_trainer.orphans import kill_orphan
from nightshift_trainer.progress import Follower, Point, PointLog
from nightshift_trainer.records import Adapter, State, TrainingJob
from nightshift_trainer.resources import AdapterName, TrainingJobName
from nightshift_trainer.running import Outcome, Pending, Running, outcome_of
from nightshift_trainer.store import jobs as store
from nightshift_trainer.supervisor import Job, Supervisor, WorkerEnd
from nightshift_trainer.worker.order import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, Order
from nightshift_trainer.worker.slots import CheckpointsCorrupt, Slots, StoredCheckpoint, UnsafeCheckpoint

_log = logging.getLogger(__name__)

# How often what a worker told is written to the job's row while it runs.
_PERSIST_S = 1.0

_WATCH_BATCH = 1000
_KEPT_LOGS = 16
_RELEASE_TIMEOUT_S = 3.0
_SETTLE_RETRY_S = 1.0

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


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of the jobs; see config.TrainerSettings."""

    cpu_threads: int = 1
    stop_grace_s: float = 0.2
    kept_points: int = 200_000
    keep_alive_s: float = 10.0
    keep_warm_s: float = 0.0
    fork_on_cpu: bool = True


class TrainingJobs:
    """The trainer's core. One event loop owns it.

    Args:
        home: NIGHTSHIFT_HOME.
        register: Makes work known to whoever stops it; the answer is to be called when it has ended.
        encode: A job as the bytes of its answer, kept for a retry of the same call.
    """

    def __init__(
        self,
        *,
        home: Path,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        new_id: Callable[[], str],
        supervisor: Supervisor,
        inspector: Inspector,
        backends: BackendChoice,
        gpus: Gpus,
        register: Callable[[BackgroundWork], Callable[[], None]],
        encode: Callable[[TrainingJob], bytes],
        tuning: Tuning,
    ) -> None:
        self._home = home
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._new_id = new_id
        self._supervisor = supervisor
        self._inspector = inspector
        self._backends = backends
        self._gpus = gpus
        self._register = register
        self._encode = encode
        self._tuning = tuning
        self._running: Running | None = None
        self._logs: dict[str, PointLog] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # One thread, so that points keep their order and no disk delays heartbeats or calls.
        self._absorber = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="points")

    # Reads.

    async def estimate(self, given: Mapping[str, Any]) -> tuple[Inspection, float | None, str]:
        """A complete spec with its memory, the expected seconds, and what that rests on.

        The seconds are None where nothing comparable was timed. Raises as Inspector.inspect.
        """
        inspection = await asyncio.to_thread(self._inspector.inspect, given)
        spec = inspection.spec
        earlier = [
            job
            for job in await self._db.read(store.comparable_jobs, spec.base_model_digest)
            if _comparable(job, inspection)
        ]
        if not earlier:
            return inspection, None, inspection.room.detail
        seconds = sum(job.timed_s for job in earlier) / sum(job.timed_steps for job in earlier)
        detail = f"{inspection.room.detail} Time from {len(earlier)} earlier jobs of this kind."
        if earlier[0].peak_bytes and earlier[0].estimated_bytes:
            error = earlier[0].estimated_bytes / earlier[0].peak_bytes - 1
            detail += f" The last one's memory was estimated {error:+.0%} against its measured peak."
        return inspection, seconds * spec.total_steps(inspection.dataset.row_count), detail

    async def get(self, job_id: str) -> TrainingJob:
        """One job, with what its worker told last. Raises TrainingJobUnknown."""
        running = self._running
        if running is not None and running.job.id == job_id:
            return running.job
        job = await self._db.read(store.get_job, job_id)
        if job is None:
            raise TrainingJobUnknown(
                f"There is no training job {job_id}.", metadata={"name": TrainingJobName(job_id).name}
            )
        return job

    async def list_jobs(self, *, before: str | None, limit: int) -> list[TrainingJob]:
        """Newest first."""
        jobs = await self._db.read(_list_jobs, before, limit)
        running = self._running
        if running is None:
            return jobs
        return [running.job if job.id == running.job.id else job for job in jobs]

    async def get_adapter(self, adapter_id: str) -> Adapter:
        """One adapter. Raises AdapterUnknown."""
        adapter = await self._db.read(store.get_adapter, adapter_id)
        if adapter is None:
            raise AdapterUnknown(
                f"There is no adapter {adapter_id}.", metadata={"name": AdapterName(adapter_id).name}
            )
        return adapter

    async def list_adapters(self, *, before: tuple[int, str] | None, limit: int) -> list[Adapter]:
        """Newest first."""
        return await self._db.read(_list_adapters, before, limit)

    async def watch(self, job_id: str, after_seq: int) -> AsyncIterator[tuple[TrainingJob, Sequence[Point]]]:
        """The job with its points after a number, then what comes.

        Without points where only time has passed or the job itself changed. Ends when the job has ended and
        everything was told.

        Raises TrainingJobUnknown, SeqGone.
        """
        await self.get(job_id)
        log = await self._log_of(job_id)
        follower = Follower(log)
        told: State | None = None
        try:
            while True:
                # The job first: when it says that it has ended, all its points are in the log.
                job = await self.get(job_id)
                points = await asyncio.to_thread(log.read, after_seq, _WATCH_BATCH)
                if points:
                    after_seq = points[-1].seq
                if points or told is not job.state:
                    told = job.state
                    yield job, points
                    if points:
                        continue
                if not job.state.is_open:
                    return
                if not await follower.wait(self._tuning.keep_alive_s):
                    yield await self.get(job_id), ()
        finally:
            follower.close()

    # What callers cause.

    async def create(self, effect: Effect, given: Mapping[str, Any]) -> bytes:
        """Accepts a job and starts its worker; answers the encoded job.

        Raises as Inspector.inspect, and FieldInvalid without digests, VramInsufficient, GpuBusy,
        AdapterExists.
        """
        missing = [name for name in ("dataset_digest", "base_model_digest") if not given.get(name)]
        if missing:
            raise FieldInvalid(
                "A training is bound to the digests it was planned with; EstimateTraining fills them in.",
                violations=[FieldViolation(f"spec.{name}", "is required") for name in missing],
            )
        stored = await self._db.read(effect.begin)
        if stored is not None:
            return stored
        inspection = await asyncio.to_thread(self._inspector.inspect, given)
        if not inspection.room.fits:
            raise VramInsufficient(
                inspection.room.detail, metadata={"needed_bytes": str(inspection.memory_bytes)}
            )
        job_id = self._new_id()
        job = TrainingJob(
            id=job_id,
            state=State.STARTING,
            spec=inspection.spec,
            adapter_id=inspection.spec.adapter_id or f"adapter-{job_id}",
            skill_run=effect.grant.skill_run,
            fence=effect.grant.fence,
            on_purpose=effect.grant.on_purpose,
            create_time=self._clock.now(),
            total_steps=inspection.spec.total_steps(inspection.dataset.row_count),
            estimated_bytes=inspection.memory_bytes,
        )

        def transaction(connection: sa.Connection) -> bytes | None:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            others = store.open_jobs(connection)
            if others:
                raise _busy(others[0])
            if store.adapter_id_taken(connection, job.adapter_id):
                raise AdapterExists(
                    f"There is an adapter {job.adapter_id} already.",
                    metadata={"name": AdapterName(job.adapter_id).name},
                )
            store.insert_job(connection, job)
            self._append(connection, "training.created", effect.actor, job)
            effect.finish(connection, self._encode(job))
            return None

        return await self._unbroken(self._commit_and_start(job, transaction))

    async def resume(self, effect: Effect, job_id: str) -> bytes:
        """Goes on with a paused job; answers it encoded.

        Raises TrainingJobUnknown, JobState, GpuBusy, CorpusChanged, CheckpointCorrupt, UnsafeFormat, and what
        Inspector.inspect raises where model or rows are gone.
        """
        stored = await self._db.read(effect.begin)
        if stored is not None:
            return stored
        before = await self.get(job_id)
        if before.state is State.PAUSED:
            inspection = await asyncio.to_thread(self._inspector.inspect, before.spec.as_dict())
            if not inspection.room.fits:
                raise VramInsufficient(inspection.room.detail)
            await asyncio.to_thread(self._good_checkpoint, job_id)
        job = dataclasses.replace(
            before,
            state=State.STARTING,
            pause_cause="",
            skill_run=effect.grant.skill_run,
            fence=effect.grant.fence,
            on_purpose=effect.grant.on_purpose,
        )

        def transaction(connection: sa.Connection) -> bytes | None:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            found = store.get_job(connection, job_id)
            if found is None or found.state is not State.PAUSED:
                raise _wrong_state(found or before, "paused")
            others = [other for other in store.open_jobs(connection) if other.id != job_id]
            if others:
                raise _busy(others[0])
            store.update_job(connection, job)
            self._append(connection, "training.resumed", effect.actor, job)
            effect.finish(connection, self._encode(job))
            return None

        return await self._unbroken(self._commit_and_start(job, transaction))

    async def pause(self, effect: Effect, job_id: str) -> bytes:
        """Stops a job's worker; answers the encoded job once its checkpoint is known to be on the disk.

        Raises TrainingJobUnknown, JobState.
        """
        return await self._end_running(effect, job_id, "pause")

    async def cancel(self, effect: Effect, job_id: str) -> bytes:
        """Ends a job, running or paused; answers it encoded. Raises TrainingJobUnknown, JobState."""
        return await self._end_running(effect, job_id, "cancel")

    # Life of the service.

    async def recover(self) -> None:
        """Ends what a previous service left running, and says so in its jobs.

        Call it once, before serving.
        """
        self._loop = asyncio.get_running_loop()
        for job in await self._db.read(store.open_jobs):
            killed = await asyncio.to_thread(kill_orphan, self._folder(job.id))
            if killed is not None:
                _log.warning("killed orphaned worker %d of job %s", killed, job.id)
            if job.state.is_active:
                log = await self._log_of(job.id)
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
        running = self._running
        if running is not None:
            self._stop(running, "shutdown")
            await running.settled.wait()
        await asyncio.to_thread(self._supervisor.close)
        self._absorber.shutdown()
        for log in self._logs.values():
            log.close()

    async def _unbroken(self, work: Any) -> bytes:
        """Runs to the end what must not be half done, even where the call that began it is cancelled."""
        task: asyncio.Task[bytes] = asyncio.ensure_future(work)
        return await asyncio.shield(task)

    async def _commit_and_start(
        self, job: TrainingJob, transaction: Callable[[sa.Connection], bytes | None]
    ) -> bytes:
        self._loop = asyncio.get_running_loop()
        log = await self._log_of(job.id)
        running = Running(job, log, forget=lambda: None)
        # Registered before the fence is checked in the transaction: a stop in between reaches one or the
        # other.
        running.forget = self._register(
            BackgroundWork(
                name=f"{TrainingJobName(job.id).name} worker",
                skill_run=job.skill_run,
                fence=job.fence,
                on_purpose=job.on_purpose,
                stop=lambda cause: self._stop(running, cause),
                kill=lambda: self._supervisor.kill("user"),
            )
        )
        try:
            backend = await asyncio.to_thread(self._backends.choose, job.spec.device)
            stored = await self._db.write(transaction)
        except BaseException:
            running.forget()
            raise
        if stored is not None:
            running.forget()
            return stored
        self._running = running
        running.written = job
        self._start(running, backend)
        self._spawn(self._persist(running))
        return self._encode(job)

    def _start(self, running: Running, backend: str) -> None:
        job = running.job
        folder = self._folder(job.id)
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
                    )
                )
                return
        # Stopped before it began.
        now_ns = self._clock.boottime_ns()
        self._ended(running, WorkerEnd(None, running.stop_cause, False, None, now_ns, now_ns))

    def _stop(self, running: Running, cause: str) -> None:
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
                self._folder(job.id) / ADAPTER_FOLDER,
                self._home / self._adapter_path(job),
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
        checkpoint = await asyncio.to_thread(self._last_checkpoint, running.job.id)
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
            self._append(connection, _event_kind(outcome.state), actor, job)
            for pending in running.pending:
                answered.append((pending, self._answer(connection, pending, job)))

        while True:
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
                if self._supervisor.closed:
                    break
                await asyncio.sleep(_SETTLE_RETRY_S)
        await asyncio.to_thread(self._clean_up, running, job, outcome)
        running.job = job
        if self._running is running:
            self._running = None
        running.settled.set()
        if not job.state.is_open:
            self._cool_down_later()
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
                pending.answer.set_exception(_wrong_state(job, "running"))

    def _clean_up(self, running: Running, job: TrainingJob, outcome: Outcome) -> None:
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
                folder = self._folder(job.id)
                for name in (CHECKPOINTS_FOLDER, ADAPTER_FOLDER, "library"):
                    shutil.rmtree(folder / name, ignore_errors=True)
                (folder / "rows.safetensors").unlink(missing_ok=True)
        except OSError:
            _log.exception("the end of job %s is not in its progress", job.id)

    def _answer(
        self, connection: sa.Connection, pending: Pending, job: TrainingJob
    ) -> bytes | NightshiftError:
        wanted = State.PAUSED if pending.kind == "pause" else State.CANCELLED
        if job.state is not wanted:
            return _wrong_state(job, "running")
        try:
            stored = pending.effect.begin(connection)
        except NightshiftError as error:
            # The job has stopped all the same; only this caller's right has lapsed.
            return error
        answer = self._encode(job)
        if stored is None:
            pending.effect.finish(connection, answer)
        return stored or answer

    async def _end_running(self, effect: Effect, job_id: str, kind: str) -> bytes:
        def look(connection: sa.Connection) -> tuple[bytes | None, TrainingJob | None]:
            return effect.begin(connection), store.get_job(connection, job_id)

        stored, found = await self._db.write(look)
        if stored is not None:
            return stored
        running = self._running
        if running is not None and running.job.id == job_id and not running.settled.is_set():
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            running.pending.append(Pending(kind, effect, answer))
            self._stop(running, "person")
            return await asyncio.shield(answer)
        if found is None:
            raise TrainingJobUnknown(
                f"There is no training job {job_id}.", metadata={"name": TrainingJobName(job_id).name}
            )
        if kind == "cancel" and found.state is State.PAUSED:
            return await self._unbroken(self._cancel_paused(effect, found))
        raise _wrong_state(found, "running" if kind == "pause" else "open")

    async def _cancel_paused(self, effect: Effect, job: TrainingJob) -> bytes:
        cancelled = dataclasses.replace(
            job, state=State.CANCELLED, pause_cause="", end_time=self._clock.now()
        )

        def transaction(connection: sa.Connection) -> bytes | None:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            found = store.get_job(connection, job.id)
            if found is None or found.state is not State.PAUSED:
                raise _wrong_state(found or job, "open")
            store.update_job(connection, cancelled)
            self._append(connection, "training.cancelled", effect.actor, cancelled)
            effect.finish(connection, self._encode(cancelled))
            return None

        stored = await self._db.write(transaction)
        if stored is not None:
            return stored
        log = await self._log_of(job.id)
        running = Running(cancelled, log, forget=lambda: None)
        await asyncio.to_thread(
            self._clean_up, running, cancelled, Outcome(State.CANCELLED, message="Cancelled.")
        )
        self._cool_down_later()
        log.wake()
        return self._encode(cancelled)

    # Small helpers.

    def _cool_down_later(self) -> None:
        """No job is open any more: gives the warm parent's memory back, at once or after a while."""

        def cool_down() -> None:
            if self._running is None and not self._supervisor.closed:
                self._supervisor.cool_down()

        asyncio.get_running_loop().call_later(self._tuning.keep_warm_s, cool_down)

    def _append(self, connection: sa.Connection, kind: str, actor: str, job: TrainingJob) -> None:
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
            path=str(self._adapter_path(job)),
            weights_digest=last["weights_digest"],
            base_model_digest=job.spec.base_model_digest,
            dataset_digest=job.spec.dataset_digest,
            spec=job.spec,
            loss=last["loss"],
            create_time=self._clock.now(),
            code_versions=last["code_versions"],
            size_bytes=last["size_bytes"],
        )

    def _adapter_path(self, job: TrainingJob) -> Path:
        return Path("trainer") / "adapters" / job.adapter_id

    def _folder(self, job_id: str) -> Path:
        return self._home / "trainer" / "jobs" / job_id

    def _good_checkpoint(self, job_id: str) -> StoredCheckpoint | None:
        try:
            return Slots(self._folder(job_id) / CHECKPOINTS_FOLDER).load()
        except CheckpointsCorrupt as error:
            raise CheckpointCorrupt(
                f"No checkpoint of this job is good: {error}.",
                metadata={"name": TrainingJobName(job_id).name},
            ) from error
        except UnsafeCheckpoint as error:
            raise UnsafeFormat(str(error)) from error

    def _last_checkpoint(self, job_id: str) -> StoredCheckpoint | None:
        try:
            return self._good_checkpoint(job_id)
        except (NightshiftError, OSError):
            return None

    async def _log_of(self, job_id: str) -> PointLog:
        log = self._logs.get(job_id)
        if log is None:
            folder = self._folder(job_id) / "points"
            made = await asyncio.to_thread(PointLog, folder, kept_points=self._tuning.kept_points)
            log = self._logs.setdefault(job_id, made)
            open_ids = {job.id for job in await self._db.read(store.open_jobs)} | {job_id}
            for other in list(self._logs):
                if len(self._logs) > _KEPT_LOGS and other not in open_ids:
                    self._logs.pop(other).close()
        return log


def _list_jobs(connection: sa.Connection, before: str | None, limit: int) -> list[TrainingJob]:
    return store.list_jobs(connection, before=before, limit=limit)


def _list_adapters(connection: sa.Connection, before: tuple[int, str] | None, limit: int) -> list[Adapter]:
    return store.list_adapters(connection, before=before, limit=limit)


def _update_live(connection: sa.Connection, job: TrainingJob) -> None:
    # Not after the end: another transaction may have been quicker.
    found = store.get_job(connection, job.id)
    if found is not None and found.state.is_active:
        store.update_job(connection, job)


def _comparable(job: TrainingJob, inspection: Inspection) -> bool:
    names = ("batch_size", "gradient_accumulation", "quantization", "max_length", "device", "dataset_digest")
    return all(getattr(job.spec, name) == getattr(inspection.spec, name) for name in names)


def _event_kind(state: State) -> str:
    return {State.PAUSED: "training.paused", State.CANCELLED: "training.cancelled"}.get(
        state, "training.ended"
    )


def _busy(other: TrainingJob) -> GpuBusy:
    return GpuBusy(
        f"{TrainingJobName(other.id).name} is {other.state.value}; let it end, or cancel it.",
        metadata={"training_job": TrainingJobName(other.id).name, "state": other.state.value},
    )


def _wrong_state(job: TrainingJob, wanted: str) -> JobState:
    return JobState(
        f"{TrainingJobName(job.id).name} is {job.state.value}, not {wanted}.",
        metadata={"state": job.state.value},
    )

"""What callers may do with trainings.

At most one job is open, and everything happens in the transaction of a grant.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, FieldViolation
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database
from nightshift_trainer.engine import Engine, wrong_state
from nightshift_trainer.errors import AdapterExists, GpuBusy, TrainingJobUnknown, VramInsufficient
from nightshift_trainer.inspection import Inspector
from nightshift_trainer.job_files import JobFiles
from nightshift_trainer.reading import TrainingReads
from nightshift_trainer.records import State, TrainingJob
from nightshift_trainer.resources import AdapterName, TrainingJobName
from nightshift_trainer.running import Outcome, Pending, Running
from nightshift_trainer.store import jobs as store


class TrainingJobs:
    """Acts. One event loop owns it.

    Attributes:
        reads: What can be read beside.
    """

    def __init__(
        self,
        *,
        db: Database,
        files: JobFiles,
        clock: Clock,
        new_id: Callable[[], str],
        inspector: Inspector,
        engine: Engine,
        reads: TrainingReads,
    ) -> None:
        self._db = db
        self._files = files
        self._clock = clock
        self._new_id = new_id
        self._inspector = inspector
        self._engine = engine
        self._reads = reads

    @property
    def reads(self) -> TrainingReads:
        """What can be read."""
        return self._reads

    async def recover(self) -> None:
        """See Engine.recover."""
        await self._engine.recover()

    async def close(self) -> None:
        """See Engine.close."""
        await self._engine.close()

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
            self._engine.record(connection, "training.created", effect.actor, job)
            effect.finish(connection, self._engine.encode(job))
            return None

        return await self._unbroken(self._engine.commit_and_start(job, transaction))

    async def resume(self, effect: Effect, job_id: str) -> bytes:
        """Goes on with a paused job; answers it encoded.

        Raises TrainingJobUnknown, JobState, GpuBusy, CorpusChanged, CheckpointCorrupt, UnsafeFormat, and what
        Inspector.inspect raises where model or rows are gone.
        """
        stored = await self._db.read(effect.begin)
        if stored is not None:
            return stored
        before = await self._reads.get(job_id)
        if before.state is State.PAUSED:
            inspection = await asyncio.to_thread(self._inspector.inspect, before.spec.as_dict())
            if not inspection.room.fits:
                raise VramInsufficient(inspection.room.detail)
            await asyncio.to_thread(self._files.good_checkpoint, job_id)
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
                raise wrong_state(found or before, "paused")
            others = [other for other in store.open_jobs(connection) if other.id != job_id]
            if others:
                raise _busy(others[0])
            store.update_job(connection, job)
            self._engine.record(connection, "training.resumed", effect.actor, job)
            effect.finish(connection, self._engine.encode(job))
            return None

        return await self._unbroken(self._engine.commit_and_start(job, transaction))

    async def pause(self, effect: Effect, job_id: str) -> bytes:
        """Stops a job's worker; answers the encoded job once its checkpoint is known to be on the disk.

        Raises TrainingJobUnknown, JobState.
        """
        return await self._end_running(effect, job_id, "pause")

    async def cancel(self, effect: Effect, job_id: str) -> bytes:
        """Ends a job, running or paused; answers it encoded. Raises TrainingJobUnknown, JobState."""
        return await self._end_running(effect, job_id, "cancel")

    async def _end_running(self, effect: Effect, job_id: str, kind: str) -> bytes:
        def look(connection: sa.Connection) -> tuple[bytes | None, TrainingJob | None]:
            return effect.begin(connection), store.get_job(connection, job_id)

        stored, found = await self._db.write(look)
        if stored is not None:
            return stored
        running = self._engine.running
        if running is not None and running.job.id == job_id and not running.settled.is_set():
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            running.pending.append(Pending(kind, effect, answer))
            self._engine.stop(running, "person")
            return await asyncio.shield(answer)
        if found is None:
            raise TrainingJobUnknown(
                f"There is no training job {job_id}.", metadata={"name": TrainingJobName(job_id).name}
            )
        if kind == "cancel" and found.state is State.PAUSED:
            return await self._unbroken(self._cancel_paused(effect, found))
        raise wrong_state(found, "running" if kind == "pause" else "open")

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
                raise wrong_state(found or job, "open")
            store.update_job(connection, cancelled)
            self._engine.record(connection, "training.cancelled", effect.actor, cancelled)
            effect.finish(connection, self._engine.encode(cancelled))
            return None

        stored = await self._db.write(transaction)
        if stored is not None:
            return stored
        log = await self._engine.log_of(job.id)
        running = Running(cancelled, log, forget=lambda: None)
        await asyncio.to_thread(
            self._engine.tell_end, running, cancelled, Outcome(State.CANCELLED, message="Cancelled.")
        )
        self._engine.cool_down_later()
        log.wake()
        return self._engine.encode(cancelled)

    async def _unbroken(self, work: Any) -> bytes:
        """Runs to the end what must not be half done, even where the call that began it is cancelled."""
        task: asyncio.Task[bytes] = asyncio.ensure_future(work)
        return await asyncio.shield(task)


def _busy(other: TrainingJob) -> GpuBusy:
    return GpuBusy(
        f"{TrainingJobName(other.id).name} is {other.state.value}; let it end, or cancel it.",
        metadata={"training_job": TrainingJobName(other.id).name, "state": other.state.value},
    )

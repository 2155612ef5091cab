"""What can be read of trainings: estimates, jobs, adapters, progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from nightshift_kit.storage import Database
from nightshift_trainer.engine import Engine
from nightshift_trainer.errors import AdapterUnknown, TrainingJobUnknown
from nightshift_trainer.inspection import Inspection, Inspector
from nightshift_trainer.progress import Follower, Point
from nightshift_trainer.records import Adapter, State, TrainingJob
from nightshift_trainer.resources import AdapterName, TrainingJobName
from nightshift_trainer.store import jobs as store

_WATCH_BATCH = 1000


class TrainingReads:
    """Reads; nothing here changes anything."""

    def __init__(self, db: Database, inspector: Inspector, engine: Engine, keep_alive_s: float) -> None:
        self._db = db
        self._inspector = inspector
        self._engine = engine
        self._keep_alive_s = keep_alive_s

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
        running = self._engine.running
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
        jobs = await self._db.read(lambda c: store.list_jobs(c, before=before, limit=limit))
        running = self._engine.running
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
        return await self._db.read(lambda c: store.list_adapters(c, before=before, limit=limit))

    async def watch(self, job_id: str, after_seq: int) -> AsyncIterator[tuple[TrainingJob, Sequence[Point]]]:
        """The job with its points after a number, then what comes.

        Without points where only time has passed or the job itself changed. Ends when the job has ended and
        everything was told.

        Raises TrainingJobUnknown, SeqGone.
        """
        await self.get(job_id)
        log = await self._engine.log_of(job_id)
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
                if not await follower.wait(self._keep_alive_s):
                    yield await self.get(job_id), ()
        finally:
            follower.close()


def _comparable(job: TrainingJob, inspection: Inspection) -> bool:
    names = ("batch_size", "gradient_accumulation", "quantization", "max_length", "device", "dataset_digest")
    return all(getattr(job.spec, name) == getattr(inspection.spec, name) for name in names)

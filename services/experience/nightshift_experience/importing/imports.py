"""Import jobs: one a project at a time, watched, cancelled, and taken up again after a crash.

Nothing of a job is needed to go on: what was stored carries its fingerprint, so a new import reads only
what the old one did not reach.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
import structlog

from nightshift_experience.audit import Audit
from nightshift_experience.errors import (
    DirectoryNotFound,
    ImportJobEnded,
    ImportJobUnknown,
    ImportRunning,
    SourceUnknown,
)
from nightshift_experience.importing.child import ReadingProcess
from nightshift_experience.importing.writing import (
    ImportRules,
    with_progress,
    write_batch,
    write_end,
    write_favorites,
)
from nightshift_experience.sources.devserver.configs import read_known_configs
from nightshift_experience.store.import_state import (
    ImportJob,
    JobState,
    add_known_outputs,
    fail_interrupted,
    get_job,
    list_jobs,
    list_skipped,
    load_paths,
    put_job,
)
from nightshift_experience.store.run_writes import WritingRules
from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, NightshiftError
from nightshift_kit.storage import Database

_log = structlog.get_logger("nightshift.experience.importing")

DEVSERVER = "devserver"
_RECORD_SOURCE = "devserver-export"
_KNOWN_ROWS = 5000
_WATCH_INTERVAL_S = 0.2


@dataclass(frozen=True)
class ImportSettings:
    """What imports take from the configuration."""

    time_zone: str
    content_checks: tuple[str, ...]
    platform_root: str
    writing: WritingRules


class _Running:
    """A job under way, as its watchers see it."""

    def __init__(self, job: ImportJob, actor: str) -> None:
        self.job = job
        self.actor = actor
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def publish(self, job: ImportJob) -> None:
        self.job = job
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for_change(self) -> None:
        await self._changed.wait()


class Imports:
    """The imports of this service."""

    def __init__(
        self, db: Database, clock: Clock, new_id: Callable[[], str], settings: ImportSettings
    ) -> None:
        self._db = db
        self._clock = clock
        self._new_id = new_id
        self._settings = settings
        self._audit = Audit(clock)
        self._running: dict[str, _Running] = {}

    async def recover(self) -> None:
        """Give jobs that a crash cut short their end; call it before serving."""
        count = await self._db.write(fail_interrupted, self._now_us())
        if count:
            _log.warning("imports_interrupted", count=count)

    async def close(self) -> None:
        """Cancel what runs."""
        for running in list(self._running.values()):
            running.cancelled = True
            if running.task is not None:
                running.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running.task

    async def start(
        self, project: str, directory: str, source: str, platform_root: str, *, actor: str
    ) -> ImportJob:
        """Begin an import. Raises SourceUnknown, FieldInvalid, DirectoryNotFound, ImportRunning."""
        if source not in ("", DEVSERVER):
            raise SourceUnknown.at("source", f"there is no importer of that name; there is {DEVSERVER!r}")
        for field, path in (("directory", directory), ("platform_root", platform_root)):
            if "\0" in path or (path and not path.startswith("/")):
                raise FieldInvalid.at(field, "must be an absolute path")
        if not directory or not await asyncio.to_thread(_is_folder, directory):
            raise DirectoryNotFound(f"there is no folder {directory!r}; give the one that holds exports/json")
        while (current := self._running.get(project)) is not None:
            if current.job.state == JobState.RUNNING or current.task is None:
                raise ImportRunning(
                    "This project imports already; wait for it or cancel it.",
                    metadata={"import_job": current.job.job_id},
                )
            # Its watchers know already that it has ended; its process is about to.
            await asyncio.wait([current.task])
        job = ImportJob(
            project=project,
            job_id=self._new_id(),
            source=DEVSERVER,
            directory=directory,
            platform_root=platform_root or self._settings.platform_root,
            start_us=self._now_us(),
        )
        running = _Running(job, actor)
        self._running[project] = running
        try:
            await self._db.write(self._begin, job, actor)
        except BaseException:
            del self._running[project]
            raise
        running.task = asyncio.create_task(self._run(running), name=f"import-{project}")
        return job

    async def cancel(self, project: str, job_id: str) -> ImportJob:
        """Stop an import. Raises ImportJobUnknown, ImportJobEnded."""
        running = self._running.get(project)
        if running is None or running.job.job_id != job_id or running.task is None:
            job = await self.get(project, job_id)
            raise ImportJobEnded(
                "The import has ended already.", metadata={"state": JobState(job.state).name}
            )
        running.cancelled = True
        running.task.cancel()
        # Shielded: who asks may leave, the job ends all the same.
        await asyncio.shield(asyncio.wait([running.task]))
        return await self.get(project, job_id)

    async def get(self, project: str, job_id: str) -> ImportJob:
        """One import as it stands. Raises ImportJobUnknown."""
        running = self._running.get(project)
        if running is not None and running.job.job_id == job_id:
            return running.job
        job = await self._db.read(get_job, project, job_id)
        if job is None:
            raise ImportJobUnknown("There is no such import.", metadata={"import_job": job_id})
        return job

    async def page(self, project: str, before: tuple[int, str] | None, limit: int) -> list[ImportJob]:
        """Imports, newest first, after the position (start_us, job_id)."""
        jobs = await self._db.read(list_jobs, project, before, limit)
        running = self._running.get(project)
        return [running.job if running is not None and running.job.job_id == j.job_id else j for j in jobs]

    async def skipped(self, project: str, after: str | None, limit: int) -> list[tuple[str, str, str]]:
        """Skipped records (path, reason, detail) by path."""
        return await self._db.read(list_skipped, project, after, limit)

    async def watch(self, project: str, job_id: str, after_seq: int) -> AsyncIterator[ImportJob]:
        """States of a job newer than `after_seq`, until it ends. Raises ImportJobUnknown."""
        while True:
            running = self._running.get(project)
            changed = asyncio.ensure_future(running.wait_for_change()) if running is not None else None
            try:
                job = await self.get(project, job_id)
                ended = job.state != JobState.RUNNING
                # After a crash the last state may carry a lower number than one that was sent before it.
                if job.seq > after_seq or (ended and job.seq != after_seq):
                    yield job
                    after_seq = job.seq
                if ended:
                    return
                if changed is not None:
                    await changed
            finally:
                if changed is not None:
                    changed.cancel()
            await asyncio.sleep(_WATCH_INTERVAL_S)

    async def _run(self, running: _Running) -> None:
        child = ReadingProcess()
        try:
            try:
                await self._import(running, child)
            finally:
                await child.stop()
        except asyncio.CancelledError:
            state = JobState.CANCELLED if running.cancelled else JobState.FAILED
            await self._end(running, state, "" if running.cancelled else "INTERRUPTED", "")
        except NightshiftError as error:
            await self._end(running, JobState.FAILED, error.reason, error.message)
        except Exception as error:  # noqa: BLE001 - whatever it was, the job must end
            _log.exception("import_failed", import_job=running.job.job_id)
            await self._end(running, JobState.FAILED, "IMPORTER_FAILED", type(error).__name__)
        finally:
            self._running.pop(running.job.project, None)

    async def _import(self, running: _Running, child: ReadingProcess) -> None:
        job = running.job
        known = await asyncio.to_thread(read_known_configs, job.platform_root)
        await self._db.write(add_known_outputs, job.project, known.outputs)
        rules = ImportRules(self._settings.writing, _RECORD_SOURCE, known.interceptions)
        await child.start(job.directory, self._settings.time_zone, self._settings.content_checks)
        after = ""
        while True:
            states = await self._db.read(load_paths, job.project, _RECORD_SOURCE, after, _KNOWN_ROWS)
            await child.know(states)
            if not states:
                break
            after = states[-1].path
        async for frame in child.frames():
            if await self._take(running, frame, rules):
                await self._end(running, JobState.SUCCEEDED, "", "")
                return
        raise ReaderDiedError("The reading process ended early.")

    async def _take(self, running: _Running, frame: bytes, rules: ImportRules) -> bool:
        """Take one message of the reading process; whether it was the last."""
        message = orjson.loads(frame) if len(frame) < 4096 else await asyncio.to_thread(orjson.loads, frame)
        job, now_us = running.job, self._now_us()
        match message["kind"]:
            case "progress":
                running.publish(with_progress(job, message))
            case "batch":
                await self._commit(running, self._db.write(write_batch, job, message, rules, now_us))
            case "favorites":
                added_us = message["added_us"]
                await self._commit(running, self._db.write(write_favorites, job, added_us, rules, now_us))
            case "favorites_unreadable":
                reasons = dict(job.skipped_reasons)
                reasons["FAVORITES_" + message["reason"]] = 1
                running.publish(replace(job, seq=job.seq + 1, skipped_reasons=reasons))
            case "failed":
                raise ReaderFailedError(message["reason"], message["detail"])
            case "end":
                await self._db.write(write_end, job, message["gone"], rules, now_us)
                return True
        return False

    async def _commit(self, running: _Running, write: Coroutine[Any, Any, ImportJob]) -> None:
        """Wait for a write and take over its job, also where the import is cancelled meanwhile.

        What is under way will be on disk, so it has to be counted.
        """
        task = asyncio.ensure_future(write)
        try:
            running.publish(await asyncio.shield(task))
        except asyncio.CancelledError:
            running.publish(await task)
            raise

    async def _end(self, running: _Running, state: JobState, reason: str, message: str) -> None:
        job = replace(
            running.job,
            state=state,
            seq=running.job.seq + 1,
            end_us=self._now_us(),
            failure_reason=reason,
            failure_message=message,
        )
        try:
            await asyncio.shield(self._db.write(self._finish, job, running.actor))
        except NightshiftError as error:
            # The disk says no: the job's end is lost with it, and the next start calls it interrupted.
            _log.warning("import_end_not_stored", import_job=job.job_id, reason=error.reason)
        running.publish(job)

    def _begin(self, connection: sa.Connection, job: ImportJob, actor: str) -> None:
        put_job(connection, job)
        self._audit.import_job(connection, "import.begun", actor, job.project, job.job_id)

    def _finish(self, connection: sa.Connection, job: ImportJob, actor: str) -> None:
        put_job(connection, job)
        self._audit.import_job(
            connection,
            f"import.{JobState(job.state).name.lower()}",
            actor,
            job.project,
            job.job_id,
            created=job.created_count,
            updated=job.updated_count,
            skipped=job.skipped_count,
        )

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


class ReaderDiedError(NightshiftError):
    """The reading process ended without saying so."""

    reason = "IMPORTER_DIED"


class ReaderFailedError(NightshiftError):
    """The reading process told of a failure."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        # An instance's own reason: the process names it.
        self.reason = reason  # type: ignore[misc]


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False

"""A job's folder: where things lie, what is good in it, and what an ended job leaves.

HOME/trainer/jobs/<id>/checkpoints/   see worker.slots
HOME/trainer/jobs/<id>/points/        see progress
HOME/trainer/jobs/<id>/worker.log
HOME/trainer/adapters/<adapter>/      what came of it
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from nightshift_kit.errors import NightshiftError
from nightshift_trainer.errors import CheckpointCorrupt, UnsafeFormat
from nightshift_trainer.progress import PointLog
from nightshift_trainer.resources import TrainingJobName
from nightshift_trainer.worker.order import ADAPTER_FOLDER, CHECKPOINTS_FOLDER
from nightshift_trainer.worker.slots import CheckpointsCorrupt, Slots, StoredCheckpoint, UnsafeCheckpoint

# Logs of ended jobs that stay open for those who look at them.
_KEPT_LOGS = 16


class JobFiles:
    """Files of all jobs. Blocking: call it in threads; safe in any."""

    def __init__(self, home: Path, kept_points: int) -> None:
        self._home = home
        self._kept_points = kept_points
        self._lock = threading.Lock()
        self._logs: dict[str, PointLog] = {}

    def folder(self, job_id: str) -> Path:
        """Folder of a job."""
        return self._home / "trainer" / "jobs" / job_id

    def staged_adapter(self, job_id: str) -> Path:
        """Where the worker leaves the finished adapter."""
        return self.folder(job_id) / ADAPTER_FOLDER

    def adapter_path(self, adapter_id: str) -> Path:
        """Where an adapter stays, relative to NIGHTSHIFT_HOME."""
        return Path("trainer") / "adapters" / adapter_id

    def adapter_folder(self, adapter_id: str) -> Path:
        """Where an adapter stays."""
        return self._home / self.adapter_path(adapter_id)

    def log(self, job_id: str, open_jobs: Callable[[], Collection[str]]) -> PointLog:
        """The progress points of a job. `open_jobs` names those whose logs must stay open."""
        with self._lock:
            log = self._logs.get(job_id)
            if log is None:
                log = PointLog(self.folder(job_id) / "points", kept_points=self._kept_points)
                self._logs[job_id] = log
                if len(self._logs) > _KEPT_LOGS:
                    kept = {job_id, *open_jobs()}
                    for other in [other for other in self._logs if other not in kept]:
                        self._logs.pop(other).close()
            return log

    def good_checkpoint(self, job_id: str) -> StoredCheckpoint | None:
        """The newest good checkpoint, None where there was none yet.

        Raises CheckpointCorrupt, UnsafeFormat, OSError.
        """
        try:
            return Slots(self.folder(job_id) / CHECKPOINTS_FOLDER).load()
        except CheckpointsCorrupt as error:
            raise CheckpointCorrupt(
                f"No checkpoint of this job is good: {error}.",
                metadata={"name": TrainingJobName(job_id).name},
            ) from error
        except UnsafeCheckpoint as error:
            raise UnsafeFormat(str(error)) from error

    def last_checkpoint(self, job_id: str) -> StoredCheckpoint | None:
        """As good_checkpoint, None also where none is good."""
        try:
            return self.good_checkpoint(job_id)
        except (NightshiftError, OSError):
            return None

    def remove_rest(self, job_id: str) -> None:
        """Removes what an ended job needs no more; log and points stay."""
        folder = self.folder(job_id)
        for name in (CHECKPOINTS_FOLDER, ADAPTER_FOLDER, "library"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "rows.safetensors").unlink(missing_ok=True)

    def with_rest(self) -> list[str]:
        """Ids of jobs that still have checkpoints."""
        return sorted(path.parent.name for path in self.folder("*").parent.glob(f"*/{CHECKPOINTS_FOLDER}"))

    def close(self) -> None:
        """Closes the logs."""
        with self._lock:
            for log in self._logs.values():
                log.close()
            self._logs.clear()

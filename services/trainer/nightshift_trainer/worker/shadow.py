"""Writes shadow checkpoints from a thread of its own.

The training thread hands over one snapshot at a time; it waits only if the previous one is not on the disk
yet. What is to be told about a step is told when its checkpoint is durable, so a step that anybody heard of
is never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from nightshift_trainer.worker.slots import Slots


class ShadowWriter:
    """One writer of one job's slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._condition = threading.Condition()
        self._work: tuple[int, memoryview, Mapping[str, Any], Callable[[str], None]] | None = None
        self._failure: OSError | None = None
        self.last_digest = ""
        self.last_step = -1
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing is being written; False where that takes longer.

        Raises the OSError of a failed write: a failed fsync is never tried again.
        """
        with self._condition:
            idle = self._condition.wait_for(lambda: self._work is None, timeout_s)
            if self._failure is not None:
                raise self._failure
            return idle

    def submit(
        self,
        step: int,
        tensors: memoryview,
        state: Mapping[str, Any],
        durable: Callable[[str], None],
    ) -> None:
        """Begins to write; calls `durable` with the digest afterwards.

        The buffer behind `tensors` must stay as it is until wait_idle. Raises the OSError of a previous
        write.
        """
        self.wait_idle()
        with self._condition:
            self._work = (step, tensors, state, durable)
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._work is not None)
                work = self._work
            assert work is not None
            step, tensors, state, durable = work
            try:
                digest = self._slots.write(step=step, tensors=tensors, state=state)
            except OSError as error:
                with self._condition:
                    self._failure = error
                    self._work = None
                    self._condition.notify_all()
                return
            self.last_digest = digest
            self.last_step = step
            durable(digest)
            with self._condition:
                self._work = None
                self._condition.notify_all()

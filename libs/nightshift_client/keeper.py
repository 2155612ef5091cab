"""Writes records to the spool on a thread of its own.

A disk may stall for a tenth of a second whenever somebody's journal commits. The caller waits for its
record to be on disk, but never longer than its deadline.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

from nightshift_client.spool import Entry, Spool, SpoolFailed

# What may wait for the disk in memory; beyond it records are dropped and counted, as in the spool itself.
MAX_PENDING_BYTES = 16 * 1024 * 1024


class Keeper:
    """Hands records to a spool; thread-safe, starts its thread when there is something to write."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._condition = threading.Condition()
        self._pending: deque[tuple[str, bytes, Future[Entry]]] = deque()
        self._pending_bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, kind: str, payload: bytes) -> Future[Entry]:
        """Begins to write a record; the future fails with ``SpoolFailed`` where it cannot be kept."""
        future: Future[Entry] = Future()
        with self._condition:
            if self._closed or self._pending_bytes + len(payload) > MAX_PENDING_BYTES:
                self._spool.count_dropped()
                future.set_exception(SpoolFailed("too much waits for the disk, or the client is closed"))
                return future
            self._pending.append((kind, payload, future))
            self._pending_bytes += len(payload)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="nightshift-spool", daemon=True)
                self._thread.start()
            self._condition.notify()
        return future

    def close(self, timeout_s: float) -> None:
        """Writes what waits, if the disk lets it in time."""
        with self._condition:
            self._closed = True
            thread = self._thread
            self._condition.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def after_fork(self) -> None:
        """Begins anew in a forked child: what waited is the parent's to write."""
        self._condition = threading.Condition()
        self._pending = deque()
        self._pending_bytes = 0
        self._thread = None

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._pending:
                    if self._closed:
                        return
                    self._condition.wait()
                kind, payload, future = self._pending.popleft()
                self._pending_bytes -= len(payload)
            try:
                entry = self._spool.append(kind, payload)
            except SpoolFailed as error:
                future.set_exception(error)
            else:
                future.set_result(entry)

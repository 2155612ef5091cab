"""Sends what happened to the supervisor, in batches, from a thread of its own.

A slow or stopped reader never slows the step.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from nightshift_trainer import frames

# Shortest time between two batches of steps, so longest time that a message waits for company.
_BATCH_S = 0.02
_BATCH_MAXIMUM = 1000
_FLUSH: Mapping[str, Any] = {}


class Reporter:
    """Ordered messages over a socket. `put` never blocks; what the socket does not take waits in memory."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._queue: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._counts = threading.Condition()
        self._put_count = 0
        self._sent_count = 0
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def put(self, message: Mapping[str, Any]) -> None:
        """Queues a message of JSON values without NaN."""
        with self._counts:
            self._put_count += 1
            self._queue.put(message)

    def wait_sent(self, timeout_s: float) -> bool:
        """Waits until the kernel has what was put so far; False where that takes longer than `timeout_s`."""
        with self._counts:
            wanted = self._put_count
            # Somebody waits: no more waiting for company.
            self._queue.put(_FLUSH)
            return self._counts.wait_for(lambda: self._sent_count >= wanted, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Sends what is queued; False where that takes longer than `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait = threading.Event()
        closing = False
        sent = 0.0
        while not closing:
            batch: list[Mapping[str, Any]] = []
            message = self._queue.get()
            while True:
                if message is None:
                    closing = True
                    break
                if message is _FLUSH:
                    break
                batch.append(message)
                # What closes the conversation must not wait for company.
                if message.get("kind") != "step" or len(batch) >= _BATCH_MAXIMUM:
                    break
                try:
                    # Waking up a second time for every step would cost the training more than a small batch.
                    message = self._queue.get(timeout=max(0.0, sent + _BATCH_S - time.monotonic()))
                except queue.Empty:
                    break
            if batch:
                sent = time.monotonic()
                try:
                    self._channel.sendall(frames.encode({"messages": batch}))
                except OSError:
                    # The supervisor is gone; so will this process be in a moment.
                    wait.wait()
                with self._counts:
                    self._sent_count += len(batch)
                    self._counts.notify_all()

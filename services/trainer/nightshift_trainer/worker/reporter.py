"""Sends what happened to the supervisor, in batches, from a thread of its own.

A slow or stopped reader never slows the step.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Mapping
from typing import Any

from nightshift_trainer import frames

# Longest time a message waits for company.
_BATCH_S = 0.02
_BATCH_MAXIMUM = 1000


class Reporter:
    """Ordered messages over a socket. `put` never blocks; what the socket does not take waits in memory."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._queue: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def put(self, message: Mapping[str, Any]) -> None:
        """Queues a message of JSON values without NaN."""
        self._queue.put(message)

    def close(self, timeout_s: float) -> bool:
        """Sends what is queued; False where that takes longer than `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait = threading.Event()
        closing = False
        while not closing:
            batch: list[Mapping[str, Any]] = []
            message = self._queue.get()
            while True:
                if message is None:
                    closing = True
                    break
                batch.append(message)
                # What closes the conversation must not wait for company.
                if message.get("kind") != "step" or len(batch) >= _BATCH_MAXIMUM:
                    break
                try:
                    message = self._queue.get(timeout=_BATCH_S)
                except queue.Empty:
                    break
            if batch:
                try:
                    self._channel.sendall(frames.encode({"messages": batch}))
                except OSError:
                    # The supervisor is gone; so will this process be in a moment.
                    wait.wait()

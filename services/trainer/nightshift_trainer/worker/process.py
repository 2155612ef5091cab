"""The worker process: one order, a channel to its supervisor, and three ways to end.

Heavy imports happen only once the channel is served, so that a worker that is still importing can be
stopped too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nightshift_trainer import frames
from nightshift_trainer.worker.deadman import DeadMansSwitch, die_with_parent
from nightshift_trainer.worker.order import EXIT_FAILED, EXIT_ORPHANED, EXIT_STOPPED, EXIT_SUCCEEDED, Order
from nightshift_trainer.worker.reporter import Reporter

if TYPE_CHECKING:
    from nightshift_trainer.worker.training import Training

_log = logging.getLogger(__name__)

# The supervisor beats four times a second; after this much silence, or when the lease that the last beat told
# of is over, the kernel ends the worker.
HEARTBEAT_TIMEOUT_S = 2.5
# While libraries are loaded the interpreter may be held, and no beat be heard, for seconds on a busy machine.
# Nothing is on the GPU before that is done.
_LOADING_TIMEOUT_S = 30.0

# How long the last word may take to be sent.
_FLUSH_S = 0.25

BeforeMicroStep = Callable[[int], None]


class WorkerProcess:
    """Serves the channel in a thread of its own while the main thread trains."""

    def __init__(self, channel: socket.socket, before_micro_step: BeforeMicroStep | None = None) -> None:
        self._channel = channel
        self._before_micro_step = before_micro_step
        self._switch = DeadMansSwitch(_LOADING_TIMEOUT_S)
        self._loaded = False
        self._over_ns = 0
        self._reporter = Reporter(channel)
        self._decoder = frames.FrameDecoder()
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._in_loop = False
        self._training: Training | None = None
        self._grace_s = 0.1
        # Until when a stop may wait for anything, by time.monotonic().
        self._leave_by_s = 0.0

    def run(self) -> None:
        """Takes the order, trains, and exits this process; does not return."""
        order = Order.from_dict(self._receive_order())
        self._grace_s = order.stop_grace_s
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        self._reporter.put({"kind": "hello", "pid": os.getpid()})
        self._phase("loading")
        try:
            self._train(order)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process
            self._end_with(error)
        self._end(EXIT_SUCCEEDED, None)

    def _train(self, order: Order) -> None:
        from nightshift_trainer.worker.backends.base import make_backend
        from nightshift_trainer.worker.training import Links, Training, describe_spec

        # Loading trl touches no GPU; another backend may.
        self._loaded = order.backend != "trl"
        backend = make_backend(order.backend)
        self._loaded = True
        self._renew(self._over_ns)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        _log.info("trains %s", describe_spec(order.spec))
        links = Links(
            put=self._reporter.put,
            wait_sent=self._reporter.wait_sent,
            phase=self._phase,
            stopping=self._stop.is_set,
            before_micro_step=self._before_micro_step,
        )
        self._training = Training(order, backend, links)
        self._training.run()

    def _end_with(self, error: BaseException) -> None:
        # By name: torch may not be imported yet when something fails.
        name = type(error).__name__
        if name == "StopRequested":
            self._end_stopped("micro_step")
        traceback.print_exc()
        if name == "TrainingFailed":
            reason, metadata = error.reason, error.metadata  # type: ignore[attr-defined]
        elif name == "LossNonFinite":
            reason, metadata = "LOSS_NON_FINITE", {}
        elif isinstance(error, OSError) and error.errno is not None:
            reason = {28: "DISK_FULL", 122: "DISK_FULL", 30: "STORAGE_READ_ONLY"}.get(
                error.errno, "STORAGE_IO"
            )
            metadata = {"errno": str(error.errno)}
        else:
            reason, metadata = "TRAINER_ERROR", {"type": name}
        message = (
            str(error) if reason != "TRAINER_ERROR" else f"The worker failed with {name}; its log says where."
        )
        self._end(
            EXIT_FAILED, {"kind": "failed", "reason": reason, "message": message[:2000], "metadata": metadata}
        )

    def _receive_order(self) -> Mapping[str, Any]:
        while True:
            data = self._channel.recv(65536)
            if not data:
                os._exit(EXIT_ORPHANED)
            for message in self._decoder.feed(data):
                self._renew(message["over_ns"])
                if message.get("command") == "start":
                    order = message["order"]
                    assert isinstance(order, dict)
                    return order

    def _listen(self) -> None:
        while True:
            try:
                data = self._channel.recv(65536)
            except OSError:
                data = b""
            if not data:
                os._exit(EXIT_ORPHANED)
            for message in self._decoder.feed(data):
                if message["command"] == "beat":
                    self._renew(message["over_ns"])
                elif message["command"] == "stop" and not self._stop.is_set():
                    self._leave_by_s = time.monotonic() + self._grace_s
                    self._stop.set()
                    threading.Thread(target=self._leave, name="leave", daemon=True).start()

    def _leave(self) -> None:
        # Outside the loop nothing is worth waiting for. Within it, the micro-step is given a moment to end.
        if self._in_loop:
            time.sleep(self._left_s())
            self._end_stopped("abandoned")
        self._end_stopped("not_training")

    def _renew(self, over_ns: int) -> None:
        self._over_ns = over_ns
        if self._loaded:
            self._switch.renew(HEARTBEAT_TIMEOUT_S, over_ns)
        else:
            self._switch.renew(_LOADING_TIMEOUT_S)

    def _left_s(self) -> float:
        return max(0.0, self._leave_by_s - time.monotonic())

    def _phase(self, phase: str) -> None:
        self._in_loop = phase in ("warming", "training")
        self._reporter.put({"kind": "phase", "time": time.time(), "phase": phase})

    def _end_stopped(self, how: str) -> None:
        digest, step = "", -1
        writer = self._training.writer if self._training is not None else None
        if writer is not None:
            # Where the disk is busy what is being written is given up, too: the step before it is durable.
            with contextlib.suppress(OSError):
                writer.wait_idle(self._left_s())
            digest, step = writer.last_digest, writer.last_step
        self._end(EXIT_STOPPED, {"kind": "stopped", "how": how, "checkpoint_digest": digest, "step": step})

    def _end(self, status: int, message: Mapping[str, Any] | None) -> None:
        if not self._ending.acquire(blocking=False):
            # Another thread is ending this process already.
            threading.Event().wait()
        if message is not None:
            self._reporter.put(message)
        self._reporter.close(_FLUSH_S)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: tearing down torch takes longer than a stop may.
        os._exit(status)


def main(channel_descriptor: int, parent: int, before_micro_step: BeforeMicroStep | None = None) -> None:
    """Runs a worker on an inherited socket in a session of its own; does not return."""
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    WorkerProcess(socket.socket(fileno=channel_descriptor), before_micro_step).run()

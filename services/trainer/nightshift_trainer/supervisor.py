"""Keeps one worker: starts it, hears it, and can always end it.

Runs in a thread of its own, so that a busy event loop delays neither a heartbeat nor a kill. All waiting is
in one select; whatever others ask arrives as a command through a pipe.

States of the one worker: none → starting (the warm parent is asked) → running → none. The worker's end is
known from its pidfd, never from what it says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightshift_trainer import frames
from nightshift_trainer.launcher import WORKER_MODULE, Launched, WarmParent, WorkerLog, spawn
from nightshift_trainer.orphans import forget_worker, record_worker
from nightshift_trainer.worker.order import Order

_log = logging.getLogger(__name__)

BEAT_S = 0.25

# After STOP a worker has this long to leave by itself; see governance: everything is dead within a second.
KILL_AFTER_STOP_S = 0.6

_PIDS_KEPT = 8

# How long the warm parent may take to reap a worker that died by itself.
_REAP_S = 0.2


@dataclass(frozen=True)
class WorkerEnd:
    """How a worker ended. Times are CLOCK_BOOTTIME in nanoseconds.

    `last` is its last word ({"kind": "succeeded" | "failed" | "stopped", …}) or None where it had none.
    `cause` is why it was asked to stop, "" where it was not; `killed` whether it had to be killed for that.
    """

    last: Mapping[str, Any] | None
    cause: str
    killed: bool
    exit_status: int | None
    asked_ns: int
    exited_ns: int


@dataclass
class Job:
    """One run of a worker: what to do and whom to tell. The callbacks run on the supervisor's thread.

    `over_ns` tells when its lease is over, on CLOCK_BOOTTIME, as it is at that moment; 0 where it has none.
    """

    order: Order
    fork: bool
    told: Callable[[Sequence[Mapping[str, Any]]], None]
    ended: Callable[[WorkerEnd], None]
    over_ns: Callable[[], int] = lambda: 0


@dataclass
class _Worker:
    job: Job
    launched: Launched | None = None
    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    decoder: frames.FrameDecoder = field(default_factory=frames.FrameDecoder)
    last: Mapping[str, Any] | None = None
    cause: str = ""
    asked_ns: int = 0
    kill_at_ns: int = 0
    killed: bool = False
    exit_status: int | None = None


class Supervisor:
    """One worker at a time. All methods may be called from any thread; none waits for the worker.

    Args:
        environment: Environment of workers; see launcher.worker_environment.
        log_folder: Where the warm parent's own log goes.
        worker_module: Module run for workers that are started from nothing.
        boottime_ns: Clock of deadlines.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        log_folder: Path,
        worker_module: str = WORKER_MODULE,
        boottime_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._environment = environment
        self._log_folder = log_folder
        self._worker_module = worker_module
        self._now_ns = boottime_ns
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain)
        self._worker: _Worker | None = None
        self._warm: WarmParent | None = None
        self.closed = False
        # Replaced as a whole, so that any thread may read it.
        self._recent_pids: tuple[int, ...] = ()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    @property
    def recent_pids(self) -> tuple[int, ...]:
        """The last workers' processes, dead or alive; the newest comes last."""
        return self._recent_pids

    def start(self, job: Job) -> None:
        """Starts a worker. Call it only when the previous one has ended."""
        self._submit(lambda: self._start(job))

    def stop(self, cause: str) -> None:
        """Asks the worker to leave and kills it after KILL_AFTER_STOP_S. Its end is told as ever."""
        asked_ns = self._now_ns()
        self._submit(lambda: self._stop(cause, asked_ns, KILL_AFTER_STOP_S))

    def kill(self, cause: str) -> None:
        """Kills the worker at once."""
        asked_ns = self._now_ns()
        self._submit(lambda: self._stop(cause, asked_ns, 0.0))

    def warm_up(self) -> None:
        """Starts the warm parent where there is none, without waiting for it."""
        self._submit(self._warm_up)

    def cool_down(self) -> None:
        """Ends the warm parent, unless a worker of it runs."""
        self._submit(self._cool_down)

    def close(self) -> None:
        """Kills what runs and ends the thread."""
        if self.closed:
            return
        self.closed = True
        self._commands.put(None)
        self._wake()
        self._thread.join(5)

    # Everything below runs on the supervisor's thread.

    def _submit(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _run(self) -> None:
        try:
            while True:
                while not self._commands.empty():
                    command = self._commands.get()
                    if command is None:
                        return
                    command()
                self._beat()
                for key, _ in self._selector.select(self._pause_s()):
                    key.data()
        except Exception:
            _log.exception("the supervisor failed; its worker is killed")
            raise
        finally:
            self._end_everything()

    def _pause_s(self) -> float:
        worker = self._worker
        if worker is None:
            return 3600.0
        if worker.kill_at_ns:
            return max(0.0, min(BEAT_S, (worker.kill_at_ns - self._now_ns()) / 1e9))
        return BEAT_S

    def _beat(self) -> None:
        worker = self._worker
        if worker is None:
            return
        now_ns = self._now_ns()
        if worker.kill_at_ns and now_ns >= worker.kill_at_ns and not worker.killed:
            worker.killed = True
            if worker.launched is not None:
                worker.launched.kill()
            else:
                # The warm parent was asked and does not answer: it goes, and whatever it has forked with it.
                _log.warning("the warm parent does not answer and is killed")
                self._drop_warm()
                self._finish(worker)
                return
        if worker.channel is not None and not worker.cause:
            self._send(worker, {"command": "beat", "over_ns": worker.job.over_ns()})

    def _start(self, job: Job) -> None:
        assert self._worker is None, "one worker at a time"
        worker = _Worker(job)
        self._worker = worker
        try:
            if job.fork:
                self._warm_up()
                self._fork_if_ready()
            else:
                worker.launched, worker.process = spawn(
                    self._log_of(job), self._environment, self._worker_module
                )
                worker.channel = worker.launched.channel
                self._adopt(worker)
        except OSError:
            _log.exception("the worker could not be started")
            self._finish(worker)

    def _log_of(self, job: Job) -> WorkerLog:
        return WorkerLog(job.order.job_folder / "worker.log")

    def _fork_if_ready(self) -> None:
        worker = self._worker
        if worker is None or worker.channel is not None or not worker.job.fork or worker.cause:
            return
        if self._warm is not None and self._warm.ready:
            worker.channel = self._warm.fork(self._log_of(worker.job))

    def _adopt(self, worker: _Worker) -> None:
        """Begins to serve a worker whose process and channel are there."""
        assert worker.launched is not None
        self._recent_pids = (*self._recent_pids[-_PIDS_KEPT + 1 :], worker.launched.pid)
        record_worker(worker.job.order.job_folder, worker.launched.pid)
        self._selector.register(worker.launched.channel, selectors.EVENT_READ, lambda: self._hear(worker))
        self._selector.register(worker.launched.pidfd, selectors.EVENT_READ, lambda: self._exited(worker))
        if worker.cause:
            # Asked to stop while it was being made.
            worker.killed = True
            worker.launched.kill()
            return
        order = worker.job.order.as_dict()
        self._send(worker, {"command": "start", "order": order, "over_ns": worker.job.over_ns()})

    def _send(self, worker: _Worker, message: Mapping[str, Any]) -> None:
        assert worker.channel is not None
        try:
            # An order fits into the socket's buffer, a beat is a few bytes: what does not fit means that
            # nobody reads, and then the dead man's switch does its work.
            worker.channel.send(frames.encode(message), socket.MSG_DONTWAIT)
        except OSError as error:
            _log.info("the worker does not listen: %s", error)

    def _stop(self, cause: str, asked_ns: int, grace_s: float) -> None:
        worker = self._worker
        if worker is None:
            return
        kill_at_ns = asked_ns + int(grace_s * 1e9)
        if worker.cause:
            worker.kill_at_ns = min(worker.kill_at_ns, kill_at_ns)
        else:
            worker.cause, worker.asked_ns, worker.kill_at_ns = cause, asked_ns, kill_at_ns
            if worker.launched is not None:
                self._send(worker, {"command": "stop"})
        if worker.channel is None:
            # The warm parent has not been asked yet, so there is nothing to end.
            self._finish(worker)
            return
        self._beat()

    def _hear(self, worker: _Worker) -> None:
        assert worker.channel is not None
        try:
            data = worker.channel.recv(262144, socket.MSG_DONTWAIT)
            messages = [
                message for frame in worker.decoder.feed(data) for message in frame.get("messages", ())
            ]
        except BlockingIOError:
            return
        except (OSError, frames.FrameBroken):
            data, messages = b"", []
        if not data:
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.channel)
            return
        for message in messages:
            if message["kind"] in ("succeeded", "failed", "stopped"):
                worker.last = message
        if messages:
            worker.job.told(messages)

    def _exited(self, worker: _Worker) -> None:
        exited_ns = self._now_ns()
        assert worker.launched is not None
        self._selector.unregister(worker.launched.pidfd)
        # What it said last may still lie in the channel.
        channel = worker.launched.channel
        while channel in self._open_channels() and _readable(channel):
            self._hear(worker)
        with contextlib.suppress(KeyError):
            self._selector.unregister(channel)
        if worker.process is not None:
            worker.exit_status = worker.process.wait()
        elif worker.last is None and not worker.cause and self._warm is not None:
            # How it died matters, and the warm parent is about to tell.
            self._hear_warm_soon(self._warm)
        if self._worker is worker:
            self._finish(worker, exited_ns)

    def _hear_warm_soon(self, warm: WarmParent) -> None:
        if _readable(warm.channel, _REAP_S):
            self._hear_warm(warm)

    def _open_channels(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def _finish(self, worker: _Worker, exited_ns: int | None = None) -> None:
        self._worker = None
        if worker.launched is not None:
            worker.launched.close()
            forget_worker(worker.job.order.job_folder)
        elif worker.channel is not None:
            worker.channel.close()
        worker.job.ended(
            WorkerEnd(
                last=worker.last,
                cause=worker.cause,
                killed=worker.killed,
                exit_status=worker.exit_status,
                asked_ns=worker.asked_ns,
                exited_ns=self._now_ns() if exited_ns is None else exited_ns,
            )
        )

    def _warm_up(self) -> None:
        if self._warm is None:
            self._warm = WarmParent(self._environment, WorkerLog(self._log_folder / "warm.log"))
            warm = self._warm
            self._selector.register(warm.channel, selectors.EVENT_READ, lambda: self._hear_warm(warm))

    def _hear_warm(self, warm: WarmParent) -> None:
        messages = warm.receive()
        worker = self._worker
        if messages is None:
            _log.warning("the warm parent died")
            self._drop_warm()
            if worker is not None and worker.job.fork and worker.launched is None:
                self._finish(worker)
            return
        for message in messages:
            if worker is None or worker.channel is None:
                continue
            if message["kind"] == "started" and worker.launched is None:
                worker.launched = Launched(message["pid"], _pidfd(message["pid"]), worker.channel)
                self._adopt(worker)
            elif message["kind"] == "exited" and worker.launched and message["pid"] == worker.launched.pid:
                worker.exit_status = message["status"]
        self._fork_if_ready()

    def _cool_down(self) -> None:
        if self._worker is None or not self._worker.job.fork:
            self._drop_warm()

    def _drop_warm(self) -> None:
        if self._warm is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._warm.channel)
            self._warm.close()
            self._warm = None

    def _end_everything(self) -> None:
        worker = self._worker
        if worker is not None:
            if worker.launched is not None:
                worker.killed = True
                worker.cause = worker.cause or "restart"
                worker.launched.kill()
                _wait_exit(worker.launched.pidfd)
            self._finish(worker)
        self._drop_warm()
        self._selector.close()
        os.close(self._woken)
        os.close(self._waker)


def _pidfd(pid: int) -> int:
    # The warm parent reaps a worker only after having told its start, and we ask at once; a worker that
    # died in between leaves a handle to nothing, for which a closed pipe stands: readable, like an exited
    # process.
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.close(writing)
        return reading


def _readable(channel: socket.socket, timeout_s: float = 0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def _wait_exit(pidfd: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        selector.select(2.0)

"""The embedding process, seen from the service: started lazily, replaced when it dies, killed on Stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import framing
from .errors import EmbeddingStopped, ModelRefused, ModelUnavailable
from .framing import FrameError, Kind
from .model import ModelFiles

Vectors = NDArray[np.float32]
# Two frames on the way keep the child busy while we take care of the first one's answer.
_WINDOW_FRAMES = 2
_STDERR_TAIL_BYTES = 4096
_KILL_WAIT_S = 0.5


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of the embedding process.

    Attributes:
        threads: Threads of the model's arithmetic.
        batch_size: Texts per frame; also how long a query may have to wait for bulk work.
        idle_unload_s: The child ends, and its memory is free, after this long without a text.
        start_timeout_s: A child that is not ready by then is killed.
        query_wait_s: How long a query waits for a child that is starting before it is UNAVAILABLE.
        query_cache_size: How many vectors of recent queries are kept.
    """

    threads: int = 1
    batch_size: int = 32
    idle_unload_s: float = 300.0
    start_timeout_s: float = 120.0
    query_wait_s: float = 8.0
    query_cache_size: int = 256


class _Child:
    """One process and the requests that it owes an answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.owed: dict[int, tuple[Kind, asyncio.Future[Vectors]]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.stderr_tail: deque[int] = deque(maxlen=_STDERR_TAIL_BYTES)
        self.dead = False
        self.ended: asyncio.Task[None] | None = None
        # Popen.kill() would reap a child that asyncio's watcher is about to reap; a pidfd neither reaps nor
        # can hit a stranger with a recycled number.
        self._pidfd = os.pidfd_open(process.pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def release(self) -> None:
        os.close(self._pidfd)

    def fail(self, error: Exception) -> None:
        self.dead = True
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()
        for _, answer in self.owed.values():
            if not answer.done():
                answer.set_exception(error)
                answer.exception()
        self.owed.clear()


class EmbeddingProcess:
    """Turns texts into unit vectors. All methods belong to one event loop and never block it."""

    def __init__(
        self,
        model: ModelFiles,
        settings: EmbeddingSettings | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._settings = settings or EmbeddingSettings()
        self._monotonic = monotonic
        self._child: _Child | None = None
        self._starting = asyncio.Lock()
        self._next_id = 1
        self._closed = False
        self._stops = 0
        self._failed_starts = 0
        self._not_before = 0.0
        self._unload: asyncio.TimerHandle | None = None
        self._reapers: set[asyncio.Task[None]] = set()
        self._queries: set[asyncio.Task[Vectors]] = set()
        self._bulk_calls = 0
        self._recent: OrderedDict[str, Vectors] = OrderedDict()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return self._child.process.pid if self._child and not self._child.dead else None

    async def embed_query(self, text: str, *, timeout_s: float | None = None) -> Vectors:
        """Unit vector of a query, shape (dimension,). Overtakes bulk work.

        Raises:
            ModelUnavailable: No answer within ``timeout_s`` (default: the setting query_wait_s); the child
                goes on starting, so that a retry finds it ready.
            ModelRefused: The weights are not the promised ones.
        """
        known = self._recent.get(text)
        if known is not None:
            self._recent.move_to_end(text)
            return known
        limit_s = self._settings.query_wait_s if timeout_s is None else timeout_s
        # A task of its own, because giving up on the answer must not give up the start of the child.
        work = asyncio.create_task(self._query(text))
        self._queries.add(work)
        work.add_done_callback(self._queries.discard)
        work.add_done_callback(_forget)
        done, _ = await asyncio.wait({work}, timeout=limit_s)
        if not done:
            raise ModelUnavailable("the embedding process is still starting", retry_after_s=2.0)
        vector = work.result()
        self._recent[text] = vector
        while len(self._recent) > self._settings.query_cache_size:
            self._recent.popitem(last=False)
        return vector

    async def _query(self, text: str) -> Vectors:
        try:
            return await self._first(text)
        except ModelUnavailable:
            # The child may have died, or been killed with its bulk work, under a query that can be repeated.
            return await self._first(text)

    async def _first(self, text: str) -> Vectors:
        vector: Vectors = (await self._ask(Kind.QUERY, [text]))[0]
        return vector

    async def embed_bulk(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of many texts, shape (len(texts), dimension), in their order.

        Raises:
            EmbeddingStopped: stop_background() or close() was called meanwhile.
            ModelUnavailable: The child died; nothing is lost but the work.
            ModelRefused: The weights are not the promised ones.
        """
        result = np.zeros((len(texts), self.model.dimension), dtype=np.float32)
        # Texts of like length share a frame, since a batch is padded to its longest.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        size = self._settings.batch_size
        waiting = deque(order[start : start + size] for start in range(0, len(order), size))
        stops = self._stops
        on_the_way: deque[tuple[list[int], asyncio.Task[Vectors]]] = deque()
        self._bulk_calls += 1
        try:
            while waiting or on_the_way:
                if self._stops != stops:
                    raise EmbeddingStopped("background embedding was told to stop")
                while waiting and len(on_the_way) < _WINDOW_FRAMES:
                    rows = waiting.popleft()
                    task = asyncio.create_task(self._ask(Kind.BULK, [texts[row] for row in rows]))
                    on_the_way.append((rows, task))
                rows, task = on_the_way.popleft()
                result[rows] = await task
        except ModelUnavailable:
            if self._stops != stops:
                raise EmbeddingStopped("background embedding was told to stop") from None
            raise
        except asyncio.CancelledError:
            # Whoever cancels wants the processor now, not after the batches that are on the way.
            if self._child is not None:
                self._bury(self._child, ModelUnavailable("the embedding was cancelled", retry_after_s=1.0))
            raise
        finally:
            self._bulk_calls -= 1
            for _, task in on_the_way:
                task.cancel()
                task.add_done_callback(_forget)
        return result

    async def stop_background(self) -> None:
        """Ends bulk work now. A child that bulk work has begun to use is killed; queries are asked again."""
        self._stops += 1
        child = self._child
        if child is not None and self._bulk_calls:
            await self._kill(child, ModelUnavailable("the embedding process was stopped", retry_after_s=1.0))

    async def close(self) -> None:
        """Kills the child and waits for its end. Later calls raise ModelUnavailable."""
        self._closed = True
        self._stops += 1
        if self._unload is not None:
            self._unload.cancel()
        if self._child is not None:
            await self._kill(self._child, ModelUnavailable("the service stops"))
        if self._reapers:
            await asyncio.gather(*self._reapers, return_exceptions=True)

    async def _ask(self, kind: Kind, texts: list[str]) -> Vectors:
        child = await self._ready_child()
        request_id = self._next_id
        self._next_id += 1
        answer: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        child.owed[request_id] = (kind, answer)
        assert child.process.stdin is not None
        try:
            child.process.stdin.write(framing.encode(kind, request_id, framing.encode_texts(texts)))
            await child.process.stdin.drain()
            vectors = await answer
        except (ConnectionError, RuntimeError) as error:
            raise ModelUnavailable("the embedding process has died", retry_after_s=1.0) from error
        finally:
            child.owed.pop(request_id, None)
            self._unload_later()
        if vectors.shape != (len(texts), self.model.dimension):
            await self._kill(child, ModelUnavailable("the embedding process answered nonsense"))
            raise ModelUnavailable("the embedding process answered nonsense", retry_after_s=1.0)
        return vectors

    async def _ready_child(self) -> _Child:
        async with self._starting:
            if self._closed:
                raise ModelUnavailable("the service stops")
            child = self._child
            if child is None or child.dead:
                pause_s = self._not_before - self._monotonic()
                if pause_s > 0:
                    raise ModelUnavailable(
                        "the embedding process could not be started", retry_after_s=round(pause_s, 1)
                    )
                child = self._child = await self._spawn()
        try:
            await asyncio.wait_for(asyncio.shield(child.ready), self._settings.start_timeout_s)
        except TimeoutError:
            error = ModelUnavailable("the embedding process did not become ready", retry_after_s=5.0)
            await self._kill(child, error)
            raise error from None
        return child

    async def _spawn(self) -> _Child:
        environment = dict(os.environ) | {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(self._settings.threads),
            "MKL_NUM_THREADS": str(self._settings.threads),
            # The service's GPU belongs to the trainer.
            "CUDA_VISIBLE_DEVICES": "",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "nightshift_experience.embedding.worker",
            str(self.model.folder),
            self.model.weights_sha256,
            str(self._settings.threads),
            str(self._settings.batch_size),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        child = _Child(process)
        child.tasks = [
            asyncio.create_task(self._read_answers(child)),
            asyncio.create_task(_keep_tail(child)),
        ]
        return child

    async def _read_answers(self, child: _Child) -> None:
        stdout = child.process.stdout
        assert stdout is not None
        error: Exception = ModelUnavailable("the embedding process has died", retry_after_s=1.0)
        try:
            while True:
                header = await stdout.readexactly(framing.HEADER.size)
                length, kind, request_id = framing.decode_header(header)
                payload = await stdout.readexactly(length)
                if kind is Kind.READY:
                    self._failed_starts = 0
                    if not child.ready.done():
                        child.ready.set_result(None)
                    continue
                if kind is Kind.FAILED and request_id == 0:
                    error = ModelRefused(framing.decode_failure(payload)[1])
                    break
                _, answer = child.owed.get(request_id, (None, None))
                if answer is None or answer.done():
                    continue
                if kind is Kind.VECTORS:
                    answer.set_result(framing.decode_vectors(payload))
                else:
                    _, message = framing.decode_failure(payload)
                    answer.set_exception(ModelUnavailable(f"the text could not be embedded: {message}"))
        except (asyncio.IncompleteReadError, ConnectionError, FrameError):
            pass
        if not child.ready.done() and not child.dead:
            # Back off, so that a model that cannot be loaded does not cost a processor forever.
            self._failed_starts += 1
            self._not_before = self._monotonic() + min(30.0, 0.5 * 2**self._failed_starts)
        self._bury(child, error)

    def _bury(self, child: _Child, error: Exception) -> asyncio.Task[None]:
        """Fails what the child owes and ends it; the task is done when the process is gone."""
        child.fail(error)
        if self._child is child:
            self._child = None
        if child.ended is None:
            child.ended = asyncio.create_task(_end(child))
            self._reapers.add(child.ended)
            child.ended.add_done_callback(self._reapers.discard)
        return child.ended

    async def _kill(self, child: _Child, error: Exception) -> None:
        await asyncio.shield(self._bury(child, error))

    def _unload_later(self) -> None:
        if self._unload is not None:
            self._unload.cancel()
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._unload = loop.call_later(self._settings.idle_unload_s, self._unload_now)

    def _unload_now(self) -> None:
        child = self._child
        if child is None or child.owed or not child.ready.done():
            return
        self._bury(child, ModelUnavailable("the embedding process was unloaded", retry_after_s=1.0))


async def _keep_tail(child: _Child) -> None:
    stderr = child.process.stderr
    assert stderr is not None
    while chunk := await stderr.read(4096):
        child.stderr_tail.extend(chunk)


async def _end(child: _Child) -> None:
    """Kills the process, waits for it, and lets go of its pipes."""
    child.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.process.wait(), _KILL_WAIT_S)
    child.release()
    for task in child.tasks:
        task.cancel()
    await asyncio.gather(*child.tasks, return_exceptions=True)
    if child.process.stdin is not None:
        child.process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await child.process.stdin.wait_closed()


def _forget(task: asyncio.Future[Vectors]) -> None:
    """Takes note of an outcome that nobody waits for any more."""
    if not task.cancelled():
        task.exception()

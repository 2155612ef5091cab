"""A stand-in platform over real HTTP: DevServer, GPU service, Ollama and ComfyUI, with their quirks.

with platform_server() as platform:
    platform.gpu.load("diffusers", "sd35", vram_mb=30_000, last_used=100.0)
    platform.gpu.after("/api/health/vram", lambda: platform.gpu.use("diffusers", "sd35"))   # once
    settings = {"gpu_service_url": platform.gpu.url, "ollama_url": platform.ollama.url}
    …
    assert platform.evicted_in_use == []          # no model was unloaded while somebody used it
    assert platform.devserver.active_users == []  # nobody read what registers its reader
    assert platform.strangers == []               # every request said that it is a probe

Quirks, as the platform has them: `/health` of the DevServer is the page of the single-page app (200, HTML);
reading `/api/active-users` or `/api/queue-status` makes the reader an active user; the GPU service's unload
routes ignore `in_use` and evict at once, and not every backend has one; Ollama lets requests end before it
unloads, and tells no `in_use`. Each part listens on a port of its own. All methods may be called from any
thread.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal

PROBE_HEADER = "X-Nightshift-Probe"
PAGE = b"<!doctype html><html><head><title>Platform</title></head><body><div id=app></div></body></html>"
MIB = 2**20


@dataclass(frozen=True)
class Seen:
    """A request that a part received; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON; None where there is none."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Answer:
    """What a part answers."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: object, status: int = 200) -> Answer:
        """JSON, NaN and Infinity included where a test wants them."""
        return cls(status, json.dumps(document).encode())


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that are killed reset their connections; anything else is told as usual."""
        if not isinstance(sys.exception(), ConnectionResetError):
            super().handle_error(request, client_address)


class Part:
    """One HTTP server of the platform.

    Attributes:
        delay_s: How long each answer takes.
        requests: Every request, in order.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.requests: list[Seen] = []
        self.lock = threading.RLock()
        self._instead: dict[str, Answer] = {}
        self._lost: dict[str, int] = {}
        self._before: dict[str, list[Callable[[], object]]] = {}
        self._after: dict[str, list[Callable[[], object]]] = {}
        part = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                part._serve(self)

            do_POST = do_GET  # noqa: N815 - the name is the library's

            def log_message(self, *_: object) -> None:
                """Nothing: a test's output is its own."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Listens."""
        self._thread.start()

    def stop(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer_with(self, path: str, answer: Answer | None) -> None:
        """Answers a path with this instead, whatever is asked; None: as usual again."""
        with self.lock:
            if answer is None:
                self._instead.pop(path, None)
            else:
                self._instead[path] = answer

    def lose_answers(self, path: str, count: int = 1) -> None:
        """Lets requests have their effect, and drops the connection without an answer."""
        with self.lock:
            self._lost[path] = count

    def before(self, path: str, then: Callable[[], object]) -> None:
        """Does something once, when the next request for the path has come."""
        with self.lock:
            self._before.setdefault(path, []).append(then)

    def after(self, path: str, then: Callable[[], object]) -> None:
        """Does something once, when the next answer for the path is decided and before it is sent."""
        with self.lock:
            self._after.setdefault(path, []).append(then)

    def asked(self, path: str, method: str = "") -> list[Seen]:
        """Requests for a path."""
        with self.lock:
            return [one for one in self.requests if one.path == path and method in ("", one.method)]

    def respond(self, seen: Seen) -> Answer:
        """What the part answers; under its lock."""
        raise NotImplementedError

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        seen = Seen(
            handler.command,
            handler.path.partition("?")[0],
            {name.lower(): value for name, value in handler.headers.items()},
            handler.rfile.read(length),
        )
        for then in self._taken(self._before, seen.path):
            then()
        with self.lock:
            self.requests.append(seen)
            answer = self._instead.get(seen.path) or self.respond(seen)
            lost = self._lost.get(seen.path, 0)
            self._lost[seen.path] = max(0, lost - 1)
        for then in self._taken(self._after, seen.path):
            then()
        if self.delay_s:
            time.sleep(self.delay_s)
        if lost:
            handler.close_connection = True
            return
        try:
            handler.send_response(answer.status)
            handler.send_header("Content-Type", answer.content_type)
            handler.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(answer.body)
        except (BrokenPipeError, ConnectionResetError):
            # The caller had enough, or was stopped.
            handler.close_connection = True

    def _taken(self, hooks: dict[str, list[Callable[[], object]]], path: str) -> list[Callable[[], object]]:
        with self.lock:
            waiting = hooks.get(path, [])
            return [waiting.pop(0)] if waiting else []


class DevServer(Part):
    """The platform's web server.

    Attributes:
        active_users: Who read what registers its reader as an active user.
    """

    REGISTERING: ClassVar[frozenset[str]] = frozenset({"/api/active-users", "/api/queue-status"})

    def __init__(self) -> None:
        super().__init__()
        self.active_users: list[str] = []

    def respond(self, seen: Seen) -> Answer:
        """One real route; everything else is the single-page app."""
        if seen.path == "/api/settings/safety-level":
            return Answer.json({"safety_level": "kids"})
        if seen.path in self.REGISTERING:
            self.active_users.append(seen.headers.get("user-agent", "?"))
            return Answer.json({"active_users": len(self.active_users), "queue": 0})
        return Answer(200, PAGE, "text/html; charset=utf-8")


@dataclass
class LoadedModel:
    """A model on the GPU; `last_used` is Unix time in seconds."""

    backend: str
    model: str
    vram_mb: float
    in_use: int = 0
    last_used: float = 0.0
    priority: str = "NORMAL"

    def as_answer(self) -> dict[str, Any]:
        """As `/api/health/vram` shows it."""
        return {
            "backend": self.backend,
            "model": self.model,
            "vram_mb": self.vram_mb,
            "priority": self.priority,
            "in_use": self.in_use,
            "last_used": self.last_used,
        }


@dataclass(frozen=True)
class Unload:
    """A model that an unload route evicted, and how many used it at that moment."""

    backend: str
    model: str
    in_use: int


class GpuService(Part):
    """The owner of the diffusion, music, sound and text models.

    Attributes:
        form: "old" (`free_mb`) or "new" (with `nvml_free_mb`, `foreign_vram_mb`, `gpu_processes`).
        models: What is loaded.
        total_mb, foreign_mb: Memory of the card, and what processes hold that are not the platform's.
        others_mb: What else of the platform lies on the card (Ollama's models).
        eviction_in_progress: Whether the service evicts by itself now.
        unload_routes: Backends that have an unload route.
        unload_ignores: Backends whose unload says success and changes nothing.
        unloads: What was evicted, in order.
    """

    PIPELINES: ClassVar[frozenset[str]] = frozenset({"heartmula", "stable_audio"})

    def __init__(self) -> None:
        super().__init__()
        self.form: Literal["old", "new"] = "old"
        self.models: list[LoadedModel] = []
        self.total_mb = 100_000.0
        self.foreign_mb = 0.0
        self.others_mb: Callable[[], float] = lambda: 0.0
        self.eviction_in_progress = False
        self.unload_routes = {"diffusers", "heartmula", "stable_audio", "text", "llm"}
        self.unload_ignores: set[str] = set()
        self.unloads: list[Unload] = []

    def load(
        self,
        backend: str,
        model: str,
        *,
        vram_mb: float,
        last_used: float = 0.0,
        in_use: int = 0,
        priority: str = "NORMAL",
    ) -> None:
        """Puts a model on the card."""
        with self.lock:
            self.models.append(LoadedModel(backend, model, vram_mb, in_use, last_used, priority))

    def use(self, backend: str, model: str, in_use: int = 1, last_used: float | None = None) -> None:
        """Somebody begins (or, with 0, ends) to use a model; a model that is gone is nobody's to use."""
        with self.lock:
            for one in self.models:
                if (one.backend, one.model) == (backend, model):
                    one.in_use = in_use
                    one.last_used = time.time() if last_used is None else last_used

    @property
    def loaded(self) -> list[str]:
        """Names of loaded models, in the order of loading."""
        with self.lock:
            return [one.model for one in self.models]

    @property
    def unloaded(self) -> list[str]:
        """Names of evicted models, in that order."""
        with self.lock:
            return [one.model for one in self.unloads]

    @property
    def free_mb(self) -> float:
        """What is free on the card."""
        held = sum(one.vram_mb for one in self.models) + self.foreign_mb + self.others_mb()
        return max(0.0, self.total_mb - held)

    def respond(self, seen: Seen) -> Answer:
        """The routes of the GPU service."""
        if seen.path == "/api/health":
            return Answer.json({"status": "ok", "gpu": self._gpu(), "vram_coordinator": self._vram()})
        if seen.path == "/api/health/vram":
            return Answer.json(self._vram())
        backend, _, verb = seen.path.removeprefix("/api/").partition("/")
        if seen.method == "POST" and verb == "unload" and backend in self.unload_routes:
            return self._unload(backend, seen.document or {})
        return Answer.json({"error": "not found"}, 404)

    def _unload(self, backend: str, wish: dict[str, Any]) -> Answer:
        # Pipelines hold one thing and take no name; the others drop the named model, or all of theirs.
        wanted = None if backend in self.PIPELINES else wish.get("model_id")
        gone = [one for one in self.models if one.backend == backend and wanted in (None, one.model)]
        if backend not in self.unload_ignores:
            self.models = [one for one in self.models if one not in gone]
            self.unloads += [Unload(one.backend, one.model, one.in_use) for one in gone]
        return Answer.json({"success": bool(gone)})

    def _gpu(self) -> dict[str, Any]:
        return {
            "gpu_name": "Stand-in 96 GB",
            "total_vram_gb": self.total_mb / 1024,
            "allocated_gb": sum(one.vram_mb for one in self.models) / 1024,
            "reserved_gb": sum(one.vram_mb for one in self.models) / 1024,
            "free_gb": self.free_mb / 1024,
        }

    def _vram(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "free_mb": self.free_mb,
            "total_mb": self.total_mb,
            "registered_backends": sorted({*self.unload_routes, *(one.backend for one in self.models)}),
            "loaded_models": [one.as_answer() for one in self.models],
            "eviction_in_progress": self.eviction_in_progress,
        }
        if self.form == "new":
            foreign_mb = self.foreign_mb + self.others_mb()
            answer |= {
                # torch sees its own process alone; NVML sees the card.
                "free_mb": self.free_mb + foreign_mb,
                "nvml_available": True,
                "nvml_free_mb": self.free_mb,
                "nvml_used_mb": self.total_mb - self.free_mb,
                "foreign_vram_mb": foreign_mb,
                "gpu_processes": [
                    {"pid": 4711, "vram_mb": foreign_mb, "foreign": True, "cmdline": "a game"},
                ],
            }
        return answer


@dataclass
class OllamaModel:
    """A model that Ollama has loaded."""

    model: str
    vram_mb: float
    expires_at: datetime
    busy: int = 0


class Ollama(Part):
    """The LLM server.

    Attributes:
        tags: Installed models and the size of their files in bytes.
        running: Loaded models.
        unloads: What was unloaded on request, in order.
        load_s: How long loading takes.
    """

    KEEP_S: ClassVar[float] = 300.0

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.running: list[OllamaModel] = []
        self.unloads: list[Unload] = []
        self.load_s = 0.0

    @property
    def loaded(self) -> list[str]:
        """Names of loaded models."""
        with self.lock:
            return [one.model for one in self.running]

    def held_mb(self) -> float:
        """Memory that its models hold."""
        return sum(one.vram_mb for one in self.running)

    def load(self, model: str, *, vram_mb: float, keep_s: float = KEEP_S) -> None:
        """Loads a model, or lets it stay longer."""
        with self.lock:
            self.tags.setdefault(model, int(vram_mb * MIB))
            expires_at = datetime.now(UTC) + timedelta(seconds=keep_s)
            for one in self.running:
                if one.model == model:
                    one.expires_at = expires_at
                    return
            self.running.append(OllamaModel(model, vram_mb, expires_at))

    def respond(self, seen: Seen) -> Answer:
        """Ollama's own routes."""
        if seen.path == "/api/tags":
            models = [{"name": name, "model": name, "size": size} for name, size in self.tags.items()]
            return Answer.json({"models": models})
        if seen.path == "/api/ps":
            return Answer.json({"models": [self._shown(one) for one in self.running]})
        if seen.path in ("/api/generate", "/api/chat") and seen.method == "POST":
            return self._ask(seen.path, seen.document or {})
        return Answer(404, b"404 page not found", "text/plain")

    def _ask(self, path: str, wish: dict[str, Any]) -> Answer:
        model = wish.get("model", "")
        if model not in self.tags:
            return Answer.json({"error": f"model '{model}' not found"}, 404)
        answer = {"model": model, "created_at": datetime.now(UTC).isoformat(), "done": True}
        empty = not (wish.get("prompt") if path == "/api/generate" else wish.get("messages"))
        if empty and wish.get("keep_alive") == 0:
            for one in [one for one in self.running if one.model == model and not one.busy]:
                self.running.remove(one)
                self.unloads.append(Unload("ollama", one.model, one.busy))
            return Answer.json({**answer, "done_reason": "unload", "response": ""})
        if model not in self.loaded and self.load_s:
            time.sleep(self.load_s)
        self.load(model, vram_mb=self.tags[model] / MIB)
        return Answer.json({**answer, "done_reason": "load" if empty else "stop", "response": ""})

    def _shown(self, one: OllamaModel) -> dict[str, Any]:
        size = int(one.vram_mb * MIB)
        return {
            "name": one.model,
            "model": one.model,
            "size": size,
            "size_vram": size,
            "expires_at": one.expires_at.isoformat(),
            "details": {"family": "stand-in"},
        }


class ComfyUi(Part):
    """The workflow engine.

    Attributes:
        queue_running, queue_pending: Ids of its jobs.
        freed: How often it was asked to free memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue_running: list[str] = []
        self.queue_pending: list[str] = []
        self.freed = 0

    def respond(self, seen: Seen) -> Answer:
        """ComfyUI's own routes."""
        if seen.path == "/system_stats":
            return Answer.json({"system": {"os": "posix"}, "devices": [{"name": "cuda:0", "index": 0}]})
        if seen.path == "/queue":
            return Answer.json(
                {
                    "queue_running": [[0, job] for job in self.queue_running],
                    "queue_pending": [[0, job] for job in self.queue_pending],
                }
            )
        if seen.path == "/free" and seen.method == "POST":
            self.freed += 1
            return Answer(200)
        if seen.path.startswith("/history/"):
            return Answer.json({})
        return Answer(404, b"404: Not Found", "text/plain")


class Platform:
    """The four parts."""

    def __init__(self) -> None:
        self.devserver = DevServer()
        self.gpu = GpuService()
        self.ollama = Ollama()
        self.comfyui = ComfyUi()
        self.gpu.others_mb = self.ollama.held_mb

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return (self.devserver, self.gpu, self.ollama, self.comfyui)

    @property
    def strangers(self) -> list[Seen]:
        """Requests that did not say that they are a probe: the platform takes those for users."""
        return [
            seen for part in self.parts for seen in part.requests if PROBE_HEADER.lower() not in seen.headers
        ]

    @property
    def evicted_in_use(self) -> list[Unload]:
        """Models that were unloaded while somebody used them."""
        return [one for one in (*self.gpu.unloads, *self.ollama.unloads) if one.in_use]


@contextmanager
def platform_server() -> Iterator[Platform]:
    """All parts, listening on free ports of the loopback until the block ends."""
    platform = Platform()
    for part in platform.parts:
        part.start()
    try:
        yield platform
    finally:
        for part in platform.parts:
            part.stop()

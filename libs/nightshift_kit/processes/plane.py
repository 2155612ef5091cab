"""Starts the services as processes, keeps them running, stops them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import orjson
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift_kit.processes.table import SERVICES, ServiceSpec, find_free_base, levels, taken_ports
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.serve import PLAINTEXT_OFFSET
from nightshift_kit.rpc.standby import STANDBY
from nightshift_kit.rpc.tls import ensure_home, load_credential, write_private
from nightshift_kit.settings import PlaneSettings

_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_LAST_S: Final = 30.0
# A service that ran this long died of something new.
_CALM_S: Final = 60.0
# How often a service that stands by is asked whether it leads.
_STANDBY_LOOK_S: Final = 0.5
# Skills is the service that has replicas; any call will do.
_REFUSED_BY_A_STANDBY: Final = "/nightshift.skills.v1.SkillsService/GetLock"


class PlaneRunning(RuntimeError):
    """Another plane has this home."""


class StartFailed(RuntimeError):
    """A service did not become healthy."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How a service is.

    Attributes:
        state: "starting", "ready", "standby" (well, while another replica leads), "restarting", "stopped".
        restarts: How often it was started again after it had died.
        last_exit: Status of its last death as `subprocess` gives it, None if it never died.
    """

    name: str
    pid: int
    state: str
    restarts: int
    last_exit: int | None


class _Child:
    def __init__(self, spec: ServiceSpec, backoff_s: float) -> None:
        self.spec = spec
        self.process: asyncio.subprocess.Process | None = None
        self.state = "starting"
        self.restarts = 0
        self.last_exit: int | None = None
        self.started_s = 0.0
        self.backoff_s = backoff_s
        # Where its leader listens while it stands by: "address", "control_address".
        self.leader: dict[str, str] = {}

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    def status(self) -> ServiceStatus:
        return ServiceStatus(self.spec.name, self.pid, self.state, self.restarts, self.last_exit)


class Plane:
    """The services of one home.

    Args:
        settings: Of the plane; handed on to the services through their environment.
        specs: Table of the services.
        port_base: Wins over the settings'; 0 looks for a free block.
        ready_timeout_s: How long a service may take to become healthy.
        grace_s: How long a service may take to stop before it is killed.
        environment: Variables for the services on top of this process's own.
        restart_first_s: Pause before a service that died is started again; doubled with each death in a row.
        restart_last_s: Longest such pause.
    """

    def __init__(
        self,
        settings: PlaneSettings,
        specs: Sequence[ServiceSpec] = SERVICES,
        *,
        port_base: int | None = None,
        ready_timeout_s: float = 60.0,
        grace_s: float = 8.0,
        environment: dict[str, str] | None = None,
        restart_first_s: float = _BACKOFF_FIRST_S,
        restart_last_s: float = _BACKOFF_LAST_S,
    ) -> None:
        self._levels = levels(specs)
        self._port_base = settings.port_base if port_base is None else port_base
        self.settings = settings
        self._ready_timeout_s = ready_timeout_s
        self._grace_s = grace_s
        self._environment = environment or {}
        self._restart_first_s = restart_first_s
        self._restart_last_s = restart_last_s
        self._children = {
            spec.name: _Child(spec, restart_first_s) for level in self._levels for spec in level
        }
        self._watchers: list[asyncio.Task[None]] = []
        self._lock_descriptor: int | None = None
        self._stopping = False
        self._ready = False
        self._logger: Any = structlog.get_logger()

    def status(self) -> list[ServiceStatus]:
        """All services, in the order of their start."""
        return [child.status() for child in self._children.values()]

    def address(self, service: str) -> str:
        """Where a service listens."""
        return f"127.0.0.1:{self.settings.port(service)}"

    async def start(self) -> None:
        """Starts all services and returns when all are healthy; leaves nothing running where it fails.

        Raises:
            PlaneRunning: another plane has this home.
            StartFailed: a service died or did not become healthy; or a port is taken.
        """
        await asyncio.to_thread(ensure_home, self.settings)
        self._lock_home()
        try:
            base = self._port_base or await asyncio.to_thread(find_free_base)
            self.settings = self.settings.model_copy(update={"port_base": base})
            _refuse_taken(base)
            # All at once: each imports what it needs and waits for its turn. Imports take most of a start.
            for child in self._children.values():
                await self._spawn(child)
            self._write_endpoints()
            await self._start_in_order()
            self._ready = True
            self._write_endpoints()
        except BaseException:
            await self.stop()
            raise
        self._watchers = [asyncio.create_task(self._watch(child)) for child in self._children.values()]

    async def stop(self) -> None:
        """Stops all services in reverse order: SIGTERM, then SIGKILL for what does not end in time."""
        self._stopping = True
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        for level in reversed(self._levels):
            await asyncio.gather(*(self._end(self._children[spec.name]) for spec in level))
        if self._lock_descriptor is not None:
            for name in ("endpoints.json", "plane.pid"):
                (self.settings.home / name).unlink(missing_ok=True)
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    async def _start_in_order(self) -> None:
        healthy: dict[str, asyncio.Task[None]] = {}

        async def bring_up(spec: ServiceSpec) -> None:
            # Awaited, not cancelled, by all that need it.
            await asyncio.gather(*(asyncio.shield(healthy[need]) for need in spec.needs))
            child = self._children[spec.name]
            self._go(child)
            await self._until_healthy(child)

        for level in self._levels:
            for spec in level:
                healthy[spec.name] = asyncio.create_task(bring_up(spec))
        try:
            await asyncio.gather(*healthy.values())
        finally:
            for task in healthy.values():
                task.cancel()
            await asyncio.gather(*healthy.values(), return_exceptions=True)

    async def _spawn(self, child: _Child) -> None:
        # A session of its own: Ctrl-C reaches the plane alone, which then stops the services in order.
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            child.spec.module,
            "--parent-pid",
            str(os.getpid()),
            "--await-go",
            stdin=asyncio.subprocess.PIPE,
            env=self._child_environment(),
            start_new_session=True,
        )
        child.started_s = time.monotonic()
        child.state = "starting"

    def _child_environment(self) -> dict[str, str]:
        settings = self.settings
        chosen = {
            "NIGHTSHIFT_HOME": str(settings.home),
            "NIGHTSHIFT_PORT_BASE": str(settings.port_base),
            "NIGHTSHIFT_INSECURE_LOOPBACK": str(settings.insecure_loopback).lower(),
            "NIGHTSHIFT_TIME_ZONE": settings.time_zone,
            "NIGHTSHIFT_LOG_LEVEL": settings.log_level,
        }
        if settings.platform_root is not None:
            chosen["NIGHTSHIFT_PLATFORM_ROOT"] = str(settings.platform_root)
        return {**os.environ, **chosen, **self._environment}

    def _go(self, child: _Child) -> None:
        assert child.process is not None
        assert child.process.stdin is not None
        child.process.stdin.write(b"go\n")
        # Closed: from now on the kernel tells the child of our death.
        child.process.stdin.close()

    async def _until_healthy(self, child: _Child) -> None:
        assert child.process is not None
        name = child.spec.name
        died = asyncio.create_task(child.process.wait())
        check = asyncio.create_task(self._healthy(name))
        try:
            await asyncio.wait(
                {died, check}, return_when=asyncio.FIRST_COMPLETED, timeout=self._ready_timeout_s
            )
            if died.done():
                child.last_exit = died.result()
                raise StartFailed(f"{name} ended with status {died.result()} before it was healthy")
            if not check.done():
                raise StartFailed(f"{name} was not healthy within {self._ready_timeout_s:.0f} s")
        finally:
            for task in (died, check):
                task.cancel()
            await asyncio.gather(died, check, return_exceptions=True)
        child.state = check.result()
        self._logger.info(
            f"service is {child.state}",
            name=name,
            pid=child.pid,
            took_s=round(time.monotonic() - child.started_s, 2),
        )

    async def _healthy(self, name: str, *, standby: bool = True) -> str:
        """Returns when the service says SERVING ("ready"), or, if wanted, that it stands by ("standby")."""
        credential = load_credential(self.settings, f"person/{os.getuid()}")
        async with channel_to(self.address(name), name, credential) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return "ready"
                    if standby:
                        await stub.Check(health_pb2.HealthCheckRequest(service=STANDBY), timeout=1.0)
                        return "standby"
                except grpc.aio.AioRpcError:
                    pass  # Not listening yet, or unwell.
                await asyncio.sleep(0.05 if standby else _STANDBY_LOOK_S)

    async def _watch(self, child: _Child) -> None:
        """Starts the service again whenever it dies."""
        while True:
            assert child.process is not None
            took_over = asyncio.create_task(self._take_over(child))
            try:
                child.last_exit = await child.process.wait()
            finally:
                took_over.cancel()
                await asyncio.gather(took_over, return_exceptions=True)
            lived_s = time.monotonic() - child.started_s
            if lived_s > _CALM_S:
                child.backoff_s = self._restart_first_s
            child.state = "restarting"
            child.leader = {}
            child.restarts += 1
            self._logger.error(
                "service died and is started again",
                name=child.spec.name,
                status=child.last_exit,
                lived_s=round(lived_s, 1),
                in_s=child.backoff_s,
            )
            self._write_endpoints()
            await asyncio.sleep(child.backoff_s)
            child.backoff_s = min(2 * child.backoff_s, self._restart_last_s)
            try:
                await self._spawn(child)
                self._go(child)
                self._write_endpoints()
                await self._until_healthy(child)
                self._write_endpoints()
            except (StartFailed, OSError) as error:
                self._logger.exception("service did not come back", name=child.spec.name, problem=str(error))
                await self._end(child)

    async def _take_over(self, child: _Child) -> None:
        """While a service stands by: says in endpoints.json where its leader is, notes when it leads."""
        if child.state != "standby":
            return
        leads = asyncio.create_task(self._healthy(child.spec.name, standby=False))
        try:
            while not leads.done():
                leader = await self._leader(child.spec.name)
                if leader and leader != child.leader:
                    child.leader = leader
                    self._write_endpoints()
                await asyncio.wait({leads}, timeout=_STANDBY_LOOK_S)
        finally:
            leads.cancel()
            await asyncio.gather(leads, return_exceptions=True)
        child.leader = {}
        child.state = leads.result()
        self._logger.info("service leads", name=child.spec.name, pid=child.pid)
        self._write_endpoints()

    async def _leader(self, name: str) -> dict[str, str]:
        """Addresses of the leader, as a service that stands by names them when it refuses a call."""
        credential = load_credential(self.settings, f"person/{os.getuid()}")
        async with channel_to(self.address(name), name, credential) as channel:
            call: Any = channel.unary_unary(_REFUSED_BY_A_STANDBY)
            try:
                await call(b"", timeout=1.0)
            except grpc.aio.AioRpcError as error:
                told = decode_error(error).metadata
                keys = {"address": "leader_address", "control_address": "leader_control_address"}
                return {key: told[known] for key, known in keys.items() if told.get(known)}
        return {}

    async def _end(self, child: _Child) -> None:
        process = child.process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self._grace_s)
            except TimeoutError:
                self._logger.warning("service did not stop in time and is killed", name=child.spec.name)
                _signal(process, signal.SIGKILL)
                await process.wait()
        child.state = "stopped"

    def _write_endpoints(self) -> None:
        settings = self.settings
        services = {}
        for name, child in self._children.items():
            services[name] = {
                "address": f"127.0.0.1:{settings.port(name)}",
                "control_address": f"127.0.0.1:{settings.control_port(name)}",
                "metrics_address": f"127.0.0.1:{settings.metrics_port(name)}",
                "token_address": f"127.0.0.1:{settings.token_port(name)}",
                "pid": child.pid,
                "state": child.state,
                **child.leader,
                "restarts": child.restarts,
            }
            if settings.insecure_loopback:
                services[name]["plaintext_address"] = f"127.0.0.1:{settings.port(name) + PLAINTEXT_OFFSET}"
        content = {
            "services": services,
            "insecure_loopback": settings.insecure_loopback,
            "ready": self._ready,
            "plane_pid": os.getpid(),
        }
        write_private(settings.home / "endpoints.json", orjson.dumps(content, option=orjson.OPT_INDENT_2))

    def _lock_home(self) -> None:
        descriptor = os.open(self.settings.home / "plane.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise PlaneRunning(
                f"a plane is running in {self.settings.home} already (nightshift down stops it)"
            ) from None
        self._lock_descriptor = descriptor
        write_private(self.settings.home / "plane.pid", f"{os.getpid()}\n".encode())


def _refuse_taken(base: int) -> None:
    if taken := taken_ports(base):
        raise StartFailed(
            f"ports are taken: {', '.join(map(str, taken))}; choose another base with --port-base"
        )


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except ProcessLookupError:
        return


async def run_plane(plane: Plane, on_ready: Callable[[], None]) -> None:
    """Starts a plane and keeps it until SIGINT or SIGTERM. Raises as Plane.start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(plane.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # Ctrl-C while it starts: start() stops what runs already.
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    stopping_needed = starting.exception() is None
    try:
        starting.result()
        on_ready()
        await stop.wait()
    finally:
        stopping.cancel()
        if stopping_needed:
            await plane.stop()

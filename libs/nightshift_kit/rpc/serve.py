"""The common `__main__` of the services: wire, serve, stop.

async def wire(wiring: Wiring) -> None:
    settings = service_settings(LabSettings, "lab", wiring.settings)
    db = wiring.database(Database(settings.database_url, migrations="nightshift_lab", name="lab"))
    wiring.acting(db)
    wiring.add(add_LabServiceServicer_to_server, LabServicer(…), "nightshift.lab.v1.LabService")

if __name__ == "__main__":
    raise SystemExit(run("lab", wire))
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import datetime as dt
import gc
import inspect
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import grpc
import structlog

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import FenceGate, GrantVerifier
from nightshift_kit.otlp import SpanSink, TelemetrySettings, telemetry_settings
from nightshift_kit.otlp.settings import PREFIXES as TELEMETRY_PREFIXES
from nightshift_kit.rpc.channels import channel
from nightshift_kit.rpc.control import ControlThread, control_services, outbox_service
from nightshift_kit.rpc.guard import Authority
from nightshift_kit.rpc.metrics import RpcMetrics
from nightshift_kit.rpc.server import AddToServer, PortTaken, Server, ServerBuilder
from nightshift_kit.rpc.standby import Refusing, Withdrawn
from nightshift_kit.rpc.stop import StopHub
from nightshift_kit.rpc.tls import ensure_home, load_credential, load_public_key
from nightshift_kit.rpc.token_door import TokenDoor
from nightshift_kit.rpc.traffic import Limits
from nightshift_kit.settings import PlaneSettings, plane_settings
from nightshift_kit.storage import Database
from nightshift_kit.telemetry import configure_logging
from nightshift_kit.tokens import RefusedUses

PLAINTEXT_OFFSET: Final = 30
GRACE_S: Final = 5.0
# Calls that are refused anyway need no time.
STANDBY_GRACE_S: Final = 0.2

# People and consoles come here, some at a time; whoever has no certificate must not crowd out who has.
_TOKEN_LIMITS: Final = Limits(calls=64, streams=64)
_PR_SET_PDEATHSIG: Final = 1
_RESTART_BELOW: Final = dt.timedelta(days=2)
_LOOK_AT_CERTIFICATE_S: Final = 600.0

Wire = Callable[["Wiring"], Coroutine[Any, Any, None]]


class Wiring:
    """What a service's wiring function gets, and where it puts what it made.

    Attributes:
        name: Of the service.
        settings: Of the plane.
        clock: The machine's.
        metrics: Where own metrics are registered (`metrics.registry`).
        limits: Of the main server; may be replaced while wiring.
        channelz: Whether the main server serves channelz; may be set while wiring.
        spans: Hears of work that has ended; None where nothing is exported.
    """

    def __init__(self, name: str, settings: PlaneSettings, clock: Clock) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock
        self.metrics = RpcMetrics(name)
        self.limits = Limits()
        self.channelz = False
        self.spans: SpanSink | None = None
        self.hub: StopHub | None = None
        self.main: list[tuple[AddToServer, Any, str]] = []
        self.control: list[tuple[AddToServer, Any, str]] = []
        self.authority: Authority | None = None
        self.refused: RefusedUses | None = None
        self.databases: list[Database] = []
        self.background: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = []
        self.closers: list[Callable[[], Awaitable[None] | None]] = []
        self.holds: list[Callable[[], Awaitable[None] | None]] = []
        self.stopped = asyncio.Event()
        self.failure: Exception | None = None
        self.servers: list[Server] = []

    def database(self, db: Database) -> Database:
        """Migrates a database, watches its health, closes it at the end."""
        db.migrate()
        self.databases.append(db)
        return db

    def acting(self, db: Database) -> StopHub:
        """Makes this an acting service: grants, fence, StopService and OutboxService on the control server.

        Args:
            db: Has the kit's tables.

        Returns:
            The hub, for works that outlive a call (worker processes, threads).
        """
        gate = FenceGate(db, self.clock)
        self.hub = StopHub(gate, self.clock)
        verifier = GrantVerifier(load_public_key(self.settings, "grant"), self.name, self.clock)
        self.authority = Authority(verifier, gate, self.hub)
        outbox = Outbox(self.name, self.clock)
        for service in control_services(self.hub, db, outbox):
            self.add_control(*service)
        self.audit_refusals(db, outbox)
        return self.hub

    def audited(self, db: Database) -> Outbox:
        """Gives a service that does not act an audit outbox, with OutboxService on the control server.

        Args:
            db: Has the kit's tables.
        """
        outbox = Outbox(self.name, self.clock)
        self.add_control(*outbox_service(db, outbox))
        self.audit_refusals(db, outbox)
        return outbox

    def audit_refusals(self, db: Database, outbox: Outbox) -> None:
        """Audits refused uses of local tokens in this outbox; `acting` and `audited` bring it."""
        self.refused = RefusedUses(db, outbox)
        self.spawn("refused tokens", self.refused.run)
        self.on_stop(self.refused.flush)

    def add(self, add_to_server: AddToServer, servicer: Any, full_name: str) -> None:
        """Serves something on the main port."""
        self.main.append((add_to_server, servicer, full_name))

    def add_control(self, add_to_server: AddToServer, servicer: Any, full_name: str) -> None:
        """Serves something on the control port.

        Its handlers run on another thread's event loop: what they touch must be safe for that.
        """
        self.control.append((add_to_server, servicer, full_name))

    def spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a coroutine function on the main loop while the service serves; it is cancelled at the end.

        Should it end with an exception, the service says NOT_SERVING.
        """
        self.background.append((name, work))

    def on_stop(self, close: Callable[[], Awaitable[None] | None]) -> None:
        """Calls something, or awaits it, when the servers have stopped and before the databases close.

        Last registered, first called.
        """
        self.closers.append(close)

    def hold(self, release: Callable[[], Awaitable[None] | None]) -> None:
        """As on_stop, but after the databases have closed: for what nobody else may have before."""
        self.holds.append(release)

    def fail(self, error: Exception) -> None:
        """Ends the service in good order, and its process with an error. On the main loop."""
        self.failure = self.failure or error
        self.stopped.set()

    async def say_healthy(self, healthy: bool, reason: str = "") -> None:
        """Says SERVING or NOT_SERVING on the main and the token port, once they listen. On the main loop."""
        for server in self.servers:
            await server.set_healthy(healthy, reason)

    async def stand_by(
        self,
        until: Callable[[], Coroutine[Any, Any, None]],
        *,
        refusal: Callable[[], NightshiftError],
        main: Sequence[tuple[AddToServer, str]],
        control: Sequence[tuple[AddToServer, str]] = (),
    ) -> None:
        """Refuses every call on all ports until `until` returns; then wiring goes on and nothing listens.

        Args:
            until: Returns when this replica is to act.
            refusal: Makes the error that each call gets.
            main: What the main server will serve: the generated `add_…` function and the full name.
            control: As `main`, for the control server.

        Raises:
            PortTaken: one of the ports is in use.
            Withdrawn: the service is to stop; let it through.
        """
        self.main = [(add, Refusing(name, refusal), name) for add, name in main]
        self.control = [(add, Refusing(name, refusal), name) for add, name in control]
        door = TokenDoor.of(self.settings, self.clock)
        control_thread = ControlThread(lambda: _builder(self, "control", door), standing_by=True)
        await asyncio.to_thread(control_thread.start)
        servers = [_builder(self, label, door).build() for label in ("main", "tokens")]
        waiting = [asyncio.create_task(until()), asyncio.create_task(self.stopped.wait())]
        try:
            for server in servers:
                await server.start(standing_by=True)
            structlog.get_logger().info("standing by", show=True, port=servers[0].port)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            outcome, _ = await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.gather(*(server.stop(STANDBY_GRACE_S) for server in servers))
            await asyncio.to_thread(control_thread.stop, STANDBY_GRACE_S)
            self.main, self.control = [], []
        if isinstance(outcome, asyncio.CancelledError):
            raise Withdrawn
        if isinstance(outcome, BaseException):
            raise outcome

    def channel(self, target_service: str, *, control: bool = False) -> grpc.aio.Channel:
        """A channel to another service under this service's identity; closed at the end."""
        made = channel(target_service, self.settings, f"service/{self.name}", control=control)
        self.on_stop(made.close)
        return made


def run(name: str, wire: Wire, arguments: list[str] | None = None) -> int:
    """The whole life of a service process. Returns its exit status.

    The plane gives two arguments: with `--parent-pid PID` the process dies with that parent, with
    `--await-go` it waits for a line on its standard input: all services import at once and serve in order.
    """
    parser = argparse.ArgumentParser(prog=f"nightshift_{name}")
    parser.add_argument("--parent-pid", type=int, default=0)
    parser.add_argument("--await-go", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.parent_pid and not _die_with(chosen.parent_pid):
        return 1
    if chosen.await_go and not sys.stdin.buffer.readline():
        # The plane has given up before it was our turn.
        return 1
    os.umask(0o077)
    try:
        settings = plane_settings()
        telemetry, problems = telemetry_settings(settings, os.environ)
        ensure_home(settings)
    except (NightshiftError, OSError, RuntimeError) as error:
        print(f"nightshift_{name}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    sink = configure_logging(name, settings.home / "logs", level=settings.log_level)
    logger: Any = structlog.get_logger()
    logger.info("settings", settings=str(settings))
    for problem in problems:
        logger.warning("environment variable passed over", problem=problem)
    for variable in [one for one in os.environ if one.startswith(TELEMETRY_PREFIXES)]:
        # Children are started with our environment: they export nothing and need no secrets for it.
        del os.environ[variable]
    try:
        asyncio.run(serve(name, settings, wire, telemetry=telemetry))
    except (NightshiftError, PortTaken, OSError) as error:
        logger.critical("cannot serve", problem=str(error))
        return 3
    except Exception as error:
        logger.critical("crashed", exc_info=error)
        raise
    finally:
        sink.close()
    return 0


async def serve(
    name: str,
    settings: PlaneSettings,
    wire: Wire,
    *,
    clock: Clock | None = None,
    stopped: asyncio.Event | None = None,
    telemetry: TelemetrySettings | None = None,
) -> None:
    """Wires a service and serves until SIGTERM, SIGINT or `stopped`.

    Args:
        name: Of the service.
        settings: Of the plane.
        wire: Makes what is served.
        clock: The machine's where None.
        stopped: Ends it, as the signals do.
        telemetry: Where traces and metrics are exported to; nowhere where None.

    Raises:
        PortTaken: one of its ports is in use.
        Exception: what the service gave to `Wiring.fail`.
    """
    wiring = Wiring(name, settings, clock or SystemClock())
    stopped = wiring.stopped = stopped or wiring.stopped
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    logger: Any = structlog.get_logger()
    closing: list[Callable[[], Awaitable[None] | None]] = []
    export = _export(wiring, telemetry)
    try:
        metrics_server = wiring.metrics.serve(settings.metrics_port(name))
        closing.append(metrics_server.close)
        try:
            await wire(wiring)
        finally:
            closing += wiring.holds
            closing += [db.close for db in wiring.databases]
            # After all whose ends it tells, before what its gauges may read.
            closing += export
            closing += wiring.closers
        door = TokenDoor.of(settings, wiring.clock, wiring.refused)
        control = ControlThread(
            lambda: _builder(wiring, "control", door),
            background=[wiring.hub.watch_leases] if wiring.hub is not None else [],
        )
        await asyncio.to_thread(control.start)
        closing.append(lambda: asyncio.to_thread(control.stop))
        servers = [_builder(wiring, label, door).build() for label in ("main", "tokens")]
        for server in servers:
            await server.start()
            closing.append(partial(_drained, server, logger))
        wiring.servers = servers
        tasks = [_background(label, work, wiring, logger) for label, work in wiring.background]
        tasks.append(asyncio.create_task(_watch_databases(wiring)))
        tasks.append(asyncio.create_task(_watch_certificate(wiring, stopped)))
        _spare_collections()
        logger.info("ready", show=True, port=servers[0].port, control_port=settings.control_port(name))
        await stopped.wait()
        logger.info("stopping", show=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    except Withdrawn:
        logger.info("stopping", show=True)
    finally:
        for close in reversed(closing):
            try:
                result = close()
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                logger.exception("closing failed", exc_info=error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if wiring.failure is not None:
        raise wiring.failure


def _export(
    wiring: Wiring, telemetry: TelemetrySettings | None
) -> list[Callable[[], Awaitable[None] | None]]:
    """Starts the export where one is asked for; gives what ends it. Raises OSError for an unreadable file."""
    if telemetry is None or not telemetry.enabled:
        return []
    # Here, so that a service that exports nothing carries nothing of it.
    from nightshift_kit.rpc.export import Exporter

    exporter = Exporter(wiring.name, telemetry, wiring.metrics.registry)
    exporter.start()
    if telemetry.traces:
        wiring.spans = exporter
    return [lambda: asyncio.to_thread(exporter.stop)]


def _spare_collections() -> None:
    """Let the garbage collector pass over what was made by now, and look at the rest less often.

    Requests leave hardly any cycles, but a batch of runs is tens of thousands of objects: by default the
    collector would walk all of them several times, a fifth of the CPU time of an ingest.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _builder(wiring: Wiring, label: str, door: TokenDoor) -> ServerBuilder:
    settings, name = wiring.settings, wiring.name
    is_main, for_tokens = label == "main", label == "tokens"
    ports = {
        "main": settings.port(name),
        "control": settings.control_port(name),
        "tokens": settings.token_port(name),
    }
    plaintext = settings.port(name) + PLAINTEXT_OFFSET if settings.insecure_loopback and is_main else None
    limits = replace(wiring.limits, calls=_TOKEN_LIMITS.calls, streams=_TOKEN_LIMITS.streams)
    builder = ServerBuilder(
        name,
        settings,
        clock=wiring.clock,
        authority=wiring.authority,
        door=door,
        for_tokens=for_tokens,
        metrics=wiring.metrics,
        port=ports[label],
        plaintext_port=plaintext,
        limits=wiring.limits if is_main else limits if for_tokens else None,
        channelz=wiring.channelz and is_main,
        label=label,
        spans=wiring.spans,
    )
    for add_to_server, servicer, full_name in wiring.control if label == "control" else wiring.main:
        builder.add(add_to_server, servicer, full_name)
    return builder


def _background(
    label: str, work: Callable[[], Coroutine[Any, Any, None]], wiring: Wiring, logger: Any
) -> asyncio.Task[None]:
    async def supervised() -> None:
        try:
            await work()
        except Exception as error:
            logger.exception("background work failed", work=label, exc_info=error)
            await wiring.say_healthy(False, f"background work failed: {label}")

    return asyncio.create_task(supervised(), name=label)


async def _watch_databases(wiring: Wiring) -> None:
    healthy = True
    while True:
        await asyncio.sleep(1.0)
        problems = [db.problem for db in wiring.databases if db.problem is not None]
        if healthy and problems:
            # For good: after a failed fsync nobody knows what is on disk, and only a restart reads it anew.
            healthy = False
            await wiring.say_healthy(False, problems[0])


async def _watch_certificate(wiring: Wiring, stopped: asyncio.Event) -> None:
    """Ends the service in good order before its certificate runs out: the next start renews it."""
    not_after = load_credential(wiring.settings, f"service/{wiring.name}").not_after
    logger: Any = structlog.get_logger()
    while not_after - wiring.clock.now() > _RESTART_BELOW:  # noqa: ASYNC110 - time is what it waits for
        await asyncio.sleep(_LOOK_AT_CERTIFICATE_S)
    logger.warning("the certificate runs out; starting again to renew it", not_after=not_after.isoformat())
    stopped.set()


async def _drained(server: Server, logger: Any) -> None:
    cut = await server.stop(GRACE_S)
    if cut:
        logger.warning("calls were cut short", count=cut)


def _die_with(parent_pid: int) -> bool:
    """Asks the kernel to kill this process when its parent dies. False where the parent is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent_pid

"""A real monitor on a real server, mTLS and store, on ephemeral ports."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.monitor.v1 import monitor_service_pb2_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.server import ServerBuilder
from nightshift_kit.rpc.tls import create_credential, ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from nightshift_monitor.config import MonitorSettings
from nightshift_monitor.incidents import Incidents
from nightshift_monitor.looks import Look
from nightshift_monitor.looks.disk_look import DiskLook
from nightshift_monitor.looks.gpu_look import GpuLook, NvmlReader
from nightshift_monitor.looks.http_look import HttpLook, new_http_client
from nightshift_monitor.looks.tcp_look import TcpLook
from nightshift_monitor.monitor import Monitor, NewestExport, UseWitness
from nightshift_monitor.rpc.health_look import HealthLook
from nightshift_monitor.rpc.servicer import MonitorServicer
from nightshift_monitor.store.incidents import SqlIncidents
from nightshift_monitor.store.records import SqlRecords


@dataclass
class PlatformStandIn:
    """A small HTTP server that answers as it is told, and remembers who asked."""

    port: int
    answers: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, document: Any, status: int = 200) -> None:
        self.answers[path] = (status, "application/json", json.dumps(document).encode())


@pytest.fixture
def platform() -> Iterator[PlatformStandIn]:
    stand_in = PlatformStandIn(0)
    stand_in.gate.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.seen.append((self.path, dict(self.headers)))
            stand_in.gate.wait(30)
            # Like a single-page app: what is not there is the page, with 200.
            status, kind, body = stand_in.answers.get(
                self.path, (200, "text/html", b"<!doctype html><html></html>")
            )
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            if status == 302:
                self.send_header("location", "/api/active-users")
            with contextlib.suppress(BrokenPipeError):  # the caller may have given up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.port = server.server_address[1]
    stand_in.answer("/api/settings/safety-level", {"safety_level": "youth"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield stand_in
    stand_in.gate.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@dataclass
class RunningMonitor:
    """A monitor over the wire."""

    core: Monitor
    database: Database
    plane: PlaneSettings
    port: int
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def stub(self, identity: str = "service/skills") -> monitor_service_pb2_grpc.MonitorServiceAsyncStub:
        channel = channel_to(f"127.0.0.1:{self.port}", "monitor", load_credential(self.plane, identity))
        self.channels.append(channel)
        return monitor_service_pb2_grpc.MonitorServiceStub(channel)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with certificates, made once: keys cost time."""
    path = tmp_path_factory.mktemp("home")
    settings = PlaneSettings(home=path)
    ensure_home(settings)
    for name, role in (("vera", "viewer"), ("ada", "approver"), ("bo", "approver")):
        create_credential(settings, "person", name, role)
    return path


MakeMonitor = Callable[..., Any]


@pytest.fixture
def make_monitor(home: Path, tmp_path: Path) -> MakeMonitor:
    """An async context manager that runs a monitor with the given settings."""

    @asynccontextmanager
    async def running(
        *,
        uses: Sequence[UseWitness] = (),
        exports: NewestExport | None = None,
        nvml: Any = None,
        time_zone: str = "UTC",
        **fields: Any,
    ) -> AsyncIterator[RunningMonitor]:
        plane = PlaneSettings(home=home)
        clock = SystemClock()
        settings = MonitorSettings(**{"plane_probes": False, **fields})
        database = Database(
            f"sqlite:///{tmp_path / 'monitor.db'}", migrations="nightshift_monitor", name="monitor"
        )
        database.migrate()
        http = new_http_client()
        reader = NvmlReader(nvml)
        health = HealthLook(grpc.aio.insecure_channel)
        looks: dict[str, Look] = {
            "http": HttpLook(http),
            "tcp": TcpLook(),
            "disk": DiskLook(),
            "gpu": GpuLook(reader),
            "grpc_health": health,
        }
        core = Monitor(
            settings,
            settings.all_probes(str(home)),
            looks,
            SqlRecords(database),
            reader,
            Incidents(
                SqlIncidents(database, Outbox("monitor", clock)),
                clock=clock,
                after_looks=settings.incident_after_looks,
                after_s=settings.incident_after_s,
                stable_s=settings.incident_stable_s,
            ),
            clock=clock,
            time_zone=time_zone,
            uses=uses,
            exports=exports,
        )
        await core.start()
        builder = ServerBuilder("monitor", plane, clock=clock)
        builder.add(
            monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server,
            MonitorServicer(core),
            "nightshift.monitor.v1.MonitorService",
        )
        server = builder.build()
        port = await server.start()
        monitor = RunningMonitor(core, database, plane, port)
        try:
            yield monitor
        finally:
            for channel in monitor.channels:
                await channel.close()
            await core.stop()
            await server.stop(0.2)
            await health.close()
            await http.aclose()
            reader.close()
            await asyncio.to_thread(database.close)

    return running

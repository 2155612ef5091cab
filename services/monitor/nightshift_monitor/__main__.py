"""Runs the monitor: ``python -m nightshift_monitor``. The only place where its objects meet."""

from __future__ import annotations

import asyncio

import grpc

from nightshift.monitor.v1 import monitor_service_pb2_grpc
from nightshift_kit.rpc.channels import channel
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.settings import service_settings
from nightshift_kit.storage import Database
from nightshift_monitor.config import MonitorSettings
from nightshift_monitor.daemon_log import DaemonLog, LineFile
from nightshift_monitor.gauges import MonitorGauges
from nightshift_monitor.incidents import Incidents
from nightshift_monitor.looks import Look
from nightshift_monitor.looks.disk_look import DiskLook
from nightshift_monitor.looks.gpu_look import GpuLook, NvmlReader, load_nvml
from nightshift_monitor.looks.http_look import HttpLook, new_http_client
from nightshift_monitor.looks.tcp_look import TcpLook
from nightshift_monitor.monitor import Monitor, UseWitness
from nightshift_monitor.rpc.health_look import HealthLook
from nightshift_monitor.rpc.servicer import MonitorServicer
from nightshift_monitor.store.incidents import SqlIncidents
from nightshift_monitor.store.records import SqlRecords
from nightshift_monitor.witnesses import ComfyUiWitness, ExportsWitness, GpuServiceWitness

SERVICE = "nightshift.monitor.v1.MonitorService"


async def wire(wiring: Wiring) -> None:
    """Makes the monitor's objects and puts them where they belong."""
    settings = service_settings(MonitorSettings, "monitor", wiring.settings)
    wiring.settings.service_home("monitor").mkdir(mode=0o700, parents=True, exist_ok=True)
    database = wiring.database(
        Database(settings.database_url, migrations="nightshift_monitor", name="monitor")
    )
    http = new_http_client()
    wiring.on_stop(http.aclose)
    nvml = NvmlReader(load_nvml(), timeout_s=settings.gpu_timeout_s)
    wiring.on_stop(nvml.close)

    def open_channel(target: str) -> grpc.aio.Channel:
        if target.startswith("plane:"):
            return channel(target.removeprefix("plane:"), wiring.settings, "service/monitor")
        return grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])

    health = HealthLook(open_channel)
    wiring.on_stop(health.close)
    looks: dict[str, Look] = {
        "http": HttpLook(http),
        "grpc_health": health,
        "tcp": TcpLook(),
        "disk": DiskLook(),
        "gpu": GpuLook(nvml),
    }
    uses: list[UseWitness] = []
    if settings.gpu_service_url:
        uses.append(GpuServiceWitness(http, settings.gpu_service_url))
    if settings.comfyui_url:
        uses.append(ComfyUiWitness(http, settings.comfyui_url))
    exports = None
    if settings.exports_dir:
        exports = ExportsWitness(settings.exports_dir, wiring.settings.time_zone, wiring.clock)
    incidents = Incidents(
        SqlIncidents(database, wiring.audited(database)),
        clock=wiring.clock,
        after_looks=settings.incident_after_looks,
        after_s=settings.incident_after_s,
        stable_s=settings.incident_stable_s,
    )
    monitor = Monitor(
        settings,
        settings.all_probes(str(wiring.settings.home)),
        looks,
        SqlRecords(database),
        nvml,
        incidents,
        clock=wiring.clock,
        time_zone=wiring.settings.time_zone,
        uses=uses,
        exports=exports,
    )
    await monitor.start()
    wiring.metrics.registry.register(MonitorGauges(lambda: monitor.newest))
    if settings.daemon_log:
        daemon_log = DaemonLog(
            LineFile(
                wiring.settings.service_home("monitor") / "status.jsonl",
                max_bytes=settings.daemon_log_bytes,
                files=settings.daemon_log_files,
            ),
            clock=wiring.clock,
            interval_s=settings.daemon_log_interval_s,
        )
        incidents.listen(daemon_log.note_incident)
        wiring.spawn("daemon log", lambda: daemon_log.run(lambda: monitor.newest, monitor.watch))

    async def until_stopped() -> None:
        # Ends the streams before the server drains: their watchers would hold it up for the whole grace.
        try:
            await asyncio.Event().wait()
        finally:
            await monitor.stop()

    wiring.spawn("monitor", until_stopped)
    wiring.add(
        monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server, MonitorServicer(monitor), SERVICE
    )


if __name__ == "__main__":
    raise SystemExit(run("monitor", wire))

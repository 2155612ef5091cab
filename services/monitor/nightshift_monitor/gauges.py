"""What the monitor knows, as Prometheus gauges; read from the last posted status at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from nightshift_monitor.incidents import IncidentState
from nightshift_monitor.observations import ProbeState
from nightshift_monitor.status import StatusView


class MonitorGauges(Collector):
    """Collected in the thread of the metrics server: a status is a frozen value, so nothing is locked."""

    def __init__(self, newest: Callable[[], StatusView]) -> None:
        self._newest = newest

    def describe(self) -> list[Metric]:
        """Nothing ahead: there is no status before the monitor has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All gauges now."""
        view = self._newest()
        yield from _probes(view)
        yield from _verdict(view)
        yield from _gpus(view)


def _probes(view: StatusView) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "nightshift_monitor_probe_state",
        "1 for the state that the probe is in, 0 for the others.",
        labels=("probe", "state"),
    )
    latency = GaugeMetricFamily(
        "nightshift_monitor_probe_latency_seconds", "Time that the last look took.", labels=("probe",)
    )
    for probe in view.probes:
        name = probe.declaration.name
        seen = probe.latest.state if probe.latest else ProbeState.UNSPECIFIED
        for each in ProbeState:
            state.add_metric((name, each.name.lower()), float(seen is each))
        if probe.latest is not None:
            latency.add_metric((name,), probe.latest.latency_s)
    yield state
    yield latency


def _verdict(view: StatusView) -> Iterator[Metric]:
    idleness = view.idleness
    yield GaugeMetricFamily(
        "nightshift_monitor_idle", "1 where the machine counts as idle.", value=float(idleness.idle)
    )
    yield GaugeMetricFamily(
        "nightshift_monitor_platform_up",
        "1 where the platform is known to be there.",
        value=float(idleness.platform_up),
    )
    if idleness.predicted_busy is not None:
        yield GaugeMetricFamily(
            "nightshift_monitor_predicted_busy_timestamp_seconds",
            "When users are next expected (Unix time).",
            value=idleness.predicted_busy.timestamp(),
        )
    incidents = GaugeMetricFamily(
        "nightshift_monitor_incidents", "Incidents that are not resolved.", labels=("state",)
    )
    for state in (IncidentState.OPEN, IncidentState.ACKNOWLEDGED):
        count = sum(incident.state is state for incident in view.incidents)
        incidents.add_metric((state.name.lower(),), float(count))
    yield incidents


def _gpus(view: StatusView) -> Iterator[Metric]:
    labels = ("gpu", "name")
    total = GaugeMetricFamily(
        "nightshift_monitor_gpu_memory_total_bytes", "Memory of the GPU.", labels=labels
    )
    used = GaugeMetricFamily("nightshift_monitor_gpu_memory_used_bytes", "Memory in use.", labels=labels)
    busy = GaugeMetricFamily(
        "nightshift_monitor_gpu_utilization_ratio", "Part of the time with a kernel running.", labels=labels
    )
    failed = GaugeMetricFamily(
        "nightshift_monitor_gpu_failed", "1 where the GPU is lost or needs a reset.", labels=labels
    )
    for gpu in view.gpus.gpus:
        key = (str(gpu.index), gpu.display_name)
        failed.add_metric(key, float(gpu.failed))
        if not gpu.failed:
            total.add_metric(key, float(gpu.total_bytes))
            used.add_metric(key, float(gpu.used_bytes))
            busy.add_metric(key, gpu.utilization_percent / 100)
    yield from (total, used, busy, failed)

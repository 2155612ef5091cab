"""Everything at one glance, as a plain value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.idleness import Idleness
from nightshift_monitor.incidents import Incident
from nightshift_monitor.observations import GpuReading, ProbeResult, ProbeState


@dataclass(frozen=True, slots=True)
class ProbeView:
    """A declared probe with the interval in force and its last answer."""

    declaration: ProbeDeclaration
    interval_s: float
    latest: ProbeResult | None


@dataclass(frozen=True, slots=True)
class StatusView:
    """Probes by name, GPUs, the verdict, and unresolved incidents, at one instant (UTC)."""

    time: datetime
    probes: tuple[ProbeView, ...]
    gpus: GpuReading
    idleness: Idleness
    incidents: tuple[Incident, ...] = ()

    def outline(self) -> tuple[object, ...]:
        """What a watcher must hear of at once when it changes; readings that merely move are left out."""
        states = tuple(
            (view.declaration.name, view.latest.state if view.latest else ProbeState.UNSPECIFIED)
            for view in self.probes
        )
        reasons = tuple((reason.code, reason.allows_idle) for reason in self.idleness.reasons)
        incidents = tuple(
            (incident.id, incident.state, incident.worst, incident.flap_count) for incident in self.incidents
        )
        return self.idleness.idle, self.idleness.platform_up, reasons, states, incidents

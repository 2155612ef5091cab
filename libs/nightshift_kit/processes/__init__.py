"""The plane as processes: one table of services, started in order, watched, stopped in reverse."""

from nightshift_kit.processes.plane import Plane, PlaneRunning, ServiceStatus, StartFailed
from nightshift_kit.processes.table import SERVICES, ServiceSpec, levels

__all__ = ["SERVICES", "Plane", "PlaneRunning", "ServiceSpec", "ServiceStatus", "StartFailed", "levels"]

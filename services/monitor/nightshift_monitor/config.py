"""The monitor's settings.

Section ``[monitor]`` of settings.toml; environment ``NIGHTSHIFT_MONITOR_<KEY>`` wins (lists as JSON). Keys:

=========================  =========  ======================================================================
key                        default    meaning
=========================  =========  ======================================================================
quiet_s                    120        quiet since the last activity before the machine counts as idle
in_flight_timeout_s        1800       a generation that started and never finished is forgotten after this
probe_interval_s           30         time between looks of a probe without an interval of its own
recheck_interval_s         5          … while it is down, so that a platform that comes back is seen soon
probes                     []         declared probes (``[[monitor.probes]]``, keys in ``declarations``)
platform_url               ""         base URL of the platform: the probe ``platform``
platform_check_path        /api/settings/safety-level   path that answers only where the platform itself does
platform_check_json        true       whether that path answers JSON (a catch-all page answers HTML)
plane_probes               true       whether the plane's other services are looked at, too
gpu_service_url            ""         base URL of the GPU service; a model ``in_use`` forbids idleness
comfyui_url                ""         base URL of ComfyUI; work in its queue forbids idleness
exports_dir                ""         the platform's ``exports/json``; a fresh file forbids idleness
corroborate_interval_s     10         time between looks at these three witnesses
history_days               14         stored answers older than this are removed
history_rows_per_probe     50000      … and those beyond this number, oldest first
keep_alive_s               15         time between keep-alives of a stream
incident_after_looks       3          bad looks at a probe in a row that make an incident
incident_after_s           60         … or a bad look after so much trouble, well moments included
incident_stable_s          120        an incident ends when its probe was well for so long
incident_days              365        resolved incidents older than this are removed
activity_half_life_weeks   4          after so many weeks an hour of activity weighs half in the profile
busy_probability           0.5        users count as expected from this part of the weighted past weeks on
activity_days              400        hours of activity older than this are removed
gpu_watch_interval_s       2          time between NVML's readings while somebody watches the GPUs
gpu_timeout_s              5          NVML hangs when it has not answered after this
daemon_log                 true       whether status.jsonl is written under NIGHTSHIFT_HOME/monitor
daemon_log_interval_s      30         time between its lines of status
daemon_log_bytes           8388608    its file is rotated beyond this size
daemon_log_files           4          so many files of it are kept, the present one included
database_url               ""         the store; empty means SQLite under NIGHTSHIFT_HOME/monitor
=========================  =========  ======================================================================
"""

from __future__ import annotations

from typing import Self
from urllib.parse import urljoin

from pydantic import Field, field_validator, model_validator

from nightshift_kit.settings import ServiceSettings
from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.forbidden import forbidden_path

PLANE_NEIGHBOURS = ("experience", "lab", "skills", "trainer")


class MonitorSettings(ServiceSettings):
    """Everything that the monitor is told, read once at the start."""

    quiet_s: float = Field(default=120.0, gt=0, le=86_400)
    in_flight_timeout_s: float = Field(default=1800.0, gt=0, le=86_400)
    probe_interval_s: float = Field(default=30.0, ge=0.05, le=86_400)
    recheck_interval_s: float = Field(default=5.0, ge=0.05, le=86_400)
    probes: tuple[ProbeDeclaration, ...] = ()
    platform_url: str = ""
    platform_check_path: str = "/api/settings/safety-level"
    platform_check_json: bool = True
    plane_probes: bool = True
    gpu_service_url: str = ""
    comfyui_url: str = ""
    exports_dir: str = ""
    corroborate_interval_s: float = Field(default=10.0, ge=0.05, le=3_600)
    history_days: float = Field(default=14.0, gt=0)
    history_rows_per_probe: int = Field(default=50_000, ge=1)
    keep_alive_s: float = Field(default=15.0, gt=0)
    incident_after_looks: int = Field(default=3, ge=1)
    incident_after_s: float = Field(default=60.0, ge=0)
    incident_stable_s: float = Field(default=120.0, ge=0)
    incident_days: float = Field(default=365.0, gt=0)
    activity_half_life_weeks: float = Field(default=4.0, ge=1, le=52)
    busy_probability: float = Field(default=0.5, gt=0, le=1)
    activity_days: float = Field(default=400.0, ge=28)
    gpu_watch_interval_s: float = Field(default=2.0, ge=0.1)
    gpu_timeout_s: float = Field(default=5.0, gt=0, le=60)
    daemon_log: bool = True
    daemon_log_interval_s: float = Field(default=30.0, ge=0.1)
    daemon_log_bytes: int = Field(default=8 * 2**20, ge=4_096)
    daemon_log_files: int = Field(default=4, ge=1, le=100)

    @field_validator("platform_url", "gpu_service_url", "comfyui_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("expected http://… or https://…")
        path = forbidden_path(url)
        if path is not None:
            raise ValueError(
                f"{path} must never be polled: reading it registers the reader as an active user"
            )
        return url.rstrip("/")

    @field_validator("exports_dir")
    @classmethod
    def _is_absolute(cls, folder: str) -> str:
        if folder and not folder.startswith("/"):
            raise ValueError("expected an absolute folder")
        return folder

    @model_validator(mode="after")
    def _probes_fit(self) -> Self:
        names = [probe.name for probe in self.all_probes("/")]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"probe names are used twice: {', '.join(twice)}")
        return self

    def all_probes(self, home: str) -> tuple[ProbeDeclaration, ...]:
        """Declared probes and those that come by themselves, by name.

        By themselves come ``platform`` (where ``platform_url`` is set and no declared probe is marked),
        ``gpu``, ``disk-home`` for the folder ``home``, and ``plane-SERVICE``; a declared probe of the same
        kind and target, or of that name, replaces them.
        """
        probes = list(self.probes)
        names = {probe.name for probe in probes}
        if self.platform_url and not any(probe.platform for probe in probes):
            probes.append(
                ProbeDeclaration(
                    name="platform",
                    kind="http",
                    target=urljoin(self.platform_url + "/", self.platform_check_path.lstrip("/")),
                    platform=True,
                    expect_json=self.platform_check_json,
                )
            )
        if not any(probe.kind == "gpu" for probe in probes):
            probes.append(ProbeDeclaration(name="gpu", kind="gpu"))
        if "disk-home" not in names:
            probes.append(ProbeDeclaration(name="disk-home", kind="disk", target=home))
        if self.plane_probes:
            probes.extend(
                ProbeDeclaration(name=f"plane-{service}", kind="grpc_health", target=f"plane:{service}")
                for service in PLANE_NEIGHBOURS
                if f"plane-{service}" not in names
            )
        return tuple(sorted(probes, key=lambda probe: probe.name))

"""Probes as the settings declare them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nightshift_monitor.forbidden import forbidden_path
from nightshift_monitor.resources import PROBE_ID_PATTERN

ProbeKind = Literal["http", "grpc_health", "tcp", "disk", "gpu"]


class ProbeDeclaration(BaseModel):
    """One declared thing to look at: a table ``[[monitor.probes]]`` of settings.toml.

    ``target`` is a URL (http), ``host:port`` or ``plane:SERVICE`` (grpc_health), ``host:port`` (tcp), an
    absolute folder (disk), or empty (gpu). ``platform = true`` says that the platform counts as gone when
    this probe is down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=rf"^{PROBE_ID_PATTERN}$")
    kind: ProbeKind
    target: str = ""
    platform: bool = False
    interval_s: float | None = Field(default=None, ge=0.05, le=86_400)
    """Time between looks; None takes ``probe_interval_s``."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    degraded_latency_s: float = Field(default=2.0, gt=0)
    """An answer that takes longer is DEGRADED."""
    expect_status: int = Field(default=200, ge=100, le=599)
    """http: the status that means up; redirects are not followed."""
    expect_json: bool = False
    """http: whether the answer must be JSON. A single-page app answers every path with 200 and HTML."""
    service: str = ""
    """grpc_health: the service asked for; empty for the whole server."""
    degraded_free_ratio: float = Field(default=0.10, ge=0, le=1)
    """disk: less free space than this part of the whole is DEGRADED."""
    down_free_ratio: float = Field(default=0.01, ge=0, le=1)
    """disk: less free space than this is DOWN."""

    @field_validator("target")
    @classmethod
    def _not_forbidden(cls, target: str) -> str:
        path = forbidden_path(target)
        if path is not None:
            raise ValueError(
                f"{path} must never be polled: reading it registers the reader as an active user"
            )
        return target

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        match self.kind:
            case "http":
                if not self.target.startswith(("http://", "https://")):
                    raise ValueError("an http probe needs a target http://… or https://…")
            case "tcp":
                _host_and_port(self.target)
            case "grpc_health":
                if not self.target.startswith("plane:"):
                    _host_and_port(self.target)
            case "disk":
                if not self.target.startswith("/"):
                    raise ValueError("a disk probe needs an absolute folder as target")
            case "gpu":
                if self.target:
                    raise ValueError("a gpu probe has no target: it looks at all GPUs of this host")
        if self.down_free_ratio > self.degraded_free_ratio:
            raise ValueError("down_free_ratio must not be above degraded_free_ratio")
        return self

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host and port of a tcp or grpc_health target."""
        return _host_and_port(self.target)


def _host_and_port(target: str) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError("expected host:port")
    return host, int(port)

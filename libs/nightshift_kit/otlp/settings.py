"""Settings of the export: section [telemetry], environment NIGHTSHIFT_TELEMETRY_*, some of OTEL_*.

OpenTelemetry's own variables count below ours and above the file. As its specification asks, one with a value
that makes no sense is passed over with a warning, where one of ours keeps the service from starting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from nightshift_kit.settings import PlaneSettings, SectionSettings, section_settings

PREFIXES: Final = ("OTEL_", "NIGHTSHIFT_TELEMETRY_")
"""Variables that tell where to export to, and with which secrets."""

_DEFAULT_PORT: Final = 4317
_HEADER: Final = re.compile(r"[0-9a-z_.-]{1,64}")
_PLAIN: Final = re.compile(r"[\x20-\x7e]{0,4096}")


class TelemetrySettings(SectionSettings):
    """Where traces and metrics go, and how often.

    Attributes:
        otlp_endpoint: "http://HOST:PORT" or "https://HOST:PORT" of a collector that takes OTLP over gRPC;
            "" exports nothing.
        otlp_headers: Sent with each export (names in lower case); they are secrets and never shown.
        ca_file: PEM file with the authorities of an https endpoint; None for the machine's.
        certificate_file: PEM file of the certificate that we show, `key_file` of its key.
        key_file: See certificate_file.
        traces: Whether spans are exported.
        metrics: Whether metrics are exported.
        export_timeout_s: Longest that one export may take.
        spans_interval_s: Longest that a span waits.
        metrics_interval_s: Time between two exports of the metrics.
        max_queue_spans: Spans kept for a collector that does not answer; the oldest give way.
        root_spans_per_minute: Of reads, reports and the plane's own polling, as many traces may begin a
            minute, for each method; ten at once. Traces that a caller began, commands and acting calls are
            not thinned out.
        resource_attributes: Further attributes of each service as a resource.
    """

    otlp_endpoint: str = ""
    otlp_headers: dict[str, str] = Field(default_factory=dict, repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    traces: bool = True
    metrics: bool = True
    export_timeout_s: float = Field(default=10.0, ge=0.1, le=60)
    spans_interval_s: float = Field(default=5.0, ge=0.05, le=60)
    metrics_interval_s: float = Field(default=60.0, ge=0.05, le=3600)
    max_queue_spans: int = Field(default=2048, ge=1, le=65_536)
    root_spans_per_minute: float = Field(default=6.0, ge=0, le=1e9)
    resource_attributes: dict[str, str] = Field(default_factory=dict)

    @field_validator("otlp_endpoint")
    @classmethod
    def _usable_endpoint(cls, endpoint: str) -> str:
        if endpoint:
            _split(endpoint)
        return endpoint

    @field_validator("otlp_headers")
    @classmethod
    def _usable_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _HEADER.fullmatch(name) is None or name.endswith("-bin") or _PLAIN.fullmatch(value) is None:
                raise ValueError("names are lower-case letters, digits and -_. ; values are printable ASCII")
        return headers

    @model_validator(mode="after")
    def _key_with_certificate(self) -> TelemetrySettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together")
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""
        return bool(self.otlp_endpoint) and (self.traces or self.metrics)

    @property
    def secure(self) -> bool:
        """Whether the endpoint is reached over TLS."""
        return _split(self.otlp_endpoint)[0]

    @property
    def target(self) -> str:
        """The endpoint as gRPC wants it, "host:port"."""
        return _split(self.otlp_endpoint)[1]


def telemetry_settings(
    plane: PlaneSettings, environ: Mapping[str, str]
) -> tuple[TelemetrySettings, tuple[str, ...]]:
    """The settings, and what was wrong with variables of OpenTelemetry's that were passed over.

    Args:
        plane: Tells where settings.toml lies.
        environ: Where the standard's variables are looked for.

    Raises:
        SettingsInvalid: A key of ours is unknown or a value not allowed.
    """
    values, problems = _standard(environ)
    settings = section_settings(TelemetrySettings, "telemetry", plane, beneath_environment=values)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        settings = settings.model_copy(update={"traces": False, "metrics": False})
    return settings, tuple(problems)


def _standard(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []

    def take(name: str, key: str, parse: Any) -> None:
        text = environ.get(name, "").strip()
        if not text:
            return
        try:
            # Judged here, by the field's own rules: a foreign variable must not keep a service from starting.
            values[key] = getattr(TelemetrySettings(**{key: parse(text)}), key)
        except ValueError:
            problems.append(f"{name} is not usable here")

    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").strip().lower()
    if protocol in ("", "grpc"):
        insecure = environ.get("OTEL_EXPORTER_OTLP_INSECURE", "").strip().lower() == "true"
        scheme = "http" if insecure else "https"
        take(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "otlp_endpoint",
            lambda text: text if "://" in text else f"{scheme}://{text}",
        )
    elif "OTEL_EXPORTER_OTLP_ENDPOINT" in environ:
        problems.append("OTEL_EXPORTER_OTLP_ENDPOINT is not used: OTEL_EXPORTER_OTLP_PROTOCOL is not grpc")
    take("OTEL_EXPORTER_OTLP_HEADERS", "otlp_headers", lambda text: _pairs(text, lower=True))
    take("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca_file", _file)
    take("OTEL_TRACES_EXPORTER", "traces", _is_otlp)
    take("OTEL_METRICS_EXPORTER", "metrics", _is_otlp)
    take("OTEL_BSP_SCHEDULE_DELAY", "spans_interval_s", lambda text: int(text) / 1e3)
    take("OTEL_METRIC_EXPORT_INTERVAL", "metrics_interval_s", lambda text: int(text) / 1e3)
    take("OTEL_BSP_MAX_QUEUE_SIZE", "max_queue_spans", int)
    take("OTEL_RESOURCE_ATTRIBUTES", "resource_attributes", _pairs)
    return values, problems


def _split(endpoint: str) -> tuple[bool, str]:
    """Whether it is https, and "host:port". Raises ValueError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("must be host and port alone; secrets go into otlp_headers")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme == "https", f"{host}:{parts.port or _DEFAULT_PORT}"


def _pairs(text: str, *, lower: bool = False) -> dict[str, str]:
    """Of "name=value,name=value", percent-encoded. Raises ValueError."""
    pairs = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError("must be name=value, separated by commas")
        name = unquote(name.strip())
        pairs[name.lower() if lower else name] = unquote(value.strip())
    return pairs


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise ValueError("is no file")
    return Path(text)


def _is_otlp(text: str) -> bool:
    """Whether a list of exporters names ours."""
    return "otlp" in (one.strip().lower() for one in text.split(","))

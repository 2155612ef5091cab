"""Settings of the lab: section [lab] of settings.toml, environment NIGHTSHIFT_LAB_*."""

from __future__ import annotations

from nightshift_kit.settings import ServiceSettings


class LabSettings(ServiceSettings):
    """The lab's settings; the platform's folder is the plane's `platform_root`."""

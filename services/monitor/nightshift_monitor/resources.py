"""Names of the monitor's resources: everything about naming stands here.

Shapes: ``probes/{probe}`` with ``{probe}`` of 1 to 63 characters ``[a-z0-9-]``, beginning with a letter or
digit; ``incidents/{incident}`` with a UUIDv7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nightshift_kit.errors import IdInvalid
from nightshift_kit.ids import check_id
from nightshift_monitor.errors import IncidentNameInvalid, ProbeNameInvalid

PROBE_ID_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
_PROBE_NAME = re.compile(rf"probes/({PROBE_ID_PATTERN})")


@dataclass(frozen=True, slots=True)
class ProbeName:
    """``probes/{probe}``."""

    probe: str

    @property
    def name(self) -> str:
        """The resource name."""
        return f"probes/{self.probe}"

    @classmethod
    def parse(cls, name: str, *, field: str = "name") -> ProbeName:
        """Reads a resource name.

        Raises:
            ProbeNameInvalid: if the name has another shape; the violation names ``field``.
        """
        match = _PROBE_NAME.fullmatch(name)
        if match is None:
            raise ProbeNameInvalid.of(field)
        return cls(match.group(1))


@dataclass(frozen=True, slots=True)
class IncidentName:
    """``incidents/{incident}``."""

    incident: str

    @property
    def name(self) -> str:
        """The resource name."""
        return f"incidents/{self.incident}"

    @classmethod
    def parse(cls, name: str, *, field: str = "name") -> IncidentName:
        """Reads a resource name.

        Raises:
            IncidentNameInvalid: if the name has another shape; the violation names ``field``.
        """
        collection, _, incident = name.partition("/")
        try:
            check_id(incident, field)
        except IdInvalid as error:
            raise IncidentNameInvalid.of(field) from error
        if collection != "incidents":
            raise IncidentNameInvalid.of(field)
        return cls(incident)

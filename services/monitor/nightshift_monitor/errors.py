"""What the monitor refuses.

NightshiftError
├── ProbeUnknown        NOT_FOUND         PROBE_UNKNOWN    no probe of that name is declared
├── ProbeNameInvalid    INVALID_ARGUMENT  ID_INVALID       not of the form probes/{probe}
└── ActivityInvalid     INVALID_ARGUMENT  FIELD_INVALID    an activity report that says nothing sensible
"""

from __future__ import annotations

from typing import Self

from nightshift_kit.errors import Code, FieldViolation, NightshiftError


class ProbeUnknown(NightshiftError):
    """No probe of that name is declared in the settings."""

    code = Code.NOT_FOUND
    reason = "PROBE_UNKNOWN"


class ProbeNameInvalid(NightshiftError):
    """A name that is not of the form ``probes/{probe}``."""

    code = Code.INVALID_ARGUMENT
    reason = "ID_INVALID"

    @classmethod
    def of(cls, field: str) -> Self:
        """The error for one request field."""
        return cls(
            "A probe's name has the form probes/{probe}, with {probe} of [a-z0-9-].",
            violations=[FieldViolation(field, "expected probes/{probe}")],
        )


class ActivityInvalid(NightshiftError):
    """An activity report with a field that cannot be taken as it is."""

    code = Code.INVALID_ARGUMENT
    reason = "FIELD_INVALID"

    @classmethod
    def of(cls, field: str, description: str) -> Self:
        """The error for one request field."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])

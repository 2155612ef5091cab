"""What the monitor refuses.

NightshiftError
├── ProbeUnknown          NOT_FOUND            PROBE_UNKNOWN          no probe of that name is declared
├── ProbeNameInvalid      INVALID_ARGUMENT     ID_INVALID             not of the form probes/{probe}
├── ActivityInvalid       INVALID_ARGUMENT     FIELD_INVALID          an activity report without sense
├── IncidentUnknown       NOT_FOUND            INCIDENT_UNKNOWN       no incident of that name is kept
├── IncidentNameInvalid   INVALID_ARGUMENT     ID_INVALID             not of the form incidents/{incident}
├── IncidentAcknowledged  FAILED_PRECONDITION  INCIDENT_ACKNOWLEDGED  somebody else has acknowledged it
├── IncidentResolved      FAILED_PRECONDITION  INCIDENT_RESOLVED      it is over
└── CommentInvalid        INVALID_ARGUMENT     FIELD_INVALID          a comment that is too long
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


class IncidentUnknown(NightshiftError):
    """No incident of that name is kept."""

    code = Code.NOT_FOUND
    reason = "INCIDENT_UNKNOWN"

    @classmethod
    def of(cls, name: str) -> Self:
        """The error for one name."""
        return cls(f"There is no {name}.", metadata={"incident": name})


class IncidentNameInvalid(NightshiftError):
    """A name that is not of the form ``incidents/{incident}``."""

    code = Code.INVALID_ARGUMENT
    reason = "ID_INVALID"

    @classmethod
    def of(cls, field: str) -> Self:
        """The error for one request field."""
        return cls(
            "An incident's name has the form incidents/{incident}, with a UUID in lower case.",
            violations=[FieldViolation(field, "expected incidents/{incident}")],
        )


class IncidentAcknowledged(NightshiftError):
    """Somebody else has acknowledged the incident."""

    code = Code.FAILED_PRECONDITION
    reason = "INCIDENT_ACKNOWLEDGED"

    @classmethod
    def of(cls, name: str, acknowledger: str) -> Self:
        """The error for one incident."""
        return cls(
            f"{name} was acknowledged by {acknowledger}.",
            metadata={"incident": name, "acknowledger": acknowledger},
        )


class IncidentResolved(NightshiftError):
    """The incident is over."""

    code = Code.FAILED_PRECONDITION
    reason = "INCIDENT_RESOLVED"

    @classmethod
    def of(cls, name: str, resolver: str) -> Self:
        """The error for one incident; ``resolver`` is "" where it ended by itself."""
        return cls(
            f"{name} is over: {f'resolved by {resolver}' if resolver else 'it ended by itself'}.",
            metadata={"incident": name, "resolver": resolver},
        )


class CommentInvalid(NightshiftError):
    """A comment that cannot be kept."""

    code = Code.INVALID_ARGUMENT
    reason = "FIELD_INVALID"

    @classmethod
    def of(cls, limit: int) -> Self:
        """The error for the field ``comment``."""
        description = f"at most {limit} characters, none of them NUL"
        return cls(f"comment: {description}", violations=[FieldViolation("comment", description)])

"""What can go wrong in experience.

NightshiftError
├── PromptTooLarge, NonFinite, ValueNegative, TimeOrder, TimestampFuture,
│   SourceUnknown, SourceReserved, RulesInvalid, DeviceRequired   INVALID_ARGUMENT
├── RunUnknown, SessionUnknown, ImportJobUnknown, DirectoryNotFound  NOT_FOUND
├── RunIdReused                                                    ALREADY_EXISTS
└── ImportRunning, ImportJobEnded, CostUnknown, DeviceForgotten    FAILED_PRECONDITION
"""

from __future__ import annotations

from nightshift_kit.errors import AlreadyExists, Code, FieldError, NightshiftError, NotFound


class PromptTooLarge(FieldError):
    """A text is larger than 1 MiB of UTF-8."""

    reason = "PROMPT_TOO_LARGE"


class NonFinite(FieldError):
    """A number is NaN or infinite."""

    reason = "NON_FINITE"


class ValueNegative(FieldError):
    """A cost or a span is below 0."""

    reason = "VALUE_NEGATIVE"


class TimeOrder(FieldError):
    """An end lies before its beginning."""

    reason = "TIME_ORDER"


class TimestampFuture(FieldError):
    """An instant lies more than 24 hours ahead."""

    reason = "TIMESTAMP_FUTURE"


class SourceUnknown(FieldError):
    """There is no importer of that name."""

    reason = "SOURCE_UNKNOWN"


class SourceReserved(FieldError):
    """The source belongs to an importer."""

    reason = "SOURCE_RESERVED"


class RulesInvalid(FieldError):
    """A threshold or a weight is out of its range."""

    reason = "RULES_INVALID"


class RunUnknown(NotFound):
    """There is no such run."""

    reason = "RUN_UNKNOWN"


class DeviceRequired(FieldError):
    """No device is named: runs of unknown devices are not one's."""

    reason = "FIELD_REQUIRED"


class DeviceForgotten(NightshiftError):
    """The device was to be forgotten, and the run began before that."""

    code = Code.FAILED_PRECONDITION
    reason = "DEVICE_FORGOTTEN"


class SessionUnknown(NotFound):
    """No session has this name now."""

    reason = "SESSION_UNKNOWN"


class ImportJobUnknown(NotFound):
    """There is no such import."""

    reason = "IMPORT_JOB_UNKNOWN"


class DirectoryNotFound(NotFound):
    """The folder does not exist, or holds no exports."""

    reason = "DIRECTORY_NOT_FOUND"


class RunIdReused(AlreadyExists):
    """The run id, source and revision hold another content already."""

    reason = "RUN_ID_REUSED"


class ImportRunning(NightshiftError):
    """The project imports already."""

    code = Code.FAILED_PRECONDITION
    reason = "IMPORT_RUNNING"


class ImportJobEnded(NightshiftError):
    """The import has ended."""

    code = Code.FAILED_PRECONDITION
    reason = "IMPORT_JOB_ENDED"


class CostUnknown(NightshiftError):
    """No run of the project tells what it cost."""

    code = Code.FAILED_PRECONDITION
    reason = "COST_UNKNOWN"

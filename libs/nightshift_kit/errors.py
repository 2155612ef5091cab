"""What can go wrong, typed: each class owns its gRPC status name and its reason.

NightshiftError
├── what was asked cannot be understood            INVALID_ARGUMENT
│   ├── FieldInvalid, FieldRequired, FieldUnknown, TypeMismatch
│   ├── IdInvalid, EnumRequired, EnumUnknown
│   ├── PageSizeInvalid, PageTokenInvalid, FilterInvalid
│   ├── MalformedRequest, NestingTooDeep, EncodingInvalid
│   └── DeadlineRequired
├── who asks, and by what right
│   ├── IdentityMissing, GrantMissing, GrantExpired, GrantInvalid      UNAUTHENTICATED
│   ├── TokenInvalid, TokenForeign, TokenUnknown, TokenExpired,
│   │   TokenRevoked                                                   UNAUTHENTICATED
│   ├── TokenSubject, TokenPlaintext                                   PERMISSION_DENIED
│   ├── TokenUnverifiable                                              UNAVAILABLE
│   ├── CallerNotAllowed, GrantReplayed, GrantSubject, GrantScope,
│   │   GrantArgs, TierInsufficient, PathEscape                        PERMISSION_DENIED
│   └── Preempted, GlobalLock                                          FAILED_PRECONDITION
├── the state of things
│   ├── NotFound                                                       NOT_FOUND
│   ├── AlreadyExists, RequestIdReused                                 ALREADY_EXISTS
│   ├── EtagMismatch                                                   ABORTED
│   └── ContentChanged, DriftDetected, NotRegularFile, AuditUnavailable,
│       AuditBroken, MigrationFailed, SettingsInvalid                  FAILED_PRECONDITION
├── the machine
│   ├── DiskFull, Overloaded                                           RESOURCE_EXHAUSTED
│   ├── StorageReadOnly, StorageUnsupported                            FAILED_PRECONDITION
│   ├── DbBusy, StorageIo, Draining                                    UNAVAILABLE
│   └── StorageCorrupt                                                 DATA_LOSS
└── Internal                                                           INTERNAL

Services hang their own classes below these and draw their part of the tree in their own ``errors.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


class Code(enum.Enum):
    """gRPC status names, so that a core can name one without importing grpc."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong.

    Attributes:
        field: Path of the field as in the proto ("run.config_id", "runs[3].prompt").
        description: What is wrong with it and what would be right.
    """

    field: str
    description: str


class NightshiftError(Exception):
    """An error that a caller may see: the message, the reason and the metadata leave the process.

    Args:
        message: For people: what is wrong and what to do. Never holds secrets or users' texts.
        metadata: For programs, string to string.
        violations: For INVALID_ARGUMENT: the fields.
        retry_after_s: When trying again may help, in seconds; the class's default where None.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations: tuple[FieldViolation, ...] = tuple(violations)
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    def __str__(self) -> str:
        return self.message


class Internal(NightshiftError):
    """A bug of ours; what a caller sees is a reference to the log."""


# What was asked cannot be understood.


class FieldError(NightshiftError):
    """INVALID_ARGUMENT about one field; the subclasses say what kind."""

    code = Code.INVALID_ARGUMENT
    reason = "FIELD_INVALID"

    @classmethod
    def at(cls, field: str, description: str) -> FieldError:
        """Error of this class about one field.

        Args:
            field: Path of the field as in the proto.
            description: What is wrong with it and what would be right.
        """
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class FieldInvalid(FieldError):
    """A field's value is outside what its comment allows."""


class FieldRequired(FieldError):
    """A required field is missing or empty."""

    reason = "FIELD_REQUIRED"


class FieldUnknown(FieldError):
    """A field, key or mask path that does not exist."""

    reason = "FIELD_UNKNOWN"


class TypeMismatch(FieldError):
    """A value of another type than its key demands."""

    reason = "TYPE_MISMATCH"


class IdInvalid(FieldError):
    """An id or resource name that does not have its format."""

    reason = "ID_INVALID"


class EnumRequired(FieldError):
    """An enum field is UNSPECIFIED."""

    reason = "ENUM_REQUIRED"


class EnumUnknown(FieldError):
    """An enum field holds a number that this version does not know."""

    reason = "ENUM_UNKNOWN"


class PageSizeInvalid(FieldError):
    """``page_size`` is below 0."""

    reason = "PAGE_SIZE_INVALID"


class PageTokenInvalid(FieldError):
    """``page_token`` is not one of ours, or of another query."""

    reason = "PAGE_TOKEN_INVALID"


class FilterInvalid(FieldError):
    """``filter`` or ``order_by`` does not parse."""

    reason = "FILTER_INVALID"


class MalformedRequest(FieldError):
    """The bytes are not the message that the method takes."""

    reason = "MALFORMED_REQUEST"


class NestingTooDeep(FieldError):
    """A value is nested deeper than we read."""

    reason = "NESTING_TOO_DEEP"


class EncodingInvalid(FieldError):
    """Text that is not valid UTF-8."""

    reason = "ENCODING_INVALID"


class DeadlineRequired(FieldError):
    """An acting call came without a deadline."""

    reason = "DEADLINE_REQUIRED"


# Who asks, and by what right.


class IdentityMissing(NightshiftError):
    """The caller showed no certificate that we know."""

    code = Code.UNAUTHENTICATED
    reason = "IDENTITY_MISSING"


class TokenInvalid(NightshiftError):
    """What came as a local token has not the form of one: cut, altered, or more than one."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_INVALID"


class TokenForeign(NightshiftError):
    """The local token is another plane's."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_FOREIGN"


class TokenUnknown(NightshiftError):
    """There is no such local token: it was never issued, or its secret is wrong."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_UNKNOWN"


class TokenExpired(NightshiftError):
    """The local token's time is over."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_EXPIRED"


class TokenRevoked(NightshiftError):
    """The local token was taken back."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_REVOKED"


class TokenSubject(NightshiftError):
    """The local token does not belong to whom the connection's certificate names."""

    code = Code.PERMISSION_DENIED
    reason = "TOKEN_SUBJECT"


class TokenPlaintext(NightshiftError):
    """A local token came without encryption from elsewhere than this machine; count it as lost."""

    code = Code.PERMISSION_DENIED
    reason = "TOKEN_PLAINTEXT"


class TokenUnverifiable(NightshiftError):
    """The register of local tokens is damaged, so none is let in; certificates are not concerned."""

    code = Code.UNAVAILABLE
    reason = "TOKEN_UNVERIFIABLE"
    default_retry_after_s = 5.0


class CallerNotAllowed(NightshiftError):
    """This identity may not call this method."""

    code = Code.PERMISSION_DENIED
    reason = "CALLER_NOT_ALLOWED"


class GrantMissing(NightshiftError):
    """An acting method was called without a grant."""

    code = Code.UNAUTHENTICATED
    reason = "GRANT_MISSING"


class GrantExpired(NightshiftError):
    """The grant's time to begin the call is over."""

    code = Code.UNAUTHENTICATED
    reason = "GRANT_EXPIRED"


class GrantInvalid(NightshiftError):
    """The grant's signature, type or form is wrong."""

    code = Code.UNAUTHENTICATED
    reason = "GRANT_INVALID"


class GrantReplayed(NightshiftError):
    """The grant was used before, with other arguments."""

    code = Code.PERMISSION_DENIED
    reason = "GRANT_REPLAYED"


class GrantSubject(NightshiftError):
    """The grant belongs to another skill, run or certificate."""

    code = Code.PERMISSION_DENIED
    reason = "GRANT_SUBJECT"


class GrantScope(NightshiftError):
    """The grant is for another service or method."""

    code = Code.PERMISSION_DENIED
    reason = "GRANT_SCOPE"


class GrantArgs(NightshiftError):
    """The grant is for other arguments."""

    code = Code.PERMISSION_DENIED
    reason = "GRANT_ARGS"


class TierInsufficient(NightshiftError):
    """The method needs a higher tier than the grant has."""

    code = Code.PERMISSION_DENIED
    reason = "TIER_INSUFFICIENT"


class Preempted(NightshiftError):
    """A user is here: the grant's fence is void."""

    code = Code.FAILED_PRECONDITION
    reason = "PREEMPTED"


class GlobalLock(NightshiftError):
    """The global lock is on."""

    code = Code.FAILED_PRECONDITION
    reason = "GLOBAL_LOCK"


class PathEscape(NightshiftError):
    """A path leads outside its root: a link, ``..``, another mount or a hard link."""

    code = Code.PERMISSION_DENIED
    reason = "PATH_ESCAPE"


# The state of things.


class NotFound(NightshiftError):
    """The resource does not exist."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(NightshiftError):
    """A resource of that name exists."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class RequestIdReused(AlreadyExists):
    """The ``request_id`` was used for another request."""

    reason = "REQUEST_ID_REUSED"


class EtagMismatch(NightshiftError):
    """The resource changed since the caller read it."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"


class ContentChanged(NightshiftError):
    """What was approved is no longer what stands there."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTENT_CHANGED"


class DriftDetected(NightshiftError):
    """A file is neither what we last wrote nor what we expected: somebody else changed it."""

    code = Code.FAILED_PRECONDITION
    reason = "DRIFT_DETECTED"


class NotRegularFile(NightshiftError):
    """A FIFO, a device, a socket or a folder stands where a file is expected."""

    code = Code.FAILED_PRECONDITION
    reason = "NOT_REGULAR_FILE"


class AuditUnavailable(NightshiftError):
    """The audit event could not be written, so the action does not happen."""

    code = Code.FAILED_PRECONDITION
    reason = "AUDIT_UNAVAILABLE"


class AuditBroken(NightshiftError):
    """The audit chain does not verify."""

    code = Code.DATA_LOSS
    reason = "AUDIT_BROKEN"


class MigrationFailed(NightshiftError):
    """The database's schema cannot be brought to what this version needs."""

    code = Code.FAILED_PRECONDITION
    reason = "MIGRATION_FAILED"


class SettingsInvalid(NightshiftError):
    """settings.toml or the environment holds a key or a value that is not allowed."""

    code = Code.FAILED_PRECONDITION
    reason = "SETTINGS_INVALID"


# The machine.


class DiskFull(NightshiftError):
    """No space left; nothing of the call was done."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "DISK_FULL"


class Overloaded(NightshiftError):
    """More calls at once than the service takes."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    default_retry_after_s = 0.5


class StorageReadOnly(NightshiftError):
    """The store takes no writes; after a failed fsync until the service is started again."""

    code = Code.FAILED_PRECONDITION
    reason = "STORAGE_READ_ONLY"


class StorageUnsupported(NightshiftError):
    """The database program or its version is not one that we trust with data."""

    code = Code.FAILED_PRECONDITION
    reason = "STORAGE_UNSUPPORTED"


class DbBusy(NightshiftError):
    """Another process holds the database; nothing of the call was done."""

    code = Code.UNAVAILABLE
    reason = "DB_BUSY"
    default_retry_after_s = 0.25


class StorageIo(NightshiftError):
    """Reading or writing failed below us. Whether a write is on disk is not known."""

    code = Code.UNAVAILABLE
    reason = "STORAGE_IO"


class StorageCorrupt(NightshiftError):
    """The database file is damaged."""

    code = Code.DATA_LOSS
    reason = "STORAGE_CORRUPT"


class Draining(NightshiftError):
    """The service is stopping and takes no new calls."""

    code = Code.UNAVAILABLE
    reason = "DRAINING"
    default_retry_after_s = 1.0

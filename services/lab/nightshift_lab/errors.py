"""What the lab refuses.

NightshiftError
├── INVALID_ARGUMENT
│   ├── ConfigIdInvalid       CONFIG_ID_INVALID
│   ├── ThemeInvalid          THEME_INVALID
│   └── TranslationInvalid    TRANSLATION_INVALID
├── NOT_FOUND
│   ├── ConfigUnknown         CONFIG_UNKNOWN
│   ├── ProposalUnknown       PROPOSAL_UNKNOWN
│   ├── PromotionUnknown      PROMOTION_UNKNOWN
│   └── VersionGone           VERSION_GONE
├── ALREADY_EXISTS
│   ├── ConfigExists          CONFIG_EXISTS
│   └── ConfigIdCollision     CONFIG_ID_COLLISION
├── ABORTED
│   ├── PromotionConflict     PROMOTION_CONFLICT
│   └── (kit) EtagMismatch    ETAG_MISMATCH
├── PERMISSION_DENIED
│   ├── ProtectedFile         PROTECTED_FILE
│   └── (kit) PathEscape      PATH_ESCAPE
└── FAILED_PRECONDITION
    ├── TemplatesMissing      TEMPLATES_MISSING
    ├── PlatformMissing       PLATFORM_MISSING
    ├── ConfigNotTranslatable CONFIG_NOT_TRANSLATABLE
    ├── ProposalOpen          PROPOSAL_OPEN
    ├── ProposalState         PROPOSAL_STATE
    ├── AlreadyRolledBack     ALREADY_ROLLED_BACK
    ├── (kit) ContentChanged  CONTENT_CHANGED
    └── (kit) DriftDetected   DRIFT_DETECTED
"""

from __future__ import annotations

from nightshift_kit.errors import Code, FieldError, NightshiftError


class ConfigIdInvalid(FieldError):
    """An id that cannot be a config's: a path, dots, control signs; a new one is [a-z0-9_]{3,64}."""

    reason = "CONFIG_ID_INVALID"


class ThemeInvalid(FieldError):
    """Theme and keywords leave nothing that may stand in a config."""

    reason = "THEME_INVALID"


class TranslationInvalid(FieldError):
    """A text that may not be added: its language is not missing, or its form or words are refused."""

    reason = "TRANSLATION_INVALID"


class ConfigUnknown(NightshiftError):
    """No interception config of that id."""

    code = Code.NOT_FOUND
    reason = "CONFIG_UNKNOWN"


class ProposalUnknown(NightshiftError):
    """No proposal of that name."""

    code = Code.NOT_FOUND
    reason = "PROPOSAL_UNKNOWN"


class PromotionUnknown(NightshiftError):
    """No promotion of that name."""

    code = Code.NOT_FOUND
    reason = "PROMOTION_UNKNOWN"


class VersionGone(NightshiftError):
    """The bytes that a rollback would restore are no longer kept."""

    code = Code.NOT_FOUND
    reason = "VERSION_GONE"


class ConfigExists(NightshiftError):
    """Production has an interception config of that id."""

    code = Code.ALREADY_EXISTS
    reason = "CONFIG_EXISTS"


class ConfigIdCollision(NightshiftError):
    """A config of any kind has an id that folds alike."""

    code = Code.ALREADY_EXISTS
    reason = "CONFIG_ID_COLLISION"


class PromotionConflict(NightshiftError):
    """Somebody else promoted the very version that the caller saw."""

    code = Code.ABORTED
    reason = "PROMOTION_CONFLICT"


class ProtectedFile(NightshiftError):
    """A path that the lab never writes."""

    code = Code.PERMISSION_DENIED
    reason = "PROTECTED_FILE"


class TemplatesMissing(NightshiftError):
    """Production has no readable config to start from."""

    code = Code.FAILED_PRECONDITION
    reason = "TEMPLATES_MISSING"


class PlatformMissing(NightshiftError):
    """The platform's root or its folder of configs is not there."""

    code = Code.FAILED_PRECONDITION
    reason = "PLATFORM_MISSING"


class ConfigNotTranslatable(NightshiftError):
    """The config cannot be read, or no text can be added to its file without touching more."""

    code = Code.FAILED_PRECONDITION
    reason = "CONFIG_NOT_TRANSLATABLE"


class ProposalOpen(NightshiftError):
    """The id is proposed already, by a proposal that is still open."""

    code = Code.FAILED_PRECONDITION
    reason = "PROPOSAL_OPEN"


class ProposalState(NightshiftError):
    """The proposal's state does not allow it."""

    code = Code.FAILED_PRECONDITION
    reason = "PROPOSAL_STATE"


class AlreadyRolledBack(NightshiftError):
    """The promotion has been taken back."""

    code = Code.FAILED_PRECONDITION
    reason = "ALREADY_ROLLED_BACK"

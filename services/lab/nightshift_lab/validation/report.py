"""What validation found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

#: Levels in the order in which they run.
LEVELS = ("schema", "required", "allow_list", "id", "collision", "safety", "quality", "style", "language")


class Severity(Enum):
    """How grave a finding is: an error must be mended, a warning should be looked at."""

    ERROR = "ERROR"
    WARNING = "WARNING"


@dataclass(frozen=True)
class Finding:
    """One thing found: level, severity, dotted field ("" for the whole), UPPER_SNAKE reason, words."""

    level: str
    severity: Severity
    field: str
    reason: str
    message: str


def error(level: str, field: str, reason: str, message: str) -> Finding:
    """A finding that must be mended."""
    return Finding(level, Severity.ERROR, field, reason, message)


def warning(level: str, field: str, reason: str, message: str) -> Finding:
    """A finding that should be looked at."""
    return Finding(level, Severity.WARNING, field, reason, message)


@dataclass(frozen=True)
class Report:
    """Everything found, errors first, then by level; `nearest_similarity` is similarity.config_similarity."""

    findings: tuple[Finding, ...]
    nearest_config: str
    nearest_similarity: float
    levels: tuple[str, ...] = LEVELS

    @property
    def valid(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def reasons(self) -> set[str]:
        """Reasons of the errors."""
        return {finding.reason for finding in self.findings if finding.severity is Severity.ERROR}


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then in the order of the levels, fields and reasons; the same findings once."""
    return tuple(
        sorted(
            dict.fromkeys(findings),
            key=lambda f: (
                f.severity is not Severity.ERROR,
                LEVELS.index(f.level),
                f.field,
                f.reason,
                f.message,
            ),
        )
    )

"""What can be wrong with a search.

NightshiftError
├── QueryEmpty      INVALID_ARGUMENT QUERY_EMPTY
└── QueryTooLarge   INVALID_ARGUMENT QUERY_TOO_LARGE
"""

from __future__ import annotations

from nightshift_kit.errors import FieldError


class QueryEmpty(FieldError):
    """Nothing to look for."""

    reason = "QUERY_EMPTY"


class QueryTooLarge(FieldError):
    """The query is longer than 8 KiB of UTF-8."""

    reason = "QUERY_TOO_LARGE"

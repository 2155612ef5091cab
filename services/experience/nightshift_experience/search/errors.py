"""What can be wrong with a search.

NightshiftError
├── QueryEmpty      INVALID_ARGUMENT QUERY_EMPTY
└── QueryTooLarge   INVALID_ARGUMENT QUERY_TOO_LARGE
"""

from __future__ import annotations

from nightshift_kit.errors import Code, FieldViolation, NightshiftError


class QueryEmpty(NightshiftError):
    """Nothing to look for."""

    code = Code.INVALID_ARGUMENT
    reason = "QUERY_EMPTY"

    def __init__(self) -> None:
        super().__init__(
            "the query is blank", violations=[FieldViolation("query", "must hold something to look for")]
        )


class QueryTooLarge(NightshiftError):
    """The query is longer than 8 KiB of UTF-8."""

    code = Code.INVALID_ARGUMENT
    reason = "QUERY_TOO_LARGE"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the query has {size_bytes} bytes",
            violations=[FieldViolation("query", f"must have at most {limit_bytes} bytes")],
        )

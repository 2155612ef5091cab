"""What a client needs of an endpoint; `_openai` and `_anthropic` are the two that exist."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from .errors import LlmError, LlmRateLimited, LlmRefused, LlmUnavailable
from .settings import LlmSettings


@dataclass(frozen=True, slots=True)
class Request:
    """One question as it goes out; `schema` is the JSON schema of the answer."""

    system: str = field(repr=False)
    user: str = field(repr=False)
    schema_name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """One raw answer.

    Attributes:
        text: What the model wrote.
        whole: Whether it came to an end by itself: not cut off, not filtered, not refused.
        why_not: Why it is not whole, in a word of the endpoint's protocol.
        input_tokens, output_tokens: As the endpoint counted; 0 where it did not.
    """

    text: str = field(repr=False)
    whole: bool
    why_not: str
    input_tokens: int
    output_tokens: int


class Endpoint(Protocol):
    """One way to a model."""

    async def complete(self, request: Request) -> Completion:
        """Asks once. Raises LlmError; being cancelled closes the connection, which ends the work there."""
        ...

    async def close(self) -> None:
        """Lets go of all connections."""
        ...


def refusal(status: int, headers: Mapping[str, str], now: datetime, settings: LlmSettings) -> LlmError:
    """The error for an HTTP status other than success; nothing of the body is passed on."""
    where = f"{settings.model} answered with HTTP status {status}."
    metadata = {"status": str(status), "model": settings.model}
    if status == 429:
        wait_s = retry_after_s(headers.get("retry-after", ""), now)
        short = wait_s is None or wait_s <= settings.longest_wait_s
        return LlmRateLimited(where, retryable=short, metadata=metadata, retry_after_s=wait_s)
    if status in {408, 409, 425} or status >= 500:
        wait_s = retry_after_s(headers.get("retry-after", ""), now)
        short = wait_s is None or wait_s <= settings.longest_wait_s
        return LlmUnavailable(where, retryable=short, metadata=metadata, retry_after_s=wait_s)
    return LlmRefused(where, metadata=metadata)


def retry_after_s(value: str, now: datetime) -> float | None:
    """Seconds that a Retry-After asks for (a number or a date, RFC 9110); None where it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - now).total_seconds()
    return max(0.0, seconds) if seconds < 1e9 else None

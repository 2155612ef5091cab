"""What can go wrong with a language model.

NightshiftError
└── LlmError
    ├── LlmNotConfigured    LLM_NOT_CONFIGURED    FAILED_PRECONDITION
    ├── LlmRefused          LLM_REFUSED           FAILED_PRECONDITION   (key, model or request not accepted)
    ├── LlmOutputInvalid    LLM_OUTPUT_INVALID    FAILED_PRECONDITION
    ├── LlmBudget           LLM_BUDGET            RESOURCE_EXHAUSTED
    ├── LlmRateLimited      LLM_RATE_LIMITED      RESOURCE_EXHAUSTED    (with the wait that it asks for)
    ├── LlmTimeout          LLM_TIMEOUT           DEADLINE_EXCEEDED
    └── LlmUnavailable      LLM_UNAVAILABLE       UNAVAILABLE

No message of these holds a prompt, an answer or what the endpoint said: any of them may quote users' words.
"""

from __future__ import annotations

from collections.abc import Mapping

from nightshift_kit.errors import Code, NightshiftError


class LlmError(NightshiftError):
    """Base of all; `retryable` says whether the same question may be answered better a moment later."""

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after_s=retry_after_s)
        self.retryable = retryable


class LlmNotConfigured(LlmError):
    """No model is set, or its library is not installed."""

    code = Code.FAILED_PRECONDITION
    reason = "LLM_NOT_CONFIGURED"


class LlmRefused(LlmError):
    """The endpoint refuses the key, the model or the request."""

    code = Code.FAILED_PRECONDITION
    reason = "LLM_REFUSED"


class LlmOutputInvalid(LlmError):
    """The answer is not what was asked for; nothing of it is used."""

    code = Code.FAILED_PRECONDITION
    reason = "LLM_OUTPUT_INVALID"


class LlmBudget(LlmError):
    """The call could cost more than it may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "LLM_BUDGET"


class LlmRateLimited(LlmError):
    """The endpoint takes no more calls for now."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "LLM_RATE_LIMITED"


class LlmTimeout(LlmError):
    """No whole answer in time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "LLM_TIMEOUT"


class LlmUnavailable(LlmError):
    """The endpoint cannot be reached or is broken."""

    code = Code.UNAVAILABLE
    reason = "LLM_UNAVAILABLE"

"""Language models: typed answers from OpenAI-compatible endpoints, and from Anthropic's for the teacher."""

from .client import Answer, LlmClient
from .errors import (
    LlmBudget,
    LlmError,
    LlmNotConfigured,
    LlmOutputInvalid,
    LlmRateLimited,
    LlmRefused,
    LlmTimeout,
    LlmUnavailable,
)
from .prompts import Prompt, Untrusted
from .settings import LlmSettings

__all__ = [
    "Answer",
    "LlmBudget",
    "LlmClient",
    "LlmError",
    "LlmNotConfigured",
    "LlmOutputInvalid",
    "LlmRateLimited",
    "LlmRefused",
    "LlmSettings",
    "LlmTimeout",
    "LlmUnavailable",
    "Prompt",
    "Untrusted",
]

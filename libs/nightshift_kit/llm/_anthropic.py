"""Anthropic's messages, for the teacher; the library comes with the extra `teacher`."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any

from .endpoint import Completion, Request, refusal
from .errors import LlmNotConfigured, LlmOutputInvalid, LlmTimeout, LlmUnavailable
from .settings import LlmSettings


class AnthropicEndpoint:
    """See Endpoint. The answer comes as the input of a tool that the model has to use."""

    def __init__(self, settings: LlmSettings) -> None:
        """Raises LlmNotConfigured where the library or the key is missing."""
        try:
            import anthropic
        except ImportError as error:
            raise LlmNotConfigured(
                "The library anthropic is not installed; install the extra teacher."
            ) from error
        # It tells whole requests at DEBUG.
        logging.getLogger("anthropic").setLevel(logging.WARNING)
        self._library: Any = anthropic
        self._settings = settings
        self._client = anthropic.AsyncAnthropic(
            base_url=settings.base_url, api_key=settings.key(), max_retries=0, timeout=settings.timeout_s
        )

    async def complete(self, request: Request) -> Completion:
        """See Endpoint."""
        settings, library = self._settings, self._library
        tool = {"name": request.schema_name, "input_schema": dict(request.schema)}
        try:
            async with asyncio.timeout(settings.timeout_s):
                answer = await self._client.messages.create(
                    model=settings.model,
                    system=request.system,
                    messages=[{"role": "user", "content": request.user}],
                    tools=[tool],
                    tool_choice={"type": "tool", "name": request.schema_name},
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                )
        except (TimeoutError, library.APITimeoutError):
            raise LlmTimeout(
                f"No whole answer of {settings.model} within {settings.timeout_s:g} s."
            ) from None
        except library.APIStatusError as error:
            headers = {key.lower(): value for key, value in error.response.headers.items()}
            raise refusal(error.status_code, headers, datetime.now(UTC), settings) from None
        except library.APIConnectionError:
            raise LlmUnavailable(f"{settings.model} cannot be reached.", retryable=True) from None
        used = next((block for block in answer.content if block.type == "tool_use"), None)
        if used is None:
            raise LlmOutputInvalid(
                f"{settings.model} sent no answer of the wanted form.",
                retryable=True,
                metadata={"why": "no_completion"},
            )
        whole = answer.stop_reason == "tool_use"
        return Completion(
            text=json.dumps(used.input, ensure_ascii=False),
            whole=whole,
            why_not="" if whole else str(answer.stop_reason)[:40],
            input_tokens=int(answer.usage.input_tokens),
            output_tokens=int(answer.usage.output_tokens),
        )

    async def close(self) -> None:
        """See Endpoint."""
        await self._client.close()

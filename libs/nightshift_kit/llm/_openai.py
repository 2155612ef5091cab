"""Chat completions as OpenAI's API defines them: Ollama, vLLM, OpenRouter and others speak it as well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai

from .endpoint import Completion, Request, refusal
from .errors import LlmOutputInvalid, LlmRefused, LlmTimeout, LlmUnavailable
from .settings import LlmSettings

# The library and its transport tell whole requests at DEBUG, prompts and keys included, and OPENAI_LOG turns
# that on from outside.
_TALKATIVE = ("openai", "httpx2", "httpcore2")


class _TooLarge(Exception):  # noqa: N818 - travels through the library, becomes ours below
    """More bytes than an answer may have."""


class OpenAiEndpoint:
    """See Endpoint. The library's own retries are off: the client decides what is tried again."""

    def __init__(self, settings: LlmSettings) -> None:
        """Raises LlmNotConfigured where the key file cannot be read."""
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings = settings
        http = httpx2.AsyncClient(
            transport=_Bounded(settings.max_answer_bytes),
            timeout=settings.timeout_s,
            # Neither key nor texts follow an endpoint to somewhere else.
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )
        # Typed as texts only, yet this is how the library is told to leave a header out.
        unsent: Any = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            # A server without keys takes any; the library insists on one.
            api_key=settings.key() or "none",
            # What the library would take from the environment of whoever started us is not for this endpoint.
            organization="",
            project="",
            max_retries=0,
            http_client=http,
            default_headers=unsent,
        )

    async def complete(self, request: Request) -> Completion:
        """See Endpoint."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.timeout_s):
                answer = await self._client.chat.completions.create(
                    model=settings.model,
                    messages=[
                        {"role": "system", "content": request.system},
                        {"role": "user", "content": request.user},
                    ],
                    response_format={
                        "type": "json_schema",
                        "json_schema": {
                            "name": request.schema_name,
                            "schema": dict(request.schema),
                            "strict": True,
                        },
                    },
                    max_tokens=settings.max_tokens,
                    temperature=settings.temperature,
                    stream=False,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise LlmTimeout(
                f"No whole answer of {settings.model} within {settings.timeout_s:g} s."
            ) from _hidden(error)
        except openai.APIStatusError as error:
            headers = {key.lower(): value for key, value in error.response.headers.items()}
            raise refusal(error.status_code, headers, datetime.now(UTC), settings) from _hidden(error)
        except openai.APIResponseValidationError as error:
            raise _no_completion(settings) from _hidden(error)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _TooLarge):
                raise _too_large(settings) from _hidden(error)
            raise LlmUnavailable(f"{settings.model} cannot be reached.", retryable=True) from _hidden(error)
        except _TooLarge as error:
            raise _too_large(settings) from error
        except openai.OpenAIError as error:
            raise LlmRefused(f"{settings.model} cannot be asked like this.") from _hidden(error)
        except (ValueError, httpx2.HTTPError) as error:
            # A body that says it is JSON and is not; a connection that ends half way.
            raise LlmUnavailable(
                f"{settings.model} sent an answer that ends half way or is no JSON.", retryable=True
            ) from _hidden(error)
        return _completion(answer, settings)

    async def close(self) -> None:
        """See Endpoint."""
        await self._client.close()


def _hidden(error: BaseException) -> BaseException:
    """The error's kind without what it quotes: a traceback goes into the log."""
    return RuntimeError(type(error).__name__)


def _too_large(settings: LlmSettings) -> LlmOutputInvalid:
    return LlmOutputInvalid(
        f"{settings.model} sent more than {settings.max_answer_bytes} bytes.", metadata={"why": "too_large"}
    )


def _no_completion(settings: LlmSettings) -> LlmOutputInvalid:
    return LlmOutputInvalid(
        f"{settings.model} sent something that is no chat completion.",
        retryable=True,
        metadata={"why": "no_completion"},
    )


def _completion(answer: Any, settings: LlmSettings) -> Completion:
    # The library takes any JSON for a completion: each field may be missing or of another type.
    try:
        choice = answer.choices[0]
        text, finish, refused = (
            choice.message.content,
            choice.finish_reason,
            getattr(choice.message, "refusal", None),
        )
    except (AttributeError, IndexError, TypeError) as error:
        raise _no_completion(settings) from _hidden(error)
    usage = getattr(answer, "usage", None)
    why_not = "refusal" if refused else "" if finish == "stop" else str(finish)[:40]
    if not why_not and not isinstance(text, str):
        raise _no_completion(settings)
    return Completion(
        text=text if isinstance(text, str) else "",
        whole=not why_not,
        why_not=why_not,
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, 0)
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


class _Bounded(httpx2.AsyncHTTPTransport):
    """Reads no more of an answer than it may have, errors' bodies included."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            # Not asked for, and a few bytes of it may unfold to any number.
            await response.aclose()
            raise _TooLarge
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream, self._limit_bytes)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limit_bytes: int) -> None:
        self._stream = stream
        self._left = limit_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise _TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

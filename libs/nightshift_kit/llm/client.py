"""Asking a model for typed data: what comes back is an object of the asked class, or an error.

What a model writes is inert: it is parsed, held against a strict schema and handed on as values. It is never
executed, never logged, and decides nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
import tenacity
from pydantic import BaseModel, ValidationError

from .endpoint import Completion, Endpoint, Request
from .errors import LlmBudget, LlmError, LlmNotConfigured, LlmOutputInvalid
from .prompts import Prompt
from .settings import LlmSettings

AnswerT = TypeVar("AnswerT", bound=BaseModel)
_log = structlog.get_logger("nightshift.llm")
_FIRST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer(Generic[AnswerT]):
    """A typed answer and what it took, failed tries included; costs in US dollars from configured prices."""

    value: AnswerT
    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: float
    attempts: int


@dataclass(slots=True)
class _Spent:
    input_tokens: int = 0
    output_tokens: int = 0
    attempts: int = 0


class LlmClient:
    """Asks one model.

    Args:
        settings: Which, and its limits.
        endpoint: The way to it; made from the settings at the first question where not given, because the
            libraries take a second to load.
        sleep: Waits between tries; seconds.
    """

    def __init__(
        self,
        settings: LlmSettings,
        *,
        endpoint: Endpoint | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.settings = settings
        self._endpoint = endpoint
        self._sleep = sleep

    @property
    def configured(self) -> bool:
        """Whether there is a model to ask."""
        return self.settings.configured

    def highest_cost_usd(self, prompt: Prompt) -> float:
        """Upper bound of what a question costs, all tries together: a token has at least one byte."""
        settings = self.settings
        return settings.attempts * settings.cost_usd(prompt.size_bytes + 1024, settings.max_tokens)

    async def ask(
        self,
        prompt: Prompt,
        answer: type[AnswerT],
        *,
        check: Callable[[AnswerT], str] | None = None,
        on_cost: Callable[[float], None] | None = None,
    ) -> Answer[AnswerT]:
        """The model's answer as an object of `answer`.

        Args:
            prompt: The question.
            answer: A pydantic model that forbids extra fields; its JSON schema goes out with the question.
            check: Says what else is wrong with an answer, "" if nothing; a wrong one is asked for again. Its
                words reach the caller, so they must not quote the answer.
            on_cost: Told what was spent (US dollars), also where the question fails.

        Raises:
            LlmNotConfigured, LlmBudget, LlmRefused, LlmOutputInvalid, LlmRateLimited, LlmTimeout,
            LlmUnavailable.
        """
        settings = self.settings
        if not settings.configured:
            raise LlmNotConfigured("No language model is set; set its base_url and model.")
        highest = self.highest_cost_usd(prompt)
        if settings.max_cost_usd and highest > settings.max_cost_usd:
            raise LlmBudget(
                f"The question could cost {highest:.4f} $; {settings.max_cost_usd:.4f} $ are allowed.",
                metadata={"highest_usd": f"{highest:.6f}"},
            )
        spent = _Spent()

        async def once() -> AnswerT:
            return await self._ask_once(prompt, answer, check, spent)

        try:
            value = await self._retrying(once)
        finally:
            cost = settings.cost_usd(spent.input_tokens, spent.output_tokens)
            if on_cost is not None:
                on_cost(cost)
        return Answer(value, settings.model, spent.input_tokens, spent.output_tokens, cost, spent.attempts)

    async def close(self) -> None:
        """Lets go of all connections."""
        if self._endpoint is not None:
            await self._endpoint.close()

    async def _retrying(self, once: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        options: dict[str, Any] = {} if self._sleep is None else {"sleep": self._sleep}
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, LlmError) and error.retryable),
            wait=self._wait_s,
            reraise=True,
            **options,
        )
        answer: AnswerT = await retrying(once)
        return answer

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, LlmOutputInvalid):
            return 0.0  # the endpoint is well; the next answer may be, too
        longest_s = self.settings.longest_wait_s
        if isinstance(error, LlmError) and error.retry_after_s is not None:
            return min(error.retry_after_s, longest_s)
        return min(_FIRST_WAIT_S * float(2 ** (state.attempt_number - 1)), longest_s)

    async def _ask_once(
        self,
        prompt: Prompt,
        answer: type[AnswerT],
        check: Callable[[AnswerT], str] | None,
        spent: _Spent,
    ) -> AnswerT:
        spent.attempts += 1
        system, user = prompt.rendered()
        try:
            completion = await self._way().complete(
                Request(system, user, answer.__name__, answer.model_json_schema())
            )
            spent.input_tokens += completion.input_tokens
            spent.output_tokens += completion.output_tokens
            return self._parsed(completion, answer, check)
        except LlmError as error:
            _log.info(
                "llm_call_failed",
                model=self.settings.model,
                reason=error.reason,
                why=error.metadata.get("why", error.metadata.get("status", "")),
                attempt=spent.attempts,
            )
            raise

    def _way(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = endpoint_of(self.settings)
        return self._endpoint

    def _parsed(
        self, completion: Completion, answer: type[AnswerT], check: Callable[[AnswerT], str] | None
    ) -> AnswerT:
        model = self.settings.model
        if not completion.whole:
            # Asked again it would be cut off, filtered or refused at the same place.
            raise LlmOutputInvalid(
                f"The answer of {model} is not whole ({completion.why_not}).",
                metadata={"why": completion.why_not},
            )
        try:
            json.loads(
                completion.text,
                object_pairs_hook=_without_duplicates,
                parse_constant=_no_constant,
                parse_float=_finite,
            )
            value = answer.model_validate_json(completion.text, strict=True)
        except ValidationError as error:
            places = sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})
            known = [place for place in places if all(part.isidentifier() for part in place.split("."))]
            raise LlmOutputInvalid(
                f"The answer of {model} is not of the asked form ({error.error_count()} faults).",
                retryable=True,
                metadata={"why": "schema", "first": known[0][:80] if known else ""},
            ) from None
        except (ValueError, RecursionError):
            raise LlmOutputInvalid(
                f"The answer of {model} is no JSON.", retryable=True, metadata={"why": "no_json"}
            ) from None
        complaint = check(value) if check is not None else ""
        if complaint:
            raise LlmOutputInvalid(
                f"The answer of {model} is refused: {complaint}", retryable=True, metadata={"why": "check"}
            )
        return value


def endpoint_of(settings: LlmSettings) -> Endpoint:
    """The endpoint that the settings name. Raises LlmNotConfigured where its library or key is missing."""
    if settings.provider == "anthropic":
        from ._anthropic import AnthropicEndpoint

        return AnthropicEndpoint(settings)
    try:
        from ._openai import OpenAiEndpoint
    except ImportError as error:
        raise LlmNotConfigured("The library openai is not installed; install the extra lab.") from error
    return OpenAiEndpoint(settings)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value

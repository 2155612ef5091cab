"""Settings of a language model: a section of a service's own ([lab.llm], NIGHTSHIFT_LAB_LLM__MODEL)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from .errors import LlmNotConfigured

_LARGEST_KEY_BYTES = 4096


class LlmSettings(BaseModel):
    """One model at one endpoint. Without `model` there is none.

    Attributes:
        provider: "openai" for every endpoint that speaks its chat completions (Ollama, vLLM, OpenRouter),
            "anthropic" where the extra `teacher` is installed.
        base_url: Of the API, with its version ("http://127.0.0.1:11434/v1").
        model: Its name there; "" for no model at all.
        api_key: The key itself; better is
        api_key_file: a file that holds nothing but the key.
        timeout_s: For one whole answer.
        max_tokens: Longest answer.
        temperature: 0 for answers that vary as little as the model allows.
        attempts: Tries in all, the first included.
        longest_wait_s: Longest wait between two tries; an endpoint that asks for more is not waited for.
        max_answer_bytes: What is longer is not read to its end.
        input_usd_per_million, output_usd_per_million: Prices of a million tokens; 0 for a model of one's own.
        max_cost_usd: What one question may cost at most, all its tries together; 0 for no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: Literal["openai", "anthropic"] = "openai"
    base_url: str = "http://127.0.0.1:11434/v1"
    model: str = Field(default="", max_length=200)
    api_key: SecretStr = SecretStr("")
    api_key_file: Path | None = None
    timeout_s: float = Field(default=60.0, gt=0, le=600, allow_inf_nan=False)
    max_tokens: int = Field(default=4096, ge=16, le=131_072)
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False)
    attempts: int = Field(default=3, ge=1, le=10)
    longest_wait_s: float = Field(default=20.0, ge=0, le=300, allow_inf_nan=False)
    max_answer_bytes: int = Field(default=1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    input_usd_per_million: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    output_usd_per_million: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @field_validator("base_url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http or https URL")
        if parts.username or parts.password or parts.query:
            # It is shown in logs and to people; a key has a setting of its own.
            raise ValueError("must not carry a user, a password or a query")
        return url

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key.get_secret_value() and self.api_key_file is not None:
            raise ValueError("give api_key or api_key_file, not both")
        return self

    @property
    def configured(self) -> bool:
        """Whether there is a model."""
        return bool(self.model)

    @property
    def costs_money(self) -> bool:
        """Whether calls are paid for."""
        return self.input_usd_per_million > 0 or self.output_usd_per_million > 0

    def key(self) -> str:
        """The API key, "" where none is needed.

        Raises:
            LlmNotConfigured: the file cannot be read, or does not hold one line of printable ASCII.
        """
        if self.api_key_file is None:
            return self.api_key.get_secret_value()
        try:
            with self.api_key_file.expanduser().open("rb") as file:
                key = file.read(_LARGEST_KEY_BYTES + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LlmNotConfigured(f"The key file {self.api_key_file} cannot be read.") from error
        if not key or len(key) > _LARGEST_KEY_BYTES or not key.isprintable() or " " in key:
            raise LlmNotConfigured(f"The key file {self.api_key_file} must hold one key and nothing else.")
        return key

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in US dollars."""
        return (input_tokens * self.input_usd_per_million + output_tokens * self.output_usd_per_million) / 1e6

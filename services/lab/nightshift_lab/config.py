"""Settings of the lab: section [lab] of settings.toml, environment NIGHTSHIFT_LAB_*."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from nightshift_kit.llm import LlmSettings
from nightshift_kit.settings import ServiceSettings


class LabSettings(ServiceSettings):
    """The lab's settings; the platform's folder is the plane's `platform_root`.

    Attributes:
        llm: The language model that drafts translations ([lab.llm], NIGHTSHIFT_LAB_LLM__MODEL); none as yet.
        llm_budget_usd_per_day: What a model with prices may cost on a UTC day. 0 by default: drafts are made
            before anybody approves a plan, so money needs the operator's word first.
    """

    model_config = SettingsConfigDict(env_nested_delimiter="__")

    llm: LlmSettings = LlmSettings()
    llm_budget_usd_per_day: float = Field(default=0.0, ge=0, allow_inf_nan=False)

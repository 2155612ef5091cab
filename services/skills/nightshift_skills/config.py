"""Settings of the skills service: [skills] in settings.toml, NIGHTSHIFT_SKILLS_<KEY>."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nightshift_kit.settings import ServiceSettings
from nightshift_skills.budgets import BudgetSettings


class PluginSettings(BaseModel):
    """[skills.plugins.NAME]: enables one plug-in.

    Attributes:
        digest: Of its distribution, as `nightshift skills plugins` shows it.
        reads, methods: Fewer than its manifest asks for; None means all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    reads: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None


class SkillsSettings(ServiceSettings):
    """Frozen, read once.

    Attributes:
        tick_s: Between two looks at everything.
        approval_ttl_s: Until when a plan can be decided on.
        denied_rest_s: Least rest of a skill on a subject after a denial.
        approval_requests_per_hour: Questions that triggers may ask for one skill within an hour.
        max_pending_approvals: Questions of one skill that may wait before triggers ask no more.
        failed_rest_s: Rest of a trigger on a subject after a failure.
        two_person: Whether somebody else than the plan's maker must approve.
        tiers: Skill → tier; may only tighten.
        cooldowns_s: Skill → rest between two runs on the same subject.
        crons: Skill → cron expressions of five fields, in the plane's time zone.
        intervals_s: Skill → seconds after which it is called for again; beside what it declares.
        new_data_runs: Skill → new runs since its last success that call for it.
        budget: What all skills together may use in a day; skill_budget: what any one may.
        budgets: Skill → what it may use in a day, where that is not skill_budget.
        max_background_runs: Background runs at once, health checks not counted.
        platform_gone_grace_s: How long background work goes on after the platform is gone.
        backoff_first_s, backoff_max_s, backoff_clean_s: Back-off after pre-emptions: first span, longest
            span,
            and the clean time that resets it.
        project: Whose experience is looked after.
        min_production_runs: Needed before configs are proposed.
        detect_min_new_runs: New runs before opportunities are looked for again.
        aggregate_interval_s: Longest time between two aggregations.
        embed_batch: Prompts a call of EmbedPending.
        vram_high_percent: Used memory of the GPU above which idle models are proposed for unloading.
        vram_target_percent: … and down to which they are unloaded.
        call_retry_s: How long a call is tried again while a service is away.
        checkpoint_interval_s: Least time between two signed checkpoints of the audit chain.
        checkpoint_copy: A second place for the checkpoints, on another disk or host: a file, or a folder that
            is there; "" for none.
        autonomy_min_runs: Successful runs, each approved by a person, before a skill can be delegated.
        plugins: Plug-ins that are enabled, by name of their entry point.
        plugins_without: Layers of the sandbox that may be missing on this machine.
        plugin_timeout_s: How long a plug-in may plan.
        plugin_memory_bytes: Address space, and memory of its cgroup.
        plugin_cgroup: A delegated cgroup v2 folder that hands on memory and pids; "" means the service's own.
        leader_lease_s: How long a leader may be silent before a standby takes over; PostgreSQL alone.
        peers_port_base: From where the other services' ports are counted, where that is not this process's
            own base: a second replica on the same host listens elsewhere.
        addresses, control_addresses: Service → host:port, where it is not at this host's usual port.
    """

    model_config = SettingsConfigDict(env_nested_delimiter="__")

    tick_s: float = Field(default=30.0, gt=0)
    approval_ttl_s: float = Field(default=259_200.0, gt=0)
    denied_rest_s: float = Field(default=86_400.0, ge=0)
    approval_requests_per_hour: int = Field(default=6, ge=0)
    max_pending_approvals: int = Field(default=3, ge=0)
    failed_rest_s: float = Field(default=300.0, ge=0)
    two_person: bool = False
    tiers: dict[str, str] = Field(default_factory=dict)
    cooldowns_s: dict[str, float] = Field(default_factory=dict)
    crons: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    intervals_s: dict[str, PositiveFloat] = Field(default_factory=dict)
    new_data_runs: dict[str, PositiveInt] = Field(default_factory=dict)
    budget: BudgetSettings = BudgetSettings(runs_per_day=1_000, cost_usd_per_day=5.0, gpu_hours_per_day=12.0)
    skill_budget: BudgetSettings = BudgetSettings(
        runs_per_day=200, cost_usd_per_day=2.0, gpu_hours_per_day=12.0
    )
    budgets: dict[str, BudgetSettings] = Field(default_factory=dict)
    max_background_runs: int = Field(default=1, ge=1)
    platform_gone_grace_s: float = Field(default=60.0, ge=0)
    backoff_first_s: float = Field(default=30.0, ge=0)
    backoff_max_s: float = Field(default=900.0, ge=0)
    backoff_clean_s: float = Field(default=3600.0, ge=0)
    project: str = Field(default="projects/default", pattern=r"^projects/[^/]+$")
    min_production_runs: int = Field(default=500, ge=0)
    detect_min_new_runs: int = Field(default=50, ge=0)
    aggregate_interval_s: float = Field(default=86_400.0, gt=0)
    embed_batch: int = Field(default=512, ge=1, le=4096)
    vram_high_percent: float = Field(default=80.0, gt=0, le=100)
    vram_target_percent: float = Field(default=70.0, ge=0, le=100)
    call_retry_s: float = Field(default=30.0, ge=0)
    checkpoint_interval_s: float = Field(default=10.0, ge=0)
    checkpoint_copy: str = ""
    autonomy_min_runs: int = Field(default=10, ge=1)
    plugins: dict[str, PluginSettings] = Field(default_factory=dict)
    plugins_without: tuple[Literal["cgroup", "ipc", "landlock", "net", "seccomp"], ...] = ()
    plugin_timeout_s: float = Field(default=10.0, gt=0, le=120)
    plugin_memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    plugin_cgroup: str = ""
    leader_lease_s: float = Field(default=10.0, ge=1.0, le=60.0)
    peers_port_base: int | None = Field(default=None, ge=1024, le=65_510)
    addresses: dict[str, str] = Field(default_factory=dict)
    control_addresses: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _target_is_below(self) -> Self:
        if self.vram_target_percent > self.vram_high_percent:
            raise ValueError("vram_target_percent must not exceed vram_high_percent")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The kit has merged file and environment; a variable like PROJECT belongs to other programs."""
        return (init_settings,)

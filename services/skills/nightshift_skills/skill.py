"""What a skill is: its declaration, and what its functions are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan
from nightshift_skills.ports import ExperiencePort, LabPort, TrainerPort


class Parameters(BaseModel):
    """Arguments of RunSkill; a skill without any takes this very class."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=4096)


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of the built-in skills; set by the operator."""

    project: str = "projects/default"
    min_production_runs: int = 500
    detect_min_new_runs: int = 50
    aggregate_interval_s: float = 86_400.0
    embed_batch: int = 512
    vram_high_percent: float = 80.0
    vram_target_percent: float = 70.0


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What `plan` may use: reads, the time, the limits, which subjects rest.

    `about` is the subject of an approved plan that is made again; "" for a new plan, which may choose.
    `unwanted` says whether nobody needs the plan any more; asked from any thread.
    """

    experience: ExperiencePort
    lab: LabPort
    trainer: TrainerPort
    limits: Limits
    now: datetime
    resting: Callable[[str], Awaitable[datetime | None]]
    about: str = ""
    unwanted: Callable[[], bool] = lambda: False
    # For set_autonomy: digest of the policy, once a skill (its name) is found ready to be delegated.
    delegation: Callable[[str], Awaitable[str]] | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a trigger, in words."""

    met: bool
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What triggers are judged by.

    `state` is None where experience could not be asked, `lab` likewise; `last_success` tells when the skill
    last succeeded on any subject (None: never), `rest_s` is its cooldown.
    """

    now: datetime
    limits: Limits
    state: experience_pb.ExperienceState | None
    lab: lab_pb.LabState | None = None
    last_success: datetime | None = None
    rest_s: float = 0.0


class Code(Protocol):
    """Code that is not a file of ours."""

    @property
    def digest(self) -> str:
        """SHA-256, hex, of what is allowed to run."""
        ...

    def check(self) -> None:
        """Raises SkillModified or PluginRefused where it must not run now."""
        ...


@dataclass(frozen=True, slots=True)
class Skill:
    """Something that the plane can do.

    Attributes:
        id: Name without collection.
        tier: Built-in tier, or a tighter one from the settings.
        triggers: Of "idle", "interval", "cron", "new_data", "event", "tick", "command".
        cooldown_s: Rest between two runs on the same subject.
        methods: Full methods that its grants may name ("/package.Service/Method").
        plan: Reads, and says what would be done. Never changes anything.
        parameters: Schema of its arguments.
        due: Conditions of its idle trigger; only asked where "idle" is among the triggers.
        call_timeout_s: Deadline of one of its calls.
        follows_job: Its first call answers with a training job; the run lasts as long as that job.
        on_purpose: Its runs are a person's own doing, which users do not pre-empt. Stays as built in where
            the
            settings tighten the tier: work of a CONFIRM skill makes room for users whoever starts it.
        admin_only: Only an admin may command it.
        delegable: A standing approval may cover it: nothing of it reaches users without another decision.
        shown_answer: What of a call's answer is kept with the run (user text is left out).
        interval_s: With "interval": it is called for when it has not run for so long; 0 where `due` says it.
        new_runs: With "new_data": so many runs since its last success call for it; 0 where `due` says it.
        events: With "event": kinds of audit events of any service, or of events.py, that call for it.
        least_useful_s: Less time than this is of no use to it: it does not start where users are expected
            earlier. None takes its plan's duration.
        look_again_s: With "idle": after a look that found nothing to do, idleness calls for it again only
            after so long, or when users were there meanwhile. For looks that ask much of others.
        code: Where its code is not the file of `plan` (a plug-in's); None for a built-in skill.
        plan_spends: Making its plan may ask a paid model, so that a dry run takes an approver.
    """

    id: str
    tier: Tier
    description: str
    triggers: tuple[str, ...]
    cooldown_s: float
    methods: tuple[str, ...]
    plan: Callable[[PlanContext, Any], Awaitable[Plan | NothingToDo]]
    parameters: type[Parameters] = Parameters
    due: Callable[[Facts], Sequence[Condition]] = lambda _facts: ()
    call_timeout_s: float = 30.0
    follows_job: bool = False
    on_purpose: bool = False
    admin_only: bool = False
    delegable: bool = False
    shown_answer: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda answer: answer)
    interval_s: float = 0.0
    new_runs: int = 0
    events: tuple[str, ...] = ()
    least_useful_s: float | None = None
    look_again_s: float = 0.0
    code: Code | None = None
    plan_spends: bool = False

    @property
    def name(self) -> str:
        """Resource name."""
        return f"skills/{self.id}"

    @property
    def background(self) -> bool:
        """Whether users come before its runs: neither a person's own doing nor a mere look on each tick."""
        return not self.on_purpose and "tick" not in self.triggers

"""What a plug-in declares: `nightshift_skill.toml` beside its code, read without running any of it."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, create_model
from pydantic.fields import FieldInfo

from nightshift.type.v1 import policy_pb2
from nightshift_skills.errors import PluginRefused
from nightshift_skills.plans import request_class
from nightshift_skills.skill import Parameters

MANIFEST_NAME: Final = "nightshift_skill.toml"

# Reads that skills makes for a plug-in. None that gives what people typed or said, none that works on being
# asked, none of skills itself (approvals carry nonces).
READABLE: Final = frozenset(
    {
        "/nightshift.experience.v1.ExperienceService/GetExperienceState",
        "/nightshift.experience.v1.ExperienceService/GetOpportunity",
        "/nightshift.experience.v1.ExperienceService/ListConfigPerformance",
        "/nightshift.experience.v1.ExperienceService/ListOpportunities",
        "/nightshift.lab.v1.LabService/DiffProposal",
        "/nightshift.lab.v1.LabService/DraftProposal",
        "/nightshift.lab.v1.LabService/GetConfig",
        "/nightshift.lab.v1.LabService/GetPromotion",
        "/nightshift.lab.v1.LabService/GetProposal",
        "/nightshift.lab.v1.LabService/ListConfigs",
        "/nightshift.lab.v1.LabService/ListPromotions",
        "/nightshift.lab.v1.LabService/ListProposals",
        "/nightshift.lab.v1.LabService/ValidateConfig",
        "/nightshift.monitor.v1.MonitorService/GetIdleness",
        "/nightshift.monitor.v1.MonitorService/GetStatus",
        "/nightshift.monitor.v1.MonitorService/ListGpus",
        "/nightshift.monitor.v1.MonitorService/ListProbes",
        "/nightshift.trainer.v1.TrainerService/EstimateTraining",
        "/nightshift.trainer.v1.TrainerService/GetAdapter",
        "/nightshift.trainer.v1.TrainerService/GetTrainingJob",
        "/nightshift.trainer.v1.TrainerService/ListAdapters",
        "/nightshift.trainer.v1.TrainerService/ListTrainingJobs",
    }
)

_Words = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "number": float, "boolean": bool}


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(_Declared):
    """One argument of RunSkill; without `default` it must be given."""

    type: Literal["string", "integer", "number", "boolean"]
    default: str | int | float | bool | None = None
    max_length: int = Field(default=512, ge=1, le=4096)
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = Field(default=None, max_length=200)

    def field(self) -> tuple[Any, FieldInfo]:
        """As pydantic's create_model takes it."""
        bounds: dict[str, Any] = {"strict": self.type in ("boolean", "string")}
        if self.type == "string":
            bounds |= {"max_length": self.max_length, "pattern": self.pattern}
        elif self.type in ("integer", "number"):
            bounds |= {"ge": self.minimum, "le": self.maximum}
        default = ... if self.default is None else self.default
        made: FieldInfo = Field(default, **bounds)
        return _TYPES[self.type], made


class Manifest(_Declared):
    """One skill.

    Attributes:
        description: In one sentence; shown to people as the plug-in's words.
        tier: CONFIRM or MANUAL. A plug-in is never AUTO.
        triggers: "command", and "idle" for one that is asked while the machine is idle.
        plan_interval_s: Least time between two plans that nobody asked for.
        cooldown_s: Rest between two runs on the same subject.
        reads: Methods that it asks skills to read for it.
        methods: Acting methods that its plans may name.
        parameters: Arguments by name.
    """

    description: _Words
    tier: Literal["CONFIRM", "MANUAL"] = "CONFIRM"
    triggers: tuple[Literal["command", "idle"], ...] = ("command",)
    plan_interval_s: float = Field(default=3600.0, ge=60, le=2_592_000)
    cooldown_s: float = Field(default=86_400.0, ge=0, le=31_536_000)
    reads: tuple[str, ...] = Field(default=(), max_length=32)
    methods: tuple[str, ...] = Field(min_length=1, max_length=16)
    parameters: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")], Parameter] = Field(
        default_factory=dict, max_length=32
    )

    def parameters_class(self) -> type[Parameters]:
        """The schema of its arguments."""
        fields: dict[str, Any] = {name: declared.field() for name, declared in self.parameters.items()}
        return create_model("PluginParameters", __base__=Parameters, **fields)


def parse(content: bytes, skill: str) -> Manifest:
    """The declaration of one skill: the table `[skills.NAME]` of its manifest.

    Raises:
        PluginRefused: it is no manifest, or asks for what no plug-in gets.
    """
    try:
        table = tomllib.loads(content.decode())["skills"][skill]
        manifest = Manifest.model_validate(table)
        schema = manifest.parameters_class()
        schema.model_json_schema()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginRefused(f"{MANIFEST_NAME} is no TOML: {error}.") from error
    except (KeyError, TypeError) as error:
        raise PluginRefused(f"{MANIFEST_NAME} has no table [skills.{skill}].") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise PluginRefused(f"{MANIFEST_NAME}, {where}: {problem['msg']}.") from error
    except Exception as error:  # pydantic-core's SchemaError for a pattern that is none, among others
        raise PluginRefused(f"{MANIFEST_NAME}: its parameters make no schema.") from error
    strangers = sorted(set(manifest.reads) - READABLE)
    if strangers:
        raise PluginRefused(f"No plug-in may read {strangers[0]}.", metadata={"method": strangers[0]})
    for method in manifest.methods:
        if not plannable(method):
            raise PluginRefused(f"No plug-in may plan {method}.", metadata={"method": method})
    return manifest


def plannable(method: str) -> bool:
    """Whether the method's own policy lets plug-ins plan it."""
    try:
        found = request_class(method).DESCRIPTOR.file.pool.FindMethodByName(
            method.lstrip("/").replace("/", ".")
        )
    except KeyError:
        return False
    return bool(found.GetOptions().Extensions[policy_pb2.policy].plugins)

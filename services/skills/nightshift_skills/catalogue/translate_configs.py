"""Drafts the languages that a config lacks and, once approved, adds them to its file."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/TranslateConfig"
NO_MODEL = "The lab has no language model: set [lab.llm] base_url and model (NIGHTSHIFT_LAB_LLM__MODEL)."
# Drafting takes a while: a look that finds nothing usable in so many configs ends there.
_MOST_DRAFTS = 3


class TranslateParameters(Parameters):
    """`config` names one; "" takes the first that lacks a language. `redraft` asks the model anew."""

    config: str = Field(default="", max_length=512, pattern=r"^(configs/[^/]+)?$")
    redraft: bool = False


async def plan(context: PlanContext, parameters: TranslateParameters) -> Plan | NothingToDo:
    """Adds the missing languages of one config: name, description and category, nothing else."""
    state = await context.lab.get_state()
    if not state.llm_model:
        return NothingToDo(reason=NO_MODEL)
    wanted = context.about or parameters.config
    lacking = [
        config
        for config in await context.lab.list_configs()
        if config.missing and wanted in ("", config.name)
    ]
    why = f"{wanted} lacks no language." if wanted else "No config lacks a language."
    drafts = 0
    for config in lacking:
        until = await context.resting(config.name)
        if until is not None:
            why = f"{config.name} rests until {until:%Y-%m-%d %H:%M} UTC."
            continue
        if drafts == _MOST_DRAFTS:
            break
        drafts += 1
        # An approved plan made again must find the very draft that was approved.
        draft = await context.lab.draft_translations(
            config.name, redraft=parameters.redraft and not context.about
        )
        if draft.translations:
            return _plan(config, draft)
        why = f"Nothing that the model drafted for {config.name} may be used: {_refused(draft)}."
    return NothingToDo(reason=why)


def _plan(config: lab_types.Config, draft: lab_pb.DraftTranslationsResponse) -> Plan:
    request = lab_pb.TranslateConfigRequest(
        name=draft.name,
        base_digest=draft.base_digest,
        translations=draft.translations,
        content_digest=draft.content_digest,
        drafted_by=draft.drafted_by,
    )
    languages = sorted({one.language for one in draft.translations})
    evidence = [
        f"{len(draft.translations)} texts were missing; {draft.drafted_by} drafted them.",
        "Only missing languages are added; every other value of the file stays.",
    ]
    if draft.refused:
        evidence.append(f"{len(draft.refused)} drafted texts were refused: {_refused(draft)}.")
    return Plan(
        skill="skills/translate_configs",
        subject=draft.name,
        summary=f"Add {', '.join(languages)} to {config.path}.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions={draft.name: draft.base_digest},
        diff=draft.diff,
        reversibility=Reversibility.REVERSIBLE,
        evidence=tuple(evidence),
    )


def _refused(draft: lab_pb.DraftTranslationsResponse) -> str:
    shown = [f"{one.field}.{one.language} {one.reason}" for one in draft.refused[:5]]
    return ", ".join(shown) or "it gave none"


def due(facts: Facts) -> Sequence[Condition]:
    """A model, and configs that lack a language."""
    state = facts.lab
    if state is None:
        return (Condition(False, "The lab cannot be asked about the platform's configs."),)
    model = f"{state.llm_model} drafts." if state.llm_model else NO_MODEL
    count = state.gap_config_count
    return (
        Condition(bool(state.llm_model), model),
        Condition(count > 0, f"{count} configs lack a language."),
    )


SKILL = Skill(
    id="translate_configs",
    tier=Tier.CONFIRM,
    description="Drafts the languages that a config's texts lack, and adds them once approved.",
    triggers=("idle", "command"),
    cooldown_s=60,
    methods=(METHOD,),
    plan=plan,
    parameters=TranslateParameters,
    due=due,
    plan_spends=True,
)

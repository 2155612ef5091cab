"""Drafts a config for the best theme that has none, and asks a person whether the lab shall keep it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydantic import Field

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift_kit.canonical import digest_json
from nightshift_kit.grants import Tier
from nightshift_skills.plans import NothingToDo, Plan, PlannedCall, Reversibility, versions
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

METHOD = "/nightshift.lab.v1.LabService/CreateProposal"
_WEEK_S = 7 * 86_400


class ProposeParameters(Parameters):
    """`opportunity` names one; "" takes the best."""

    opportunity: str = Field(default="", max_length=512)


async def plan(context: PlanContext, parameters: ProposeParameters) -> Plan | NothingToDo:
    """Stores the lab's draft for one uncovered theme as a proposal."""
    limits = context.limits
    state = await context.experience.get_state(limits.project)
    if state.production_run_count < limits.min_production_runs:
        return NothingToDo(
            reason=f"{state.production_run_count} production runs are too few; "
            f"{limits.min_production_runs} are needed."
        )
    opportunity = await _choose(context, parameters.opportunity or context.about)
    if isinstance(opportunity, NothingToDo):
        return opportunity
    draft = await context.lab.draft_proposal(
        lab_pb.DraftProposalRequest(
            opportunity=opportunity.name,
            theme=opportunity.label,
            keywords=opportunity.keywords,
            nearest_configs=opportunity.nearest_configs,
        )
    )
    if not draft.report.valid:
        findings = "; ".join(f"{finding.field}: {finding.reason}" for finding in draft.report.findings[:3])
        return NothingToDo(reason=f"The lab's draft for “{opportunity.label}” is not valid: {findings}.")
    request = lab_pb.CreateProposalRequest(
        config_id=draft.config_id,
        content=draft.content,
        opportunity=opportunity.name,
        templates=draft.templates,
        drafted_by=draft.drafted_by,
    )
    templates = {name: (await context.lab.get_config(name)).digest for name in draft.templates}
    return Plan(
        skill="skills/propose_config",
        subject=opportunity.name,
        summary=f"Store config {draft.config_id} for “{opportunity.label}” as a proposal in the lab.",
        calls=(PlannedCall.of(METHOD, request),),
        base_versions=versions({opportunity.name: _theme_digest(opportunity), **templates}),
        diff=draft.diff,
        reversibility=Reversibility.REVERSIBLE,
        evidence=_evidence(opportunity, state.production_run_count, draft.report),
        reasoning=opportunity.explanation,
    )


async def _choose(context: PlanContext, wanted: str) -> experience_types.Opportunity | NothingToDo:
    opportunities = [
        opportunity
        for opportunity in await context.experience.list_opportunities(context.limits.project)
        if opportunity.kind == experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME
        and wanted in ("", opportunity.name)
    ]
    if not opportunities:
        return NothingToDo(reason="No theme is without a config.")
    answered = _answered(await context.lab.list_proposals(), context)
    why = ""
    for opportunity in opportunities:
        if opportunity.name in answered:
            why = why or f"“{opportunity.label}” has a proposal already: {answered[opportunity.name]}."
            continue
        until = await context.resting(opportunity.name)
        if until is not None:
            why = why or f"“{opportunity.label}” rests until {until:%Y-%m-%d %H:%M} UTC."
            continue
        return opportunity
    return NothingToDo(reason=why)


def _answered(proposals: Sequence[lab_types.Proposal], context: PlanContext) -> dict[str, str]:
    # A rejected proposal keeps its theme quiet for as long as a denied plan does.
    quiet_since = context.now - timedelta(seconds=_WEEK_S)
    answered: dict[str, str] = {}
    for proposal in proposals:
        rejected = proposal.state == lab_types.PROPOSAL_STATE_REJECTED
        if not rejected or proposal.update_time.ToNanoseconds() / 1e9 > quiet_since.timestamp():
            answered.setdefault(proposal.opportunity, proposal.name)
    return answered


def _theme_digest(opportunity: experience_types.Opportunity) -> str:
    # Counts are readings: they change with each run and must not void a plan that a person is looking at.
    return digest_json(
        {
            "label": opportunity.label,
            "keywords": list(opportunity.keywords),
            "nearest_configs": list(opportunity.nearest_configs),
        }
    )


def _evidence(
    opportunity: experience_types.Opportunity, production_runs: int, report: lab_types.ValidationReport
) -> tuple[str, ...]:
    share = opportunity.runs / production_runs if production_runs else 0.0
    nearest = opportunity.nearest_configs[0] if opportunity.nearest_configs else "none"
    return (
        f"{opportunity.runs} of {production_runs} production runs ({share:.1%}) are about it.",
        f"The best config there is, {nearest}, fits {opportunity.best_fit:.2f} of 1.",
        f"Words that set it apart: {', '.join(opportunity.keywords[:8])}.",
        f"The draft passes {len(report.levels)} levels of validation; "
        f"its nearest config is {report.nearest_similarity:.2f} similar.",
    )


def due(facts: Facts) -> Sequence[Condition]:
    """Enough production runs, all of them looked at, and a week since the last proposal."""
    state = facts.state
    if state is None:
        return (Condition(False, "Experience cannot be asked."),)
    least = facts.limits.min_production_runs
    return (
        Condition(
            state.production_run_count >= least,
            f"{state.production_run_count} production runs; {least} are needed.",
        ),
        Condition(state.HasField("detect_time"), "Opportunities have been looked for."),
        _long_since_the_last(facts),
    )


def _long_since_the_last(facts: Facts) -> Condition:
    """One proposal a week: the cooldown, which a subject has for itself, holds for all of them here."""
    if facts.last_success is None:
        return Condition(True, "It has proposed nothing yet.")
    since = facts.now - facts.last_success
    days = since.total_seconds() / 86_400
    return Condition(
        since >= timedelta(seconds=facts.rest_s),
        f"The last proposal is {days:.1f} days ago; {facts.rest_s / 86_400:g} are to pass.",
    )


SKILL = Skill(
    id="propose_config",
    tier=Tier.CONFIRM,
    description="Drafts a config for a theme that no config fits, and stores it in the lab once approved.",
    triggers=("idle", "command"),
    cooldown_s=_WEEK_S,
    methods=(METHOD,),
    plan=plan,
    parameters=ProposeParameters,
    due=due,
    # What it stores lies in the lab; a person promotes it, or nobody.
    delegable=True,
)

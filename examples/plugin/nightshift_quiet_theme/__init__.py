"""A plug-in skill: drafts a config for the least used theme that no config fits."""

from __future__ import annotations

from nightshift_plugin import Call, Context, Nothing, Plan

LIST = "/nightshift.experience.v1.ExperienceService/ListOpportunities"
DRAFT = "/nightshift.lab.v1.LabService/DraftProposal"
CREATE = "/nightshift.lab.v1.LabService/CreateProposal"


def plan(context: Context) -> Plan | Nothing:
    """One call: the lab's own draft for the theme, stored as a proposal."""
    least = context.parameters["least_runs"]
    found = context.read(LIST, {"parent": context.project, "page_size": 100}).get("opportunities", [])
    themes = [
        theme
        for theme in found
        if theme.get("kind") == "OPPORTUNITY_KIND_UNCOVERED_THEME"
        and int(theme.get("runs", 0)) >= least
        and context.about in ("", theme["name"])
    ]
    if not themes:
        return Nothing(f"No theme of {least} or more runs is without a config.")
    theme = min(themes, key=lambda entry: (int(entry["runs"]), entry["name"]))
    draft = context.read(
        DRAFT,
        {
            "opportunity": theme["name"],
            "theme": theme.get("label", ""),
            "keywords": theme.get("keywords", []),
            "nearest_configs": theme.get("nearest_configs", []),
        },
    )
    if not draft.get("report", {}).get("valid"):
        return Nothing("The lab's draft is not valid.")
    arguments = {
        "config_id": draft["config_id"],
        "content": draft["content"],
        "opportunity": theme["name"],
        "templates": draft.get("templates", []),
        "drafted_by": draft.get("drafted_by", ""),
    }
    return Plan(
        subject=theme["name"],
        summary=f"Store config {draft['config_id']} as a proposal in the lab.",
        calls=[Call(CREATE, arguments)],
        evidence=[f"{theme['runs']} runs are about it; fewer than about any other theme without a config."],
        reasoning="Small themes are easily overlooked.",
    )

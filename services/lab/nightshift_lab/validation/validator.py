"""The validator: runs every level over a config and reports all that it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..similarity import nearest
from ..wording import Json
from .identity import collision_findings, id_findings
from .report import Finding, Report, error, sort_findings
from .structure import allow_list_findings, required_findings, schema_findings
from .writing import language_findings, quality_findings, safety_findings, style_findings

#: Above this a proposal adds nothing to its template (similarity.config_similarity).
MAX_SIMILARITY = 0.8


@dataclass(frozen=True)
class Surroundings:
    """What a proposal is compared with.

    Attributes:
        configs: Readable interception configs of production, id → content.
        production: Ids of all interception configs, readable or not.
        taken: Folded id → path, over configs of every kind, deactivated ones and other claims to an id
        included. safety_words: The platform's own lists, audience → case-folded words. output_configs: Ids
        of output configs.
    """

    configs: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    production: frozenset[str] = frozenset()
    taken: Mapping[str, str] = field(default_factory=dict)
    safety_words: Mapping[str, frozenset[str]] = field(default_factory=dict)
    output_configs: frozenset[str] = frozenset()


def content_findings(content: Mapping[str, Json], surroundings: Surroundings) -> Iterator[Finding]:
    """Every level but id and collision: what can be said of a config without its name."""
    shape = list(schema_findings(content))
    yield from shape
    if any(finding.reason == "NESTING_TOO_DEEP" for finding in shape):
        return  # the other levels walk the value recursively
    yield from required_findings(content)
    yield from allow_list_findings(content)
    yield from safety_findings(content, surroundings.safety_words)
    yield from quality_findings(content)
    yield from style_findings(content)
    yield from language_findings(content)
    media = content.get("media_preferences")
    wanted = media.get("output_config") if isinstance(media, Mapping) else None
    if isinstance(wanted, str) and wanted not in surroundings.output_configs:
        yield error(
            "allow_list",
            "media_preferences.output_config",
            "OUTPUT_CONFIG_UNKNOWN",
            f"Production has no output config {wanted!r}.",
        )


def validate(config_id: str, content: Mapping[str, Json], surroundings: Surroundings) -> Report:
    """Report of all levels on `content` as the new config `config_id`.

    Args:
        config_id: Id that it would get.
        content: The config; any JSON object.
        surroundings: Production as it is now.
    """
    findings = [*content_findings(content, surroundings), *id_findings(config_id)]
    findings += collision_findings(config_id, surroundings.taken, surroundings.production)
    name, similarity = nearest(content, surroundings.configs.items())
    if similarity > MAX_SIMILARITY:
        findings.append(
            error(
                "quality",
                "context",
                "TOO_SIMILAR",
                f"{similarity:.2f} similar to {name!r}; at most {MAX_SIMILARITY}.",
            )
        )
    return Report(sort_findings(findings), name, similarity)

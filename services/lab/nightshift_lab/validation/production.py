"""Production's configs by the tolerant rules: an error is what the platform's loader stumbles over, no more.

People write these files, in every shape that the loader takes. What a proposal would be refused for
is told as a warning here, so that they can look at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..wording import Json, texts
from .report import Finding, Severity, error, warning
from .structure import LANGUAGES
from .writing import safety_findings, style_findings

_BY_LANGUAGE = ("name", "description", "category")
_OBJECTS = ("parameters", "media_preferences", "meta", "display", "tags", "audience")
_PLACEHOLDERS = ("{{", "}}", "{%", "${")


def production_findings(
    content: Mapping[str, Json] | None,
    problem: str,
    twice: Sequence[str],
    rivals: Sequence[str],
    safety_words: Mapping[str, frozenset[str]],
) -> Iterator[Finding]:
    """Everything to be said of one config of production.

    Args:
        content: None where it cannot be read, for the reason in `problem`.
        problem: See there.
        twice: Keys that stand twice in one object.
        rivals: Paths of other files that claim its id.
        safety_words: The platform's own lists, audience → case-folded words.
    """
    for path in rivals:
        yield error("collision", "", "CONFIG_ID_COLLISION", f"{path} claims the same id; one is hidden.")
    if content is None:
        yield error("schema", "", "UNREADABLE", f"The loader cannot read it: {problem}.")
        return
    yield from _shape(content, twice)
    for field in (*_BY_LANGUAGE, "context"):
        yield from _languages(field, content.get(field))
    for path, text in texts(content):
        if any(sign in text for sign in _PLACEHOLDERS):
            yield warning("allow_list", path, "PLACEHOLDER", "Holds a placeholder of the platform.")
    for finding in (*safety_findings(content, safety_words), *style_findings(content)):
        yield replace(finding, severity=Severity.WARNING)


def _shape(content: Mapping[str, Json], twice: Sequence[str]) -> Iterator[Finding]:
    pipeline = content.get("pipeline")
    if not isinstance(pipeline, str) or not pipeline.strip():
        yield error("required", "pipeline", "PIPELINE_MISSING", "The loader passes over it.")
    for key in twice:
        yield warning("schema", "", "DUPLICATE_KEY", f"{key!r} stands twice; the last one counts.")
    if isinstance(content.get("name"), str):
        yield warning("id", "name", "NAME_IS_ID", "The loader takes a text here for the config's id.")
    for field in _OBJECTS:
        if field in content and not isinstance(content[field], Mapping):
            yield warning("schema", field, "TYPE_MISMATCH", "Should be an object.")
    parameters = content.get("parameters")
    for key in parameters if isinstance(parameters, Mapping) else ():
        if key.isupper():
            yield warning(
                "allow_list",
                f"parameters.{key}",
                "PARAMETER_REPLACES",
                "Replaces a placeholder of the platform, its instructions among them.",
            )


def _languages(field: str, value: Json) -> Iterator[Finding]:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, Mapping):
        yield warning("schema", field, "TYPE_MISMATCH", "Should be a text by language.")
        return
    for language, text in value.items():
        path = f"{field}.{language}"
        if language.casefold() not in LANGUAGES:
            yield warning("language", path, "LANGUAGE_UNKNOWN", "No language of the platform.")
        if not isinstance(text, str):
            yield warning("schema", path, "TYPE_MISMATCH", "Should be a text.")
        elif not text.strip():
            yield warning("language", path, "TEXT_BLANK", "Nothing is shown in this language.")
    if "en" not in value:
        yield warning("language", field, "ENGLISH_MISSING", "English is what other languages fall back to.")

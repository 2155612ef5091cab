"""Levels schema, required and allow_list: the shape that a proposal must have.

Production accepts more shapes than this; a proposal is held to the stricter one, because the platform's
loader would let a config replace instructions, skip safety stages or rename itself (a string `name` becomes
the id, `parameters` override placeholders).
"""

# ruff: noqa: SIM905 - word lists read better as text

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..wording import Json, normal_form, texts
from .report import Finding, error, warning

PIPELINE = "text_transformation"
STAGE = "interception"
LANGUAGES = ("ar", "bg", "de", "en", "es", "fr", "he", "ko", "tr", "uk")
MEDIA = ("image", "text", "code", "music", "audio", "video")
COMPLEXITIES = ("beginner", "intermediate", "advanced")
#: A context of 800 words stays far below; what is longer is not read, only refused.
MAX_TEXT_CHARACTERS = 20_000
MAX_DEPTH = 8
MAX_ITEMS = 64

TOP_LEVEL = frozenset(
    (
        "pipeline instruction_type name description category properties context parameters "
        "media_preferences meta display tags audience"
    ).split()
)
META = frozenset({"stage", "wikipedia"})
#: What the loader would obey and a proposal must never carry, with what it would do.
META_FORBIDDEN = {
    "system_pipeline": "it makes the platform treat the config as its own machinery",
    "model_override": "it chooses another model than the operator's",
    "skip_stage2": "it skips the stage that carries the rules of respect and safety",
}
PARAMETERS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 1.5),
    "top_p": (0.05, 1.0),
    "max_tokens": (64, 8192),
    "repetition_penalty": (0.8, 2.0),
}
BOOLEAN_PARAMETERS = frozenset({"enable_thinking"})
MEDIA_PREFERENCES = frozenset({"default_output", "supported_types", "output_config"})
DISPLAY = frozenset({"icon", "color", "category", "difficulty", "order", "hidden"})
AUDIENCE = frozenset({"workshop_suitable", "min_age", "complexity", "requires"})

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{%|%\}|\$\{|\bTASK_INSTRUCTION\b|\bINPUT_TEXT\b|\bOUTPUT_CHUNK\b")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,39}")
_COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")


@dataclass(frozen=True)
class _Rule:
    """What a field must be: `check` returns a complaint or None."""

    path: tuple[str, ...]
    required: bool
    check: Callable[[Json], str | None]


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Json) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    return None if value.strip() else "must not be blank"


def _identifier(value: Json) -> str | None:
    if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
        return None
    return "must be a lower-case word ([a-z][a-z0-9_]*, at most 40 characters)"


def _boolean(value: Json) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _between(low: float, high: float, whole: bool = False) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        if not _is_number(value):
            return "must be a number"
        if whole and value != int(value):  # type: ignore[arg-type]  # _is_number has said that it is one
            return "must be a whole number"
        if not low <= value <= high:  # type: ignore[operator]
            return f"must lie between {low:g} and {high:g}"
        return None

    return check


def _one_of(*allowed: str) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        return None if isinstance(value, str) and value in allowed else f"must be one of {', '.join(allowed)}"

    return check


def _list_of(
    item: Callable[[Json], str | None], minimum: int = 0, distinct: bool = True
) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "must be a list"
        if not minimum <= len(value) <= MAX_ITEMS:
            return f"must have {minimum} to {MAX_ITEMS} entries"
        for index, entry in enumerate(value):
            complaint = item(entry)
            if complaint:
                return f"entry {index} {complaint}"
        if distinct and len({str(entry) for entry in value}) != len(value):
            return "must not repeat an entry"
        return None

    return check


def _by_language(item: Callable[[Json], str | None]) -> Callable[[Json], str | None]:
    def check(value: Json) -> str | None:
        if not isinstance(value, Mapping):
            return (
                "must be an object by language; a plain string is refused (as a name it would become the id)"
            )
        unknown = sorted(set(value) - set(LANGUAGES))
        if unknown:
            return f"has the unknown language {unknown[0]!r}; known: {', '.join(LANGUAGES)}"
        for language, entry in value.items():
            complaint = item(entry)
            if complaint:
                return f"in {language!r} {complaint}"
        return None

    return check


def _object(value: Json) -> str | None:
    return None if isinstance(value, Mapping) else "must be an object"


_RULES = (
    _Rule(("pipeline",), True, _text),
    _Rule(("instruction_type",), False, _identifier),
    _Rule(("name",), True, _by_language(_text)),
    _Rule(("description",), True, _by_language(_text)),
    _Rule(("category",), True, _by_language(_text)),
    _Rule(("properties",), True, _list_of(_identifier, 1)),
    _Rule(("context",), True, _by_language(_text)),
    _Rule(("parameters",), True, _object),
    _Rule(("media_preferences",), True, _object),
    _Rule(("media_preferences", "default_output"), True, _one_of(*MEDIA)),
    _Rule(("media_preferences", "supported_types"), True, _list_of(_one_of(*MEDIA), 1)),
    _Rule(("media_preferences", "output_config"), False, _identifier),
    _Rule(("meta",), True, _object),
    _Rule(("meta", "stage"), True, _text),
    _Rule(("meta", "wikipedia"), False, _boolean),
    _Rule(("display",), True, _object),
    _Rule(("display", "icon"), True, _identifier),
    _Rule(("display", "color"), True, _text),
    _Rule(("display", "category"), True, _identifier),
    _Rule(("display", "difficulty"), True, _between(1, 5, whole=True)),
    _Rule(("display", "order"), True, _between(0, 100_000, whole=True)),
    _Rule(("display", "hidden"), False, _boolean),
    _Rule(("tags",), True, _by_language(_list_of(_text, 0))),
    _Rule(("audience",), True, _object),
    _Rule(("audience", "workshop_suitable"), True, _boolean),
    _Rule(("audience", "min_age"), True, _between(3, 99, whole=True)),
    _Rule(("audience", "complexity"), True, _one_of(*COMPLEXITIES)),
    _Rule(("audience", "requires"), False, _list_of(_identifier)),
)
_BILINGUAL = ("name", "description", "category", "context", "tags")


def _at(content: Mapping[str, Json], path: tuple[str, ...]) -> tuple[bool, Json]:
    value: Json = content
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _depth(value: Json) -> int:
    """Nesting depth by iteration: the value may be deeper than the interpreter's stack."""
    deepest, level = 0, [value]
    while level and deepest <= MAX_DEPTH + 1:
        deepest += 1
        following: list[Json] = []
        for item in level:
            if isinstance(item, Mapping):
                following += item.values()
            elif isinstance(item, Sequence) and not isinstance(item, str):
                following += item
        level = following
    return deepest


def schema_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Types, ranges and text that no file should hold."""
    if _depth(content) > MAX_DEPTH:
        yield error(
            "schema", "", "NESTING_TOO_DEEP", f"Nested deeper than {MAX_DEPTH} levels; a config needs three."
        )
        return
    for rule in _RULES:
        present, value = _at(content, rule.path)
        complaint = rule.check(value) if present else None
        if complaint:
            field = ".".join(rule.path)
            reason = "VALUE_OUT_OF_RANGE" if "between" in complaint else "TYPE_MISMATCH"
            yield error("schema", field, reason, f"{field} {complaint}.")
    present, colour = _at(content, ("display", "color"))
    if present and isinstance(colour, str) and not _COLOUR.fullmatch(colour):
        yield error("schema", "display.color", "TYPE_MISMATCH", "display.color must look like #3A7CA5.")
    yield from _number_findings(content, "")
    for path, text in texts(content):
        if len(text) > MAX_TEXT_CHARACTERS:
            yield error("schema", path, "TEXT_TOO_LONG", f"Longer than {MAX_TEXT_CHARACTERS} characters.")
        if any(unicodedata.category(c) in ("Cc", "Cs") and c != "\n" for c in text):
            yield error("schema", path, "UNICODE_INVALID", "Contains control characters or lone surrogates.")
        elif any(c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" for c in text):
            yield error(
                "schema", path, "UNICODE_INVALID", "Contains direction overrides, which hide what is read."
            )


def _number_findings(value: Json, path: str) -> Iterator[Finding]:
    if isinstance(value, float) and not math.isfinite(value):
        yield error("schema", path, "NON_FINITE", "NaN and infinity are no JSON numbers.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _number_findings(item, f"{path}.{key}" if path else key)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _number_findings(item, f"{path}[{index}]")


def required_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Fields that the selector, the loader or the workshop needs; English and German in each text."""
    for rule in _RULES:
        if not rule.required:
            continue
        parent_present = len(rule.path) == 1 or isinstance(_at(content, rule.path[:-1])[1], Mapping)
        if parent_present and not _at(content, rule.path)[0]:
            field = ".".join(rule.path)
            yield error("required", field, "FIELD_MISSING", f"{field} is missing.")
    for field in _BILINGUAL:
        present, value = _at(content, (field,))
        if present and isinstance(value, Mapping):
            for language in ("en", "de"):
                if language not in value:
                    yield error(
                        "required",
                        f"{field}.{language}",
                        "LANGUAGE_MISSING",
                        f"{field} has no {language!r} entry.",
                    )


def _unknown(content: Mapping[str, Json], field: str, allowed: frozenset[str]) -> Iterator[Finding]:
    value: Json = content.get(field) if field else content
    if isinstance(value, Mapping):
        for key in sorted(set(value) - allowed):
            path = f"{field}.{key}" if field else key
            yield error(
                "allow_list", path, "FIELD_UNKNOWN", f"Only {', '.join(sorted(allowed))} may stand here."
            )


def allow_list_findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    """Keys and values that may stand in a proposal; everything else is refused."""
    yield from _unknown(content, "", TOP_LEVEL)
    yield from _unknown(content, "media_preferences", MEDIA_PREFERENCES)
    yield from _unknown(content, "display", DISPLAY)
    yield from _unknown(content, "audience", AUDIENCE)
    if isinstance(content.get("pipeline"), str) and content["pipeline"] != PIPELINE:
        yield error("allow_list", "pipeline", "PIPELINE_NOT_ALLOWED", f"pipeline must be {PIPELINE!r}.")
    yield from _meta_findings(content.get("meta"))
    yield from _parameter_findings(content.get("parameters"))
    for path, text in texts(content):
        if _PLACEHOLDER.search(normal_form(text)):
            yield error(
                "allow_list",
                path,
                "PLACEHOLDER_FORBIDDEN",
                "Placeholders would be filled in by the platform; none may stand here.",
            )


def _meta_findings(meta: Json) -> Iterator[Finding]:
    if not isinstance(meta, Mapping):
        return
    for key in sorted(meta):
        if key in META_FORBIDDEN:
            yield error(
                "allow_list",
                f"meta.{key}",
                "META_FORBIDDEN",
                f"meta.{key} is refused: {META_FORBIDDEN[key]}.",
            )
        elif key not in META:
            yield error(
                "allow_list",
                f"meta.{key}",
                "FIELD_UNKNOWN",
                f"Only {', '.join(sorted(META))} may stand here.",
            )
    if "stage" in meta and meta["stage"] != STAGE:
        yield error("allow_list", "meta.stage", "STAGE_NOT_ALLOWED", f"meta.stage must be {STAGE!r}.")


def _parameter_findings(parameters: Json) -> Iterator[Finding]:
    if not isinstance(parameters, Mapping):
        return
    for key, value in sorted(parameters.items()):
        field = f"parameters.{key}"
        if key in BOOLEAN_PARAMETERS:
            complaint = _boolean(value)
        elif key in PARAMETERS:
            low, high = PARAMETERS[key]
            complaint = _between(low, high, whole=key == "max_tokens")(value)
        else:
            allowed = ", ".join(sorted([*PARAMETERS, *BOOLEAN_PARAMETERS]))
            yield error(
                "allow_list",
                field,
                "PARAMETER_FORBIDDEN",
                f"Only {allowed} may stand here; other parameters replace placeholders, instructions among "
                f"them.",
            )
            continue
        if complaint:
            reason = "VALUE_OUT_OF_RANGE" if "between" in complaint else "TYPE_MISMATCH"
            yield error("schema", field, reason, f"{field} {complaint}.")
    if not parameters:
        yield warning("required", "parameters", "PARAMETERS_EMPTY", "The platform's defaults would apply.")

"""Composes a complete interception config for a theme, the same each time for the same input.

A perspective, three of its four steps, one step that makes the theme concrete, one way of being exact, what
must survive, two prohibitions and an ending are chosen by a hash of theme, keywords and templates. From the
templates come medium, parameters, difficulty and age; a perspective whose properties the templates all
share is passed over, since a theme without a fitting config wants another way of looking. Where the outcome
is too close to a config of production, the next variant is taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from ..errors import TemplatesMissing, ThemeInvalid
from ..similarity import nearest
from ..validation.identity import CONFIG_ID, RESERVED, fold
from ..wording import Json
from . import shared
from .grammar import Both, Perspective
from .perspectives_image import IMAGE
from .perspectives_sound_code import AUDIO, CODE
from .theme import Theme, read_theme, slug

#: Name under which drafts are marked.
DRAFTED_BY = "composer"
#: A draft keeps well below what validation allows.
TARGET_SIMILARITY = 0.6
_MAX_VARIANTS = 24
_TEMPLATES = 3

_PERSPECTIVES: Mapping[str, tuple[Perspective, ...]] = {"image": IMAGE, "audio": AUDIO, "code": CODE}
_MEDIA = {
    "image": ("image", ["image", "video"]),
    "audio": ("audio", ["audio", "image"]),
    "code": ("code", ["code", "image"]),
}
# Production's media, by the perspectives that can serve them.
_FAMILY = {
    "image": "image",
    "video": "image",
    "text": "image",
    "audio": "audio",
    "music": "audio",
    "code": "code",
}

_T = TypeVar("_T")
Content = Mapping[str, Json]


@dataclass(frozen=True)
class Draft:
    """A composed config: suggested id, content, ids of the templates (best first)."""

    config_id: str
    content: dict[str, Json]
    templates: tuple[str, ...]


class _Choice:
    """Deterministic choices: SHA-256 over a seed and a counter."""

    def __init__(self, *parts: str) -> None:
        self._seed = "\x1f".join(parts).encode()
        self._count = 0

    def number(self, below: int) -> int:
        self._count += 1
        drawn = hashlib.sha256(self._seed + self._count.to_bytes(4, "big")).digest()
        return int.from_bytes(drawn[:8], "big") % below

    def one(self, options: Sequence[_T]) -> _T:
        return options[self.number(len(options))]


def _numbers(templates: Sequence[Content], group: str, key: str) -> list[float]:
    found: list[float] = []
    for template in templates:
        holder = template.get(group)
        value = holder.get(key) if isinstance(holder, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(float(value))
    return found


def _median(templates: Sequence[Content], group: str, key: str, default: float) -> float:
    return median(_numbers(templates, group, key) or [default])


def _medium(templates: Sequence[Content]) -> str:
    media: Counter[str] = Counter()
    for template in templates:
        holder = template.get("media_preferences")
        value = holder.get("default_output") if isinstance(holder, Mapping) else None
        if isinstance(value, str) and value in _FAMILY:
            media[_FAMILY[value]] += 1
    return media.most_common(1)[0][0] if media else "image"


def choose_templates(
    theme: Theme, nearest_ids: Sequence[str], configs: Mapping[str, Content]
) -> tuple[str, ...]:
    """Ids of three templates, best first.

    First the named ones that exist, then those whose tags, name or description mention the theme's words,
    then by a stable hash.

    Raises:
        TemplatesMissing: production has no readable config.
    """
    if not configs:
        raise TemplatesMissing(
            "Production has no readable interception config; nothing can serve as a template."
        )
    chosen = [name for name in dict.fromkeys(nearest_ids) if name in configs][:_TEMPLATES]
    terms = {
        word.casefold() for text in (theme.label, *theme.keywords) for word in text.split() if len(word) > 3
    }

    def order(name: str) -> tuple[int, str]:
        texts = str([configs[name].get(key) for key in ("tags", "name", "description")]).casefold()
        tie = hashlib.sha256(f"{theme.label}\x1f{name}".encode()).hexdigest()
        return -sum(term in texts for term in terms), tie

    for name in sorted(configs, key=order):
        if len(chosen) >= _TEMPLATES:
            break
        if name not in chosen:
            chosen.append(name)
    return tuple(chosen)


def _quoted_list(items: Sequence[str], language: str) -> str:
    marks = {"en": ("“{}”", "and"), "de": ("„{}“", "und")}[language]
    done = [marks[0].format(item) for item in items]
    return done[0] if len(done) == 1 else f"{', '.join(done[:-1])} {marks[1]} {done[-1]}"


def _fill(block: Both, theme: Theme) -> Both:
    def filled(text: str, language: str) -> str:
        slots = {"theme": _quoted_list([theme.label], language)}
        if theme.keywords:
            slots["words"] = _quoted_list(theme.keywords, language)
            slots["first"] = _quoted_list(theme.keywords[:1], language)
        return text.format(**slots)

    return Both(filled(block.en, "en"), filled(block.de, "de"))


def _weaves(theme: Theme) -> list[Both]:
    """Blocks that make the theme concrete with the keywords there are; "{words}" speaks of several."""
    usable = {
        "theme",
        *(["first"] if theme.keywords else []),
        *(["words"] if len(theme.keywords) > 1 else []),
    }
    woven = [block for block in shared.WEAVES if set(block.slots()) <= usable]
    return woven if len(theme.keywords) > 1 else [*woven, *shared.WEAVES_PLAIN]


def _context(perspective: Perspective, theme: Theme, choice: _Choice) -> dict[str, Json]:
    # The first step lays the ground for the others; any of them can be missing.
    left_out = 1 + choice.number(len(perspective.steps) - 1)
    own = [step for index, step in enumerate(perspective.steps) if index != left_out]
    weave = choice.one(_weaves(theme))
    detail = choice.one(shared.DETAILS)
    # The theme may come first or after the first look; exactness anywhere among the middle steps.
    steps = [weave, *own] if choice.number(2) else [own[0], weave, *own[1:]]
    steps.insert(2 + choice.number(3), detail)
    ends = [choice.one(shared.KEEPS), choice.one(shared.RESPECT), choice.one(shared.AGAINST_HABIT)]
    shift = choice.number(3)
    steps += ends[shift:] + ends[:shift]
    opening = [_fill(perspective.who, theme), _fill(choice.one(shared.SITUATIONS), theme)]
    heading, ending = choice.one(shared.HEADINGS), choice.one(shared.ENDINGS[perspective.medium])
    filled = [_fill(step, theme) for step in steps]

    def written(language: str) -> str:
        lines = [f"{number}. {getattr(step, language)}" for number, step in enumerate(filled, 1)]
        first = " ".join(getattr(block, language) for block in opening)
        body = "\n".join([getattr(heading, language), *lines])
        return f"{first}\n\n{body}\n\n{getattr(ending, language)}"

    return {"en": written("en"), "de": written("de")}


def _by_language(block: Both) -> dict[str, Json]:
    return {"en": block.en, "de": block.de}


def _name(perspective: Perspective, theme: Theme) -> dict[str, Json]:
    label = theme.label[:1].upper() + theme.label[1:]
    return {"en": f"{label}: {perspective.name.en}", "de": f"{label}: {perspective.name.de}"}


def _display(
    perspective: Perspective, templates: Sequence[Content], configs: Mapping[str, Content]
) -> dict[str, Json]:
    orders = [value for value in _numbers(list(configs.values()), "display", "order") if value < 900]
    return {
        "icon": perspective.icon,
        "color": perspective.color,
        "category": perspective.group,
        "difficulty": min(5, max(1, round(_median(templates, "display", "difficulty", 2)))),
        # Production numbers in tens and parks what it retired at 900 and above.
        "order": int(max(orders, default=0)) // 10 * 10 + 10,
    }


def _content(
    perspective: Perspective,
    theme: Theme,
    templates: Sequence[Content],
    configs: Mapping[str, Content],
    choice: _Choice,
) -> dict[str, Json]:
    display = _display(perspective, templates, configs)
    difficulty = display["difficulty"]
    complexity = "beginner" if difficulty in (1, 2) else "intermediate" if difficulty == 3 else "advanced"
    temperature = _median(templates, "parameters", "temperature", 0.7) + perspective.warmth
    output, supported = _MEDIA[perspective.medium]
    words = list(
        dict.fromkeys(word.lower() if word.isupper() else word for word in (theme.label, *theme.keywords))
    )
    told = {word.casefold() for word in words}
    # A theme may be a perspective's tag in one of the languages ("Gerechtigkeit"): then the pair is left out.
    further = [tag for tag in perspective.tags if not told & {tag.en.casefold(), tag.de.casefold()}]
    return {
        "pipeline": "text_transformation",
        "instruction_type": "artistic_transformation",
        "name": _name(perspective, theme),
        "description": _by_language(_fill(perspective.description, theme)),
        "category": _by_language(perspective.category),
        "properties": list(perspective.properties),
        "context": _context(perspective, theme, choice),
        "parameters": {
            "temperature": round(min(1.0, max(0.3, temperature)) * 20) / 20,
            "top_p": round(min(1.0, max(0.5, _median(templates, "parameters", "top_p", 0.92))), 2),
            "max_tokens": int(min(4096, max(512, _median(templates, "parameters", "max_tokens", 1536)))),
        },
        "media_preferences": {"default_output": output, "supported_types": list(supported)},
        "meta": {"stage": "interception", "wikipedia": False},
        "display": display,
        "tags": {
            "en": [*words, *(tag.en for tag in further)],
            "de": [*words, *(tag.de for tag in further)],
        },
        "audience": {
            "workshop_suitable": True,
            "min_age": int(min(14, max(6, _median(templates, "audience", "min_age", 8)))),
            "complexity": complexity,
        },
    }


def suggest_id(theme: Theme, perspective_slug: str, taken: Mapping[str, str]) -> str:
    """An id of theme and perspective that folds unlike every taken one; the same for the same input."""
    stem = slug(theme.label)
    if len(stem) < 3:
        # No Latin form: a short digest keeps different themes apart.
        stem = f"theme_{hashlib.sha256(theme.label.encode()).hexdigest()[:8]}"
    base = f"{stem}_{perspective_slug}"[:58].strip("_")
    candidate, number = base, 2
    while fold(candidate) in taken or candidate in RESERVED or not CONFIG_ID.fullmatch(candidate):
        candidate, number = f"{base}_{number}", number + 1
    return candidate


def _candidates(templates: Sequence[Content]) -> tuple[Perspective, ...]:
    """Perspectives for the templates' medium, without those that every template already takes."""
    known = [
        set(props) if isinstance(props := t.get("properties"), list | tuple) else set() for t in templates
    ]
    pool = _PERSPECTIVES[_medium(templates)]
    fresh = tuple(
        p for p in pool if not known or not all(set(p.properties) <= properties for properties in known)
    )
    return fresh or pool


def compose(
    label: str,
    keywords: Sequence[str],
    nearest_ids: Sequence[str],
    configs: Mapping[str, Content],
    taken: Mapping[str, str],
) -> Draft:
    """Draft for a theme.

    Args:
        label: Theme in a few words, any language.
        keywords: Words that set it apart, strongest first, any language.
        nearest_ids: Ids of the nearest configs, best first; unknown ones are passed over.
        configs: Readable interception configs of production by id.
        taken: Folded ids of configs of every kind → where.

    Raises:
        ThemeInvalid: label and keywords leave nothing harmless.
        TemplatesMissing: production has no readable config.
    """
    theme = read_theme(label, keywords)
    if theme is None:
        raise ThemeInvalid.at(
            "theme", "nothing is left of it that may stand in a config; name the theme in plain words"
        )
    names = choose_templates(theme, nearest_ids, configs)
    templates = [configs[name] for name in names]
    pool = _candidates(templates)
    start = _Choice("perspective", theme.label, *theme.keywords, *names).number(len(pool))
    best: tuple[float, Perspective, dict[str, Json]] | None = None
    for variant in range(_MAX_VARIANTS):
        perspective = pool[(start + variant) % len(pool)]
        choice = _Choice("context", str(variant), perspective.slug, theme.label, *theme.keywords, *names)
        content = _content(perspective, theme, templates, configs, choice)
        similarity = nearest(content, configs.items())[1]
        if best is None or similarity < best[0]:
            best = (similarity, perspective, content)
        if similarity <= TARGET_SIMILARITY:
            break
    if best is None:  # pragma: no cover - _MAX_VARIANTS is positive
        raise TemplatesMissing("No variant could be composed.")
    _, perspective, content = best
    return Draft(suggest_id(theme, perspective.slug, taken), content, names)

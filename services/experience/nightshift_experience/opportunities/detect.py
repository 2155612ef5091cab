"""Finds what experience suggests to improve: themes that no config fits, and configs that nobody keeps."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightshift_kit.proportions import wilson

from .configs import ConfigTexts
from .coverage import Coverage, measure
from .facts import RunFact
from .masking import mask
from .themes import Theme, find_themes

UNCOVERED_THEME = 1
WEAK_CONFIG = 2

_EXAMPLES = 5
_NEAREST = 3
_SAME_THEME_MEANING = 0.35
_SAME_THEME_KEYWORDS = 0.5


@dataclass(frozen=True)
class DetectionLimits:
    """When something is said at all.

    Attributes:
        min_production_runs: Below it a detection finds nothing.
        min_theme_runs, min_theme_sessions: Of an uncovered theme.
        min_run_share, min_session_share: Of all production runs and sessions, of an uncovered theme.
        min_theme_score: Evidence in nats, beyond the logarithm of the number of themes that are large enough
            to be judged: who looks at many themes finds odd ones by chance.
        min_config_runs: Production runs of a weak config, and of each config that it is compared with.
        weak_rate: A weak config's favourite rate lies below it.
    """

    min_production_runs: int = 400
    min_theme_runs: int = 25
    min_theme_sessions: int = 6
    min_run_share: float = 0.01
    min_session_share: float = 0.025
    min_theme_score: float = 0.5
    min_config_runs: int = 30
    weak_rate: float = 0.05


@dataclass(frozen=True)
class Finding:
    """One opportunity, ready to be stored. Fields as in the proto; rates as (count, total)."""

    opportunity_id: str
    kind: int
    label: str
    score: float
    runs: int
    favorites: int
    keywords: list[str]
    example_prompts: list[str]
    languages: dict[str, int]
    nearest_configs: list[str] = field(default_factory=list)
    best_fit: float = 0.0
    explanation: str = ""

    def payload(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def detect(
    facts: Sequence[RunFact],
    configs: Sequence[ConfigTexts],
    *,
    prompt_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    config_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    known_keywords: Mapping[str, Sequence[str]] | None = None,
    limits: DetectionLimits | None = None,
) -> list[Finding]:
    """Opportunities, best first.

    Args:
        facts: Production runs that have a prompt, in time order.
        configs: What the platform's configs say about themselves.
        prompt_vectors: By prompt digest.
        config_vectors: By config id.
        known_keywords: Keywords of themes found earlier, by opportunity id; a theme that shares half of
            them keeps the id.
        limits: When something is said at all.
    """
    limits = limits or DetectionLimits()
    if len(facts) < limits.min_production_runs:
        return []
    found = [
        *_uncovered(facts, configs, prompt_vectors, config_vectors, known_keywords or {}, limits),
        *_weak(facts, limits),
    ]
    return sorted(found, key=lambda finding: (-finding.score, finding.opportunity_id))


def _uncovered(
    facts: Sequence[RunFact],
    configs: Sequence[ConfigTexts],
    prompt_vectors: Mapping[str, NDArray[np.float32]] | None,
    config_vectors: Mapping[str, NDArray[np.float32]] | None,
    known_keywords: Mapping[str, Sequence[str]],
    limits: DetectionLimits,
) -> list[Finding]:
    themes = find_themes(facts, prompt_vectors)
    coverages = measure(themes, configs, config_vectors)
    least_runs = max(limits.min_theme_runs, limits.min_run_share * len(facts))
    least_sessions = max(
        limits.min_theme_sessions, limits.min_session_share * len({fact.session for fact in facts})
    )
    judged = [
        (theme, coverage)
        for theme, coverage in zip(themes, coverages, strict=True)
        if coverage.runs >= least_runs and coverage.sessions >= least_sessions and theme.keywords
    ]
    threshold = limits.min_theme_score + math.log(max(1, len(judged)))
    candidates = [(theme, coverage) for theme, coverage in judged if coverage.score >= threshold]
    candidates.sort(key=lambda pair: (-pair[1].score, pair[0].label))
    findings: list[Finding] = []
    taken: set[str] = set()
    for group in _merge_languages(candidates):
        finding = _theme_finding(group, known_keywords, taken)
        taken.add(finding.opportunity_id)
        findings.append(finding)
    return findings


def _merge_languages(
    candidates: Sequence[tuple[Theme, Coverage]],
) -> list[list[tuple[Theme, Coverage]]]:
    """Joins candidates that are one theme: near in meaning in two languages, or sharing keywords in one."""
    groups: list[list[tuple[Theme, Coverage]]] = []
    for candidate in candidates:
        for group in groups:
            if any(_same(candidate[0], theme) for theme, _ in group):
                group.append(candidate)
                break
        else:
            groups.append([candidate])
    return groups


def _same(one: Theme, other: Theme) -> bool:
    if one.language == other.language:
        return _overlap(one.keywords, other.keywords) >= _SAME_THEME_KEYWORDS
    if one.vector is None or other.vector is None:
        return False
    return float(one.vector @ other.vector) >= _SAME_THEME_MEANING


def _theme_finding(
    group: Sequence[tuple[Theme, Coverage]], known: Mapping[str, Sequence[str]], taken: set[str]
) -> Finding:
    theme, coverage = group[0]
    runs = [run for member, _ in group for run in member.runs]
    favorites = sum(run.favorite for run in runs)
    languages = Counter(run.language for run in runs)
    _, upper = wilson(favorites, len(runs))
    fits = coverage.fits[:_NEAREST]
    best = f"{fits[0][0]} fits best, with {fits[0][1]:.2f} of 1" if fits else "no config is known"
    sessions = len({run.session for run in runs})
    return Finding(
        opportunity_id=_theme_id(theme.keywords, known, taken),
        kind=UNCOVERED_THEME,
        label=theme.label,
        score=_unit_score(coverage.score),
        runs=len(runs),
        favorites=favorites,
        keywords=list(theme.keywords),
        example_prompts=_examples(theme),
        languages=dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        nearest_configs=[config for config, _ in fits],
        best_fit=fits[0][1] if fits else 0.0,
        explanation=(
            f"{len(runs)} production runs in {sessions} sessions share this theme, "
            f"{coverage.demand:.1f} times the median theme of their language. {favorites} of them are "
            f"favourites ({favorites / len(runs):.1%}, at most {upper:.1%} with 95 % confidence), against "
            f"{coverage.rest_rate:.1%} of all other runs. "
            f"Of the configs {best}. Evidence {coverage.score:.1f} nats."
        ),
    )


def _unit_score(nats: float) -> float:
    """Evidence as a number from 0 to 1, for ordering only."""
    return round(1 - math.exp(-max(0.0, nats) / 8), 4)


def _theme_id(keywords: Sequence[str], known: Mapping[str, Sequence[str]], taken: set[str]) -> str:
    shared = sorted(
        ((_overlap(keywords, old), opportunity_id) for opportunity_id, old in known.items()),
        key=lambda pair: (-pair[0], pair[1]),
    )
    for overlap, opportunity_id in shared:
        if overlap >= _SAME_THEME_KEYWORDS and opportunity_id not in taken:
            return opportunity_id
    canonical = "\n".join(sorted(word.casefold() for word in keywords))
    return f"theme-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Shared keywords over the smaller set (Szymkiewicz-Simpson)."""
    first, second = {w.casefold() for w in one}, {w.casefold() for w in other}
    smaller = min(len(first), len(second))
    return len(first & second) / smaller if smaller else 0.0


def _examples(theme: Theme) -> list[str]:
    """One masked prompt of each motif in turn, no two of one sitting where that can be helped."""
    shown: dict[str, None] = {}
    sittings: set[str] = set()
    for strict in (True, False):
        for place in range(max(len(motif) for motif in theme.motifs)):
            for motif in theme.motifs:
                if place >= len(motif) or len(shown) >= _EXAMPLES:
                    continue
                run = motif[place]
                if strict and run.session in sittings:
                    continue
                text = mask(run.prompt)
                if text and text not in shown:
                    shown[text] = None
                    sittings.add(run.session)
    return list(shown)


def _weak(facts: Sequence[RunFact], limits: DetectionLimits) -> list[Finding]:
    runs_of: dict[str, list[RunFact]] = {}
    for fact in facts:
        if fact.config:
            runs_of.setdefault(fact.config, []).append(fact)
    known = {config: runs for config, runs in runs_of.items() if len(runs) >= limits.min_config_runs}
    rates = {config: sum(run.favorite for run in runs) / len(runs) for config, runs in known.items()}
    findings = []
    for config, runs in known.items():
        others = [rate for other, rate in rates.items() if other != config]
        if len(others) < 2:
            continue
        median = statistics.median(others)
        favorites = sum(run.favorite for run in runs)
        _, upper = wilson(favorites, len(runs))
        if rates[config] >= limits.weak_rate or upper >= median:
            continue
        languages = Counter(run.language for run in runs)
        examples = dict.fromkeys(mask(run.prompt) for run in reversed(runs) if not run.favorite)
        findings.append(
            Finding(
                opportunity_id=f"config-{hashlib.sha256(config.encode()).hexdigest()[:16]}",
                kind=WEAK_CONFIG,
                label=config,
                score=round(min(1.0, (median - upper) / median), 4),
                runs=len(runs),
                favorites=favorites,
                keywords=[],
                example_prompts=[text for text in examples if text][:_EXAMPLES],
                languages=dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
                explanation=(
                    f"{favorites} of {len(runs)} production runs with {config} are favourites "
                    f"({rates[config]:.1%}, at most {upper:.1%} with 95 % confidence); the median of the "
                    f"other {len(others)} configs is {median:.1%}."
                ),
            )
        )
    return findings

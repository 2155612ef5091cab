"""Whether a theme has a config that fits it: what its users choose, what they keep, what the configs say.

Evidence is counted in nats (natural logarithm of a likelihood ratio), so that its parts add up.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from .configs import ConfigTexts
from .themes import Theme
from .words import stem, words

# A theme that nothing fits is kept a quarter as often as the rest; what lies between counts half.
_UNFIT_SHARE = 0.25
# How strongly the choice of configs would lean, if some fitted: a Dirichlet prior worth this many choices.
_CHOICE_PRIOR = 12.0
# Choices of a few dozen sittings say little; they may add to the score or lower it, not decide it.
_CHOICE_WEIGHT = 0.1
_CHOICE_LIMIT = 0.5
_DEMAND_WEIGHT = 2.0
# Where a language has few runs its median theme is tiny; being many times that is no more than being wanted.
_DEMAND_LIMIT = 2.5
_NAMED_WEIGHT = 3.0
_LIFT_PRIOR = 5.0
_LIFT_FULL = 3.0
_MEANING_LANGUAGES = frozenset({"en"})


@dataclass(frozen=True)
class Coverage:
    """What speaks for a theme being uncovered.

    Attributes:
        runs, favorites, sessions: Of the theme.
        rest_rate: Favourite rate of all other production runs.
        keeping: Evidence of the favourites, corrected for people who mark many at once.
        choosing: Evidence of the configs chosen: positive where they are chosen as by anybody.
        demand: Runs of the theme over the median theme of its language.
        named: Largest share of its runs that use a word of one config's name or tags.
        fits: Fit of each config, 0 to 1, best first.
    """

    runs: int
    favorites: int
    sessions: int
    rest_rate: float
    keeping: float
    choosing: float
    demand: float
    named: float
    fits: tuple[tuple[str, float], ...]

    @property
    def score(self) -> float:
        """Evidence in nats that nothing fits, weighed by how much the theme is asked for."""
        return (
            self.keeping
            + max(-_CHOICE_LIMIT, min(_CHOICE_LIMIT, _CHOICE_WEIGHT * self.choosing))
            + _DEMAND_WEIGHT * math.log(min(_DEMAND_LIMIT, max(self.demand, 0.05)))
            - _NAMED_WEIGHT * self.named
        )


def measure(
    themes: Sequence[Theme],
    configs: Sequence[ConfigTexts],
    config_vectors: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    min_sessions: int = 3,
) -> list[Coverage]:
    """Coverage of each theme.

    Args:
        themes: All themes of a project.
        configs: What the platform's configs say; may be empty.
        config_vectors: Unit vector of each config's English summary, by config id.
        min_sessions: Themes of fewer sittings do not count for the median.
    """
    total_runs = sum(len(theme.runs) for theme in themes)
    total_favorites = sum(run.favorite for theme in themes for run in theme.runs)
    clumping = _intraclass(themes)
    median = _median_sizes(themes, min_sessions)
    chosen = [_choices(theme) for theme in themes]
    everyone: Counter[str] = Counter()
    for counts in chosen:
        everyone.update(counts)
    known = sorted({*everyone, *(texts.config for texts in configs)})
    texts_of = {texts.config: texts for texts in configs}
    centred = _centred(config_vectors or {})
    coverages = []
    for theme, counts in zip(themes, chosen, strict=True):
        runs, favorites = len(theme.runs), sum(run.favorite for run in theme.runs)
        others = max(1, total_runs - runs)
        rest = min(0.99, max(1e-6, (total_favorites - favorites) / others))
        elsewhere = everyone.total() - counts.total() + 0.5 * len(known)
        share = {config: (everyone[config] - counts[config] + 0.5) / elsewhere for config in known}
        named = {config: _named(theme, texts_of[config]) for config in known if config in texts_of}
        fits = _fits(theme, known, counts, share, named, centred)
        coverages.append(
            Coverage(
                runs=runs,
                favorites=favorites,
                sessions=len({run.session for run in theme.runs}),
                rest_rate=rest,
                keeping=_keeping(theme, rest, clumping),
                choosing=_choosing(counts, share),
                demand=runs / median.get(theme.language, runs),
                named=max(named.values(), default=0.0),
                fits=fits,
            )
        )
    return coverages


def _keeping(theme: Theme, rest: float, clumping: float) -> float:
    """Log likelihood ratio of "kept a quarter as often as the rest" against "kept as often".

    Divided by Kish's design effect 1 + (m - 1) * rho with m the runs of a sitting, weighted by runs: one
    person's favourites are not independent.
    """
    runs, favorites = len(theme.runs), sum(run.favorite for run in theme.runs)
    sizes = Counter(run.session for run in theme.runs)
    weighted = sum(size * size for size in sizes.values()) / runs
    design = 1 + (weighted - 1) * clumping
    unfit = _UNFIT_SHARE * rest
    ratio = favorites * math.log(_UNFIT_SHARE) + (runs - favorites) * math.log((1 - unfit) / (1 - rest))
    return ratio / design


def _intraclass(themes: Sequence[Theme]) -> float:
    """Intraclass correlation of favourites within a sitting on one theme: ANOVA estimator, at least 0."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for number, theme in enumerate(themes):
        for run in theme.runs:
            group = groups[number, run.session]
            group[0] += 1
            group[1] += run.favorite
    total = sum(size for size, _ in groups.values())
    if total <= len(groups) or len(groups) < 2:
        return 0.0
    mean = sum(kept for _, kept in groups.values()) / total
    between = sum(size * (kept / size - mean) ** 2 for size, kept in groups.values()) / (len(groups) - 1)
    within = sum(kept * (1 - kept / size) for size, kept in groups.values()) / (total - len(groups))
    typical = (total - sum(size * size for size, _ in groups.values()) / total) / (len(groups) - 1)
    denominator = between + (typical - 1) * within
    return max(0.0, (between - within) / denominator) if denominator > 0 else 0.0


def _median_sizes(themes: Sequence[Theme], min_sessions: int) -> dict[str, float]:
    sizes: dict[str, list[int]] = defaultdict(list)
    for theme in themes:
        if len({run.session for run in theme.runs}) >= min_sessions:
            sizes[theme.language].append(len(theme.runs))
    return {language: float(np.median(values)) for language, values in sizes.items()}


def _choices(theme: Theme) -> Counter[str]:
    """How many sittings chose each config for the theme: a regeneration is no new choice."""
    return Counter(config for _, config in {(run.session, run.config) for run in theme.runs if run.config})


def _choosing(counts: Counter[str], share: Mapping[str, float]) -> float:
    """Log Bayes factor of "chosen as by anybody" (multinomial) against "leaning" (Dirichlet-multinomial)."""
    total = counts.total()
    if not total or not share:
        return 0.0
    observed = np.array([counts[config] for config in share], dtype=float)
    expected = np.array(list(share.values()))
    expected = expected / expected.sum()
    prior = _CHOICE_PRIOR * expected
    leaning = (
        gammaln(_CHOICE_PRIOR)
        - gammaln(_CHOICE_PRIOR + total)
        + float(np.sum(gammaln(prior + observed) - gammaln(prior)))
    )
    return float(np.sum(observed * np.log(expected)) - leaning)


def _named(theme: Theme, texts: ConfigTexts) -> float:
    """Share of the theme's runs that use a word of the config's name or tags."""
    names = {
        folded
        for text in texts.words_of(theme.language)
        for word in words(text)
        if len(folded := stem(word)) > 3
    }
    if not names:
        return 0.0
    hits: dict[str, bool] = {}
    found = 0
    for run in theme.runs:
        if run.digest not in hits:
            hits[run.digest] = any(
                word.startswith(tuple(names)) or any(name.startswith(word) for name in names if len(word) > 3)
                for word in map(stem, words(run.prompt))
            )
        found += hits[run.digest]
    return found / len(theme.runs)


def _centred(vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    if len(vectors) < 2:
        return {}
    mean = np.mean(list(vectors.values()), axis=0)
    return {config: (v - mean) / (float(np.linalg.norm(v - mean)) or 1.0) for config, v in vectors.items()}


def _fits(
    theme: Theme,
    known: Sequence[str],
    counts: Counter[str],
    share: Mapping[str, float],
    named: Mapping[str, float],
    centred: Mapping[str, NDArray[np.float32]],
) -> tuple[tuple[str, float], ...]:
    """How well each config fits: the mean of what its users choose, what it names and what it means."""
    total = counts.total()
    fits = []
    for config in known:
        expected = total * share[config]
        lift = (counts[config] + _LIFT_PRIOR) / (expected + _LIFT_PRIOR)
        parts = [min(1.0, max(0.0, (lift - 1) / (_LIFT_FULL - 1)))]
        if config in named:
            parts.append(named[config])
        if theme.language in _MEANING_LANGUAGES and theme.vector is not None and config in centred:
            parts.append(max(0.0, float(theme.vector @ centred[config])))
        fits.append((config, round(sum(parts) / len(parts), 4)))
    return tuple(sorted(fits, key=lambda fit: (-fit[1], fit[0])))

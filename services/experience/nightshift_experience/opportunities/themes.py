"""Themes: motifs that people pursue together.

Two prompts may share no word and still be about one thing ("my cane as a magic wand", "a ramp to the moon").
What binds them is that the same people write both within one sitting, far more often than chance would have
it; in English also that they are near in meaning.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .facts import RunFact
from .motifs import average_linkage, find_motifs
from .words import spellings

# Share of common sittings from which two groups of motifs are one theme. At a third of it different themes
# begin to merge on tuning data, at twice of it one theme falls apart.
_BOND = 0.06
# What one person who happened to combine subjects may add to a bond.
_CHANCE = 0.25
# Centred cosine of two motifs' mean vectors from which they are one theme without a common sitting; below it
# MiniLM joins English themes wrongly as often as rightly, and says nothing in most other languages.
_SAME_MEANING = 0.5
_MEANING_LANGUAGES = frozenset({"en"})
_PROMPTS_PER_LANGUAGE = 4_000
_KEYWORDS = 12
_MIN_KEYWORD_SESSIONS = 3
_LABEL_WORDS = 3
# Weaker words than this share of a motif's strongest go with many subjects.
_KEYWORD_FLOOR = 0.5


@dataclass(frozen=True)
class Theme:
    """Prompts of one language that are about one thing.

    Attributes:
        language: Of its prompts.
        runs: Its runs in time order.
        motifs: Runs by motif, most first.
        keywords: Words that set it apart, strongest first, each used in several sittings.
        label: Its strongest words, one of each of its largest motifs.
        vector: Mean vector less the mean of its language, unit length; None without vectors.
    """

    language: str
    runs: tuple[RunFact, ...]
    motifs: tuple[tuple[RunFact, ...], ...]
    keywords: tuple[str, ...]
    label: str
    vector: NDArray[np.float32] | None


def find_themes(
    facts: Sequence[RunFact], vectors: Mapping[str, NDArray[np.float32]] | None = None
) -> list[Theme]:
    """Themes of all languages.

    Args:
        facts: Production runs.
        vectors: Unit vectors by prompt digest; may lack some, or all.
    """
    by_language: dict[str, list[RunFact]] = defaultdict(list)
    for fact in facts:
        by_language[fact.language].append(fact)
    themes: list[Theme] = []
    for language in sorted(by_language):
        themes += _themes_of(language, by_language[language], vectors or {})
    return themes


def _themes_of(
    language: str, facts: Sequence[RunFact], vectors: Mapping[str, NDArray[np.float32]]
) -> list[Theme]:
    runs_of: dict[str, list[RunFact]] = defaultdict(list)
    for fact in facts:
        runs_of[fact.digest].append(fact)
    # The newest prompts, where there are more than fit.
    digests = list(runs_of)[-_PROMPTS_PER_LANGUAGE:]
    sessions = [frozenset(run.session for run in runs_of[digest]) for digest in digests]
    motifs = find_motifs([runs_of[digest][0].prompt for digest in digests], sessions)
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(motifs.labels):
        members[label].append(index)
    labels = sorted(members)
    meanings = _meanings([[digests[i] for i in members[label]] for label in labels], vectors)
    groups = _join(
        [frozenset().union(*(sessions[i] for i in members[label])) for label in labels],
        meanings if language in _MEANING_LANGUAGES else None,
    )
    shown = spellings(runs_of[digest][0].prompt for digest in digests)
    themes = []
    for group in groups:
        runs_by_motif = [
            (position, tuple(run for i in members[labels[position]] for run in runs_of[digests[i]]))
            for position in group
        ]
        runs_by_motif.sort(key=lambda pair: (-len(pair[1]), pair[1][0].run_id))
        parts = [part for _, part in runs_by_motif]
        strongest = [
            _strong_stems(members[labels[position]], motifs.stems, motifs.weight, sessions)
            for position, _ in runs_by_motif
        ]
        keywords = _interleave(strongest, _KEYWORDS)
        vector = None
        if meanings is not None:
            mean = meanings[list(group)].mean(axis=0)
            vector = (mean / (np.linalg.norm(mean) or 1.0)).astype(np.float32)
        themes.append(
            Theme(
                language=language,
                runs=tuple(sorted((r for part in parts for r in part), key=lambda r: (r.start_us, r.run_id))),
                motifs=tuple(parts),
                keywords=tuple(shown[item] for item in keywords),
                label=" · ".join(shown[item] for item in _interleave(strongest, _LABEL_WORDS)),
                vector=vector,
            )
        )
    return themes


def _meanings(
    groups: Sequence[Sequence[str]], vectors: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """Mean vector of each motif, centred on the language, unit length; None unless all motifs have one."""
    means = []
    for digests in groups:
        known = [vectors[digest] for digest in digests if digest in vectors]
        if not known:
            return None
        means.append(np.mean(known, axis=0))
    matrix = np.asarray(means, dtype=np.float32)
    # What all prompts of a language share says nothing about any of them.
    matrix = matrix - matrix.mean(axis=0)
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    length[length == 0] = 1.0
    return np.asarray(matrix / length, dtype=np.float32)


def _join(sessions: Sequence[frozenset[str]], meanings: NDArray[np.float32] | None) -> list[tuple[int, ...]]:
    """Groups of motifs. A sitting with many motifs binds each pair of them the less."""
    count = len(sessions)
    if count < 2:
        return [(index,) for index in range(count)]
    motifs_of: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(sessions):
        for name in names:
            motifs_of[name].append(index)
    bond: dict[tuple[int, int], float] = defaultdict(float)
    for present in motifs_of.values():
        for pair in combinations(sorted(present), 2):
            bond[pair] += 1 / (len(present) - 1)
    similarity = np.zeros((count, count))
    for (one, other), weight in bond.items():
        value = (weight - _CHANCE) / math.sqrt(len(sessions[one]) * len(sessions[other]))
        similarity[one, other] = similarity[other, one] = min(1.0, max(0.0, value))
    if meanings is not None:
        near = meanings @ meanings.T
        similarity = np.where(near >= _SAME_MEANING, np.maximum(similarity, near), similarity)
    distance = np.clip(1.0 - similarity, 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(average_linkage(distance, 1.0 - _BOND)):
        groups[label].append(index)
    return [tuple(group) for group in groups.values()]


def _strong_stems(
    members: Sequence[int],
    stems: Sequence[frozenset[str]],
    weight: Mapping[str, float],
    sessions: Sequence[frozenset[str]],
) -> list[str]:
    """Stems of a motif, strongest first; only what several sittings use, so that no one person shows."""
    used: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    for index in members:
        for item in stems[index]:
            used[item] += 1
            where[item] |= sessions[index]
    common = min(_MIN_KEYWORD_SESSIONS, len(set().union(*(sessions[i] for i in members))))
    strength = {
        item: count / len(members) * weight[item]
        for item, count in used.items()
        if len(where[item]) >= common and len(item) > 1
    }
    floor = _KEYWORD_FLOOR * max(strength.values(), default=0.0)
    strength = {item: value for item, value in strength.items() if value >= floor}
    # Longer words first among equals: of a fixed phrase they carry the meaning.
    return sorted(strength, key=lambda item: (-round(strength[item], 1), -len(item), item))


def _interleave(rankings: Sequence[Sequence[str]], limit: int) -> list[str]:
    taken: dict[str, None] = {}
    for place in range(max((len(ranking) for ranking in rankings), default=0)):
        for ranking in rankings:
            if place < len(ranking):
                taken.setdefault(ranking[place])
    return list(taken)[:limit]

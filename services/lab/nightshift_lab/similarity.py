"""How alike two configs are.

The similarity of two texts is the cosine of their word-bigram counts,

    sim(a, b) = Σ a_i·b_i / (‖a‖·‖b‖),    a_i = how often bigram i occurs in a,

over case-folded words of the normal form. Single words would make any two English texts alike through their
function words (about 0.7); pairs of words put unrelated texts below 0.2 and lightly edited copies above
0.8. The similarity of two configs is the largest over the languages that both contexts have, so that
copying one language is enough.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from .wording import Json, words


def bigrams(text: str) -> Counter[tuple[str, str]]:
    """Counts of neighbouring words; a text of one word counts as the pair (word, "")."""
    found = words(text)
    if len(found) == 1:
        return Counter({(found[0], ""): 1})
    return Counter(itertools.pairwise(found))


def text_similarity(one: str, other: str) -> float:
    """Cosine of the word-bigram counts, 0 to 1; 0 where either text has no words."""
    a, b = bigrams(one), bigrams(other)
    dot = sum(count * b[pair] for pair, count in a.items() if pair in b)
    norm = math.sqrt(sum(c * c for c in a.values())) * math.sqrt(sum(c * c for c in b.values()))
    return min(1.0, dot / norm) if norm else 0.0


def contexts(content: Mapping[str, Json]) -> dict[str, str]:
    """Context texts by language; a context that is one string counts as English, other shapes as none."""
    context = content.get("context")
    if isinstance(context, str):
        return {"en": context}
    if isinstance(context, Mapping):
        return {language: text for language, text in context.items() if isinstance(text, str)}
    return {}


def config_similarity(one: Mapping[str, Json], other: Mapping[str, Json]) -> float:
    """Largest text similarity over the languages that both contexts have, 0 to 1; 0 where they share none."""
    mine, theirs = contexts(one), contexts(other)
    return max(
        (text_similarity(mine[lang], theirs[lang]) for lang in mine.keys() & theirs.keys()), default=0.0
    )


def nearest(
    content: Mapping[str, Json], others: Iterable[tuple[str, Mapping[str, Json]]]
) -> tuple[str, float]:
    """Id and similarity of the most similar of `others` (id, content); ("", 0.0) where there are none.

    Ties go to the smaller id, so that the answer does not depend on the order of a folder.
    """
    scored = [(-config_similarity(content, other), name) for name, other in others]
    if not scored:
        return "", 0.0
    score, name = min(scored)
    return name, -score

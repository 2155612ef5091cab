"""Groups prompts of one language that say the same thing in slightly different words.

Prompts mix what they are about with how it should look ("… , seen from above, almost transparent"). Words of
the second kind go with everything. So the grouping is done several times: after each round a word counts the
less, the more groups it is spread over, until what keeps groups together is their subject.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from sklearn.cluster import AgglomerativeClustering

from .words import stems

_ROUNDS = 3
# Cosine distance at which two groups are still one: in the flat middle of 0.5 to 0.7, where the number of
# groups on tuning data hardly moves.
_DISTANCE = 0.6
_IDF_POWER = 2.0


@dataclass(frozen=True)
class Motifs:
    """A grouping of prompts.

    Attributes:
        labels: Group of each prompt, from 0.
        weight: How much a stem tells about the subject: high for words that are rare and keep to few groups.
        stems: Distinct stems of each prompt.
    """

    labels: list[int]
    weight: dict[str, float]
    stems: list[frozenset[str]]


def find_motifs(prompts: Sequence[str], sessions: Sequence[frozenset[str]]) -> Motifs:
    """Groups distinct prompts of one language.

    Args:
        prompts: Distinct prompts, a few thousand at most: memory grows with their square.
        sessions: Sessions in which each was run. A word's rarity is counted in these, since one person's many
            tries say it once.
    """
    found = [stems(prompt) for prompt in prompts]
    where: dict[str, set[str]] = defaultdict(set)
    uses: Counter[str] = Counter()
    for prompt_stems, prompt_sessions in zip(found, sessions, strict=True):
        for item in prompt_stems:
            where[item] |= prompt_sessions
            uses[item] += 1
    session_count = len(set().union(*sessions)) if sessions else 0
    rarity = {item: math.log(1 + session_count / len(where[item])) ** _IDF_POWER for item in where}
    spread = dict.fromkeys(where, 1.0)
    labels = list(range(len(prompts)))
    # A word of a single prompt binds nothing.
    vocabulary = {item: column for column, item in enumerate(sorted(i for i, n in uses.items() if n > 1))}
    if len(prompts) < 2 or not vocabulary:
        return Motifs(labels, rarity, found)
    for _ in range(_ROUNDS):
        weight = {item: rarity[item] / spread[item] for item in vocabulary}
        labels = _cluster(found, vocabulary, weight)
        spread = _spread(found, labels)
    return Motifs(labels, {item: rarity[item] / spread[item] for item in rarity}, found)


def _cluster(
    found: Sequence[frozenset[str]], vocabulary: dict[str, int], weight: dict[str, float]
) -> list[int]:
    rows, columns, values = [], [], []
    for row, prompt_stems in enumerate(found):
        for item in sorted(prompt_stems & vocabulary.keys()):
            rows.append(row)
            columns.append(vocabulary[item])
            values.append(weight[item])
    matrix = sparse.csr_matrix(
        (np.asarray(values, dtype=np.float32), (rows, columns)), shape=(len(found), len(vocabulary))
    )
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    length[length == 0] = 1.0
    unit = sparse.diags(1.0 / length) @ matrix
    distance = np.clip(1.0 - (unit @ unit.T).toarray(), 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    return average_linkage(distance, _DISTANCE)


def average_linkage(distance: np.ndarray, threshold: float) -> list[int]:
    """Labels of average-linkage groups whose mean distance stays below a threshold."""
    model = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=threshold
    )
    return [int(label) for label in model.fit_predict(distance)]


def _spread(found: Sequence[frozenset[str]], labels: Sequence[int]) -> dict[str, float]:
    """Over how many groups a stem is spread: the perplexity of its distribution."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for prompt_stems, label in zip(found, labels, strict=True):
        for item in prompt_stems:
            counts[item][label] += 1
    spread = {}
    for item, groups in counts.items():
        total = groups.total()
        entropy = -sum(n / total * math.log(n / total) for n in groups.values())
        spread[item] = math.exp(entropy)
    return spread

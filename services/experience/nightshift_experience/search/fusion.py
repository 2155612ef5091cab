"""Putting ranked lists together."""

from __future__ import annotations

from collections.abc import Sequence

from .index import IndexHit

# Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet … (SIGIR 2009): k = 60.
_RRF_K = 60


def fuse(*rankings: Sequence[IndexHit]) -> list[IndexHit]:
    """Reciprocal rank fusion: a prompt's score is the sum of 1 / (60 + rank) over the lists that hold it.

    Each list must name a prompt once; the best first. Ties go to the newer run.
    """
    scores: dict[str, float] = {}
    hits: dict[str, IndexHit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.prompt_digest] = scores.get(hit.prompt_digest, 0.0) + 1.0 / (_RRF_K + rank)
            known = hits.get(hit.prompt_digest)
            if known is None or hit.started_ms > known.started_ms:
                hits[hit.prompt_digest] = hit
    fused = [IndexHit(hit.run_id, digest, hit.started_ms, scores[digest]) for digest, hit in hits.items()]
    return sorted(fused, key=lambda hit: (-hit.score, -hit.started_ms, hit.run_id))


def one_per_prompt(hits: Sequence[IndexHit]) -> list[IndexHit]:
    """The newest run of each prompt at the prompt's best place: a regeneration is no new neighbour."""
    newest: dict[str, IndexHit] = {}
    for hit in hits:
        known = newest.get(hit.prompt_digest)
        if known is None:
            newest[hit.prompt_digest] = hit
        elif hit.started_ms > known.started_ms:
            newest[hit.prompt_digest] = IndexHit(hit.run_id, hit.prompt_digest, hit.started_ms, known.score)
    return list(newest.values())

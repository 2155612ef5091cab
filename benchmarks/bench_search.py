"""Embedding beside direct use of the model, and semantic search beside a flat scan.

    OMP_NUM_THREADS=1 python benchmarks/bench_search.py [--texts 1024] [--rounds 3] [--vectors 100000]

Embedding: the same texts through the child process and by sentence-transformers in this process, one thread
each, interleaved; the ratio is by medians. Search: recall@10 of the index against an exact scan, and latency.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nightshift_experience.embedding import EmbeddingProcess, EmbeddingSettings, find_model
from nightshift_experience.search.index import IndexFilter, IndexRow, SearchIndex

SUBJECTS = [
    "lighthouse",
    "goat",
    "staircase",
    "violin",
    "tram",
    "onion",
    "umbrella",
    "glacier",
    "kite",
    "clock",
]
PLACES = ("under the sea", "behind the school", "on a ferry", "in the attic", "as night ends", "far away")
MANNERS = (
    "drawn in chalk",
    "very slowly",
    "in warm light",
    "as if of paper",
    "seen from above",
    "almost gone",
)


def texts(count: int) -> list[str]:
    """Distinct prompts of varied length."""
    return [
        " ".join(
            [
                f"{SUBJECTS[i % 10]} number {i} {PLACES[i % 6]}",
                *(MANNERS[(i + j) % 6] for j in range(1 + i % 4)),
            ]
        )
        for i in range(count)
    ]


async def bench_embedding(count: int, rounds: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = find_model()
    direct = SentenceTransformer(str(model.folder), device="cpu", local_files_only=True)
    process = EmbeddingProcess(model, EmbeddingSettings(threads=1))
    began = time.perf_counter()
    await process.embed_query("warm", timeout_s=120)
    start_s = time.perf_counter() - began
    direct.encode(["warm"])
    ours, theirs = [], []
    chosen = texts(count)
    for _ in range(rounds):
        began = time.perf_counter()
        vectors = await process.embed_bulk(chosen)
        ours.append(count / (time.perf_counter() - began))
        began = time.perf_counter()
        expected = direct.encode(chosen, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        theirs.append(count / (time.perf_counter() - began))
    assert np.allclose(vectors, expected, atol=1e-4)
    query_ms = []
    for number in range(50):
        began = time.perf_counter()
        await process.embed_query(f"a person looks for {number}")
        query_ms.append((time.perf_counter() - began) * 1000)
    await process.close()
    ours_median, theirs_median = statistics.median(ours), statistics.median(theirs)
    print(f"embedding: {ours_median:.0f} texts/s through the child, {theirs_median:.0f} directly")
    print(f"ratio: {ours_median / theirs_median:.2f} (target 0.80)")
    print(f"start of the child to its first vector: {start_s:.1f} s")
    print(f"one query, child warm: p50 {statistics.median(query_ms):.1f} ms")


def clustered(count: int, dimension: int, seed: int) -> Any:
    """Unit vectors around 2,000 centres: prompts crowd around subjects."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2000, dimension)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.normal(size=(count, dimension)).astype(np.float32) / np.sqrt(dimension)
    vectors = centres[rng.integers(0, 2000, count)] + 0.7 * noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bench_index(count: int) -> None:
    dimension = 384
    held_out = 100
    everything = clustered(count + held_out, dimension, 1)
    vectors, queries = everything[:count], everything[count:]
    with tempfile.TemporaryDirectory() as folder:
        index = SearchIndex(Path(folder), model_fingerprint="bench", dimension=dimension)
        index.open()
        began = time.perf_counter()
        for start in range(0, count, 5000):
            index.upsert(
                [
                    IndexRow("p", f"r{i}", "de", "c", f"d{i}", i, f"text {i}", vectors[i])
                    for i in range(start, min(count, start + 5000))
                ]
            )
        print(f"index: {count} rows written in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        index.compact()
        print(f"compaction and vector index: {time.perf_counter() - began:.1f} s")
        where = IndexFilter("p")
        recalls, ours_ms, flat_ms = [], [], []
        for query in queries:
            began = time.perf_counter()
            scores = vectors @ query
            exact = {f"r{i}" for i in np.argpartition(-scores, 10)[:10]}
            flat_ms.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            found = {hit.run_id for hit in index.nearest(query, where, 10)}
            ours_ms.append((time.perf_counter() - began) * 1000)
            recalls.append(len(found & exact) / 10)
        print(f"recall@10 at {count}: {statistics.mean(recalls):.3f} (target 0.95)")
        p95_ms = np.percentile(ours_ms, 95)
        print(f"search: p50 {statistics.median(ours_ms):.1f} ms (target 15), p95 {p95_ms:.1f} ms")
        print(f"scan of all vectors in memory: p50 {statistics.median(flat_ms):.1f} ms")
        index.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=100_000)
    options = parser.parse_args()
    asyncio.run(bench_embedding(options.texts, options.rounds))
    bench_index(options.vectors)


if __name__ == "__main__":
    main()

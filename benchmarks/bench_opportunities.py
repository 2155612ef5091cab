"""How many planted opportunities the detection finds, and what each kind of evidence is worth.

    python benchmarks/bench_opportunities.py [--runs 5000] [--tuning 1-5] [--unseen 31-36] [--embeddings]

Constants were chosen on seeds 1 to 20; seeds 31 to 36 were not looked at. "renamed": the same with every
theme phrase respelt and every theme and config renamed. --embeddings adds themes made by k-means over MiniLM
vectors, which takes about a minute a seed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from sklearn.cluster import KMeans

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nightshift_experience.embedding import EmbeddingProcess, EmbeddingSettings, find_model
from nightshift_experience.opportunities import coverage, motifs, themes
from nightshift_experience.opportunities.detect import Finding, detect
from tests.experience.workshops import CONFIG_NAMES, Workshop, disguise, judge, load_simulator, simulate

Method = Callable[[Workshop], list[Finding]]


@dataclass
class Tally:
    """What a method found over some seeds."""

    seeds: int = 0
    themes: int = 0
    false_themes: int = 0
    weak: int = 0
    false_weak: int = 0
    met: int = 0
    cpu_s: float = 0.0

    def add(self, workshop: Workshop, method: Method) -> None:
        began = time.process_time()
        found = method(workshop)
        self.cpu_s += time.process_time() - began
        uncovered, wrong, weak, wrong_weak = judge(workshop, found)
        self.seeds += 1
        self.themes += len(uncovered)
        self.false_themes += len(wrong)
        self.weak += len(weak)
        self.false_weak += len(wrong_weak)
        self.met += len(uncovered) >= 2 and weak == workshop.weak and len(wrong) + len(wrong_weak) <= 1

    def row(self, name: str) -> str:
        return (
            f"| {name} | {self.themes} of {3 * self.seeds} | {self.false_themes} | "
            f"{self.weak} of {2 * self.seeds} | {self.false_weak} | {self.met} of {self.seeds} | "
            f"{self.cpu_s / self.seeds:.1f} |"
        )


def plain(workshop: Workshop) -> list[Finding]:
    return detect(workshop.facts, workshop.configs)


def without(module: Any, name: str, value: Any) -> Method:
    def method(workshop: Workshop) -> list[Finding]:
        with mock.patch.object(module, name, value):
            return detect(workshop.facts, workshop.configs)

    return method


def favourites_blind(workshop: Workshop) -> list[Finding]:
    """Only what users choose and how much they ask: nobody marks anything."""
    with mock.patch.object(coverage, "_keeping", lambda *_: 2.0):
        return detect(workshop.facts, workshop.configs)


@contextlib.contextmanager
def themes_by_vectors(vectors: dict[str, Any], count: int = 40) -> Iterator[None]:
    """Replaces words and sittings by k-means over the prompts' vectors."""

    def grouped(prompts: Any, sessions: Any) -> Any:
        found = real(prompts, sessions)
        matrix = np.stack([vectors[prompt] for prompt in prompts])
        model = KMeans(min(count, len(prompts)), n_init=2, random_state=0)
        return replace(found, labels=[int(label) for label in model.fit_predict(matrix)])

    real = motifs.find_motifs
    # A bond that nothing reaches: the clusters stay as k-means made them.
    with mock.patch.object(themes, "find_motifs", grouped), mock.patch.object(themes, "_BOND", 0.999):
        yield


async def embedded(texts: list[str]) -> dict[str, Any]:
    process = EmbeddingProcess(find_model(), EmbeddingSettings())
    try:
        vectors = await process.embed_bulk(texts)
        return dict(zip(texts, vectors, strict=True))
    finally:
        await process.close()


def by_vectors(workshop: Workshop) -> list[Finding]:
    vectors = asyncio.run(embedded(sorted({fact.prompt for fact in workshop.facts})))
    with themes_by_vectors(vectors):
        return detect(workshop.facts, workshop.configs)


METHODS: dict[str, Method] = {
    "all of it": plain,
    "without sittings (a motif is a theme)": without(themes, "_BOND", 0.999),
    "without reweighting of words": without(motifs, "_ROUNDS", 1),
    "without demand": without(coverage, "_DEMAND_WEIGHT", 0.0),
    "without choices": without(coverage, "_CHOICE_WEIGHT", 0.0),
    "without names and tags": without(coverage, "_NAMED_WEIGHT", 0.0),
    "without favourites": favourites_blind,
}


def seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--tuning", type=seeds, default=seeds("1-5"))
    parser.add_argument("--unseen", type=seeds, default=seeds("31-36"))
    parser.add_argument("--embeddings", action="store_true")
    options = parser.parse_args()
    methods = dict(METHODS)
    if options.embeddings:
        methods["k-means over MiniLM instead of words"] = by_vectors
    for name, chosen in (("tuning", options.tuning), ("unseen", options.unseen)):
        print(f"\n{options.runs} runs, {name} seeds {chosen.start} to {chosen.stop - 1}\n")
        print("| method | themes | false | weak configs | false | bar met | CPU s |")
        print("|---|---|---|---|---|---|---|")
        tallies = {method: Tally() for method in methods}
        for seed in chosen:
            workshop = simulate(seed, options.runs)
            for method, run in methods.items():
                tallies[method].add(workshop, run)
        for method, tally in tallies.items():
            print(tally.row(method), flush=True)
    renamed, small = Tally(), Tally()
    simulator = load_simulator(disguise)
    for seed in options.unseen:
        renamed.add(simulate(seed, options.runs, simulator, rename=CONFIG_NAMES), plain)
        small.add(simulate(seed, 200), plain)
    print(renamed.row(f"all of it, renamed, {options.runs} runs"))
    print(small.row("all of it, 200 runs (nothing is to be found)"), flush=True)


if __name__ == "__main__":
    main()

"""The search index beside the store: what enters it, what is found, what a crash or a Stop leaves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightshift_experience.embedding import EmbeddingProcess, EmbeddingSettings, EmbeddingStopped, find_model
from nightshift_experience.search import SearchMode, SearchService
from nightshift_experience.search.errors import QueryEmpty, QueryTooLarge
from nightshift_experience.search.fusion import fuse, one_per_prompt
from nightshift_experience.search.index import IndexFilter, IndexHit, IndexRow, SearchIndex
from nightshift_experience.store import search_tables
from nightshift_kit.errors import Preempted
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database
from tests.experience.searchable_runs import PROJECT, RunRows

EFFECT = Effect.for_tests(single_use=False)


class RaisedFence:
    """An effect whose fence is raised after a number of checks."""

    actor = EFFECT.actor
    grant = EFFECT.grant

    def __init__(self, checks: int) -> None:
        self.left = checks

    def begin(self, connection: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Preempted("a user has come")


@pytest.fixture(scope="module")
def embedder_model() -> Any:
    return find_model()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database(
        f"sqlite:///{tmp_path / 'e.db'}", migrations="nightshift_experience", name="experience"
    ) as db:
        db.migrate()
        yield db


@pytest.fixture
async def embedder(embedder_model: Any) -> AsyncIterator[EmbeddingProcess]:
    process = EmbeddingProcess(embedder_model, EmbeddingSettings(query_wait_s=120.0))
    yield process
    await process.close()


@pytest.fixture
async def search(db: Database, embedder: EmbeddingProcess, tmp_path: Path) -> AsyncIterator[SearchService]:
    service = SearchService(db, embedder, folder=tmp_path / "lance")
    await service.start()
    yield service
    await service.close()


# Written for this test; each group says one thing in several wordings.
NEIGHBOURS = [
    ("my grandmother bakes bread", "grandma is making a loaf in her oven", "baking with my nan"),
    ("a snail wins the race", "the slowest animal comes first", "a slug finishing the marathon before all"),
    ("rain inside the house", "the living room is flooded by a storm", "it pours from the ceiling at home"),
    ("a letter that nobody opened", "the unread mail on the table", "an envelope still sealed"),
    ("my first day at a new school", "I do not know anyone in the classroom", "the new pupil arrives"),
]


async def test_neighbours_are_found_across_wording(db: Database, search: SearchService) -> None:
    rows = RunRows()
    for group, texts in enumerate(NEIGHBOURS):
        for number, text in enumerate(texts[1:]):
            db.write_sync(rows.put, {"run_id": f"g{group}n{number}", "prompt": text})
    progress = await search.embed_pending(PROJECT, 100, EFFECT)
    assert (progress.embedded_count, progress.remaining_count) == (10, 0)
    found = 0
    for group, texts in enumerate(NEIGHBOURS):
        result = await search.search(PROJECT, texts[0], limit=2)
        found += sum(run_id.startswith(f"g{group}n") for run_id, _ in result.hits)
        assert result.hits[0][0].startswith(f"g{group}n"), texts[0]
        assert result.pending_count == 0
    assert found >= 8


async def test_only_searchable_runs_enter(db: Database, search: SearchService) -> None:
    rows = RunRows()
    db.write_sync(
        rows.put,
        {"run_id": "user", "prompt": "a blue whale"},
        {"run_id": "developer", "prompt": "a blue whale, test", "production": False},
        {"run_id": "private", "prompt": None},
        {"run_id": "blank", "prompt": ""},
    )
    assert await search.counts(PROJECT) == (0, 1)
    await search.embed_pending(PROJECT, 100, EFFECT)
    assert await search.counts(PROJECT) == (1, 0)
    result = await search.search(PROJECT, "whale", mode=SearchMode.TEXT)
    assert [run_id for run_id, _ in result.hits] == ["user"]


async def test_a_run_that_stops_being_searchable_leaves(db: Database, search: SearchService) -> None:
    rows = RunRows()
    db.write_sync(rows.put, {"run_id": "a", "prompt": "a red kite"}, {"run_id": "b", "prompt": "a red boat"})
    await search.embed_pending(PROJECT, 100, EFFECT)
    db.write_sync(rows.put, {"run_id": "a", "prompt": None}, {"run_id": "b", "prompt": "a green submarine"})
    # The store has changed, the index not yet: what is no longer true is not shown.
    stale = await search.search(PROJECT, "red", mode=SearchMode.TEXT)
    assert stale.hits == []
    assert stale.pending_count == 1
    await search.embed_pending(PROJECT, 100, EFFECT)
    hits = (await search.search(PROJECT, "kite or submarine", mode=SearchMode.TEXT)).hits
    assert [run_id for run_id, _ in hits] == ["b"]
    assert search.index.count(PROJECT) == 1


async def test_each_prompt_is_embedded_once(
    db: Database, search: SearchService, embedder: EmbeddingProcess
) -> None:
    rows = RunRows()
    for number in range(20):
        db.write_sync(rows.put, {"run_id": f"r{number}", "prompt": ("same words", "other words")[number % 2]})
    seen: list[str] = []
    honest = embedder.embed_bulk

    async def counting(texts: Any) -> Any:
        seen.extend(texts)
        return await honest(texts)

    embedder.embed_bulk = counting  # type: ignore[method-assign]
    assert (await search.embed_pending(PROJECT, 5, EFFECT)).remaining_count == 15
    assert (await search.embed_pending(PROJECT, 100, EFFECT)).embedded_count == 15
    assert sorted(seen) == ["other words", "same words"]
    # A changed favourite brings the run back, but nothing about it has to be embedded.
    db.write_sync(rows.put, {"run_id": "r1", "prompt": "other words", "favorite": True})
    assert (await search.embed_pending(PROJECT, 100, EFFECT)).embedded_count == 0
    # Regenerations share a prompt: one hit each, the newest run.
    hits = (await search.search(PROJECT, "words", limit=10)).hits
    assert {run_id for run_id, _ in hits} == {"r18", "r19"}


async def test_filters(db: Database, search: SearchService) -> None:
    rows = RunRows()
    db.write_sync(
        rows.put,
        {"run_id": "en", "prompt": "a lighthouse at night", "interception_config": "quiet'hour"},
        {"run_id": "de", "prompt": "ein Leuchtturm bei Nacht", "language": "de"},
        {"run_id": "en2", "prompt": "a lighthouse by day"},
    )
    await search.embed_pending(PROJECT, 10, EFFECT)
    hits = (await search.search(PROJECT, "lighthouse", interception_config="quiet'hour")).hits
    assert [run_id for run_id, _ in hits] == ["en"]
    hits = (await search.search(PROJECT, "lighthouse", language="de")).hits
    assert [run_id for run_id, _ in hits] == ["de"]
    assert (await search.search("elsewhere", "lighthouse")).hits == []


async def test_text_search_knows_scripts_and_fuses(db: Database, search: SearchService) -> None:
    rows = RunRows()
    texts = {
        "de": "ein Fuchs unter dem Küchentisch",
        "ko": "식탁 아래의 여우",
        "ar": "ثعلب تحت طاولة المطبخ",
        "bg": "лисица под кухненската маса",
    }
    for language, text in texts.items():
        db.write_sync(rows.put, {"run_id": language, "prompt": text, "language": language})
    await search.embed_pending(PROJECT, 10, EFFECT)
    for query, expected in (("kuchentisch", "de"), ("여우", "ko"), ("المطبخ", "ar"), ("лисица", "bg")):
        for mode in (SearchMode.TEXT, SearchMode.HYBRID):
            hits = (await search.search(PROJECT, query, mode=mode)).hits
            assert hits[0][0] == expected, (query, mode)
    assert (await search.search(PROJECT, "\"(AND) +foo* OR 'bar", mode=SearchMode.TEXT)).hits == []


async def test_queries_that_cannot_be_answered(search: SearchService) -> None:
    with pytest.raises(QueryEmpty):
        await search.search(PROJECT, " \n ")
    with pytest.raises(QueryTooLarge):
        await search.search(PROJECT, "ä" * 4097)
    assert (await search.search(PROJECT, "nothing is stored yet", mode=SearchMode.TEXT)).hits == []


async def test_a_raised_fence_keeps_what_was_committed(db: Database, search: SearchService) -> None:
    rows = RunRows()
    for number in range(600):
        db.write_sync(rows.put, {"run_id": f"r{number:03}", "prompt": f"picture {number % 7}"})
    # Two checks a step: the second step may work, but not commit.
    with pytest.raises(Preempted):
        await search.embed_pending(PROJECT, 600, RaisedFence(3))
    assert (await search.counts(PROJECT))[1] == 600 - 256
    progress = await search.embed_pending(PROJECT, 600, EFFECT)
    assert progress.remaining_count == 0
    assert search.index.count(PROJECT) == 600


@pytest.mark.slow
async def test_stop_ends_embedding_and_it_goes_on_later(db: Database, search: SearchService) -> None:
    rows = RunRows()
    for number in range(700):
        db.write_sync(rows.put, {"run_id": f"r{number:03}", "prompt": f"a long story, part {number}"})
    work = asyncio.create_task(search.embed_pending(PROJECT, 700, EFFECT))
    while (await search.counts(PROJECT))[0] == 0:
        await asyncio.sleep(0.02)
    await search.stop_background()
    with pytest.raises(EmbeddingStopped):
        await work
    left = (await search.counts(PROJECT))[1]
    assert 0 < left < 700
    progress = await search.embed_pending(PROJECT, 700, EFFECT)
    assert progress.embedded_count <= left
    assert progress.remaining_count == 0
    assert search.index.count(PROJECT) == 700


async def test_a_lost_or_broken_index_is_made_anew(
    db: Database, embedder: EmbeddingProcess, tmp_path: Path
) -> None:
    rows = RunRows()
    db.write_sync(
        rows.put, {"run_id": "a", "prompt": "a paper boat"}, {"run_id": "b", "prompt": "a tin moon"}
    )
    folder = tmp_path / "lance"
    for damage in ("none", "gone", "garbage"):
        service = SearchService(db, embedder, folder=folder)
        await service.start()
        await service.embed_pending(PROJECT, 10, EFFECT)
        hits = (await service.search(PROJECT, "boat", limit=1)).hits
        assert [run_id for run_id, _ in hits] == ["a"], damage
        await service.close()
        if damage == "none":
            shutil.rmtree(folder)
        elif damage == "gone":
            for path in folder.rglob("*.manifest"):
                path.write_bytes(b"garbage")
    service = SearchService(db, embedder, folder=folder)
    await service.start()
    await service.rebuild()
    assert await service.counts(PROJECT) == (0, 2)
    await service.embed_pending(PROJECT, 10, EFFECT)
    assert await service.counts(PROJECT) == (2, 0)
    await service.close()


@pytest.mark.slow
async def test_compaction_runs_beside_and_can_be_killed(db: Database, search: SearchService) -> None:
    rows = RunRows()
    for number in range(30):
        db.write_sync(rows.put, {"run_id": f"r{number}", "prompt": f"number {number}"})
        await search.embed_pending(PROJECT, 1, EFFECT)
    compaction = asyncio.create_task(search.compact())
    await asyncio.sleep(0.05)
    await search.stop_background()
    with pytest.raises(EmbeddingStopped):
        await compaction
    await search.compact()
    hits = (await search.search(PROJECT, "number 17", mode=SearchMode.TEXT, limit=1)).hits
    assert [run_id for run_id, _ in hits] == ["r17"]


def unit(rng: np.random.Generator, count: int) -> Any:
    vectors = rng.normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_large_index_finds_what_a_flat_scan_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    # Around 40 centres, as prompts are; uniform noise has no neighbours worth finding.
    centres = unit(rng, 40)
    vectors = centres[rng.integers(0, 40, 3000)] + 0.4 * unit(rng, 3000)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = SearchIndex(tmp_path / "lance", model_fingerprint="test", dimension=16)
    index.open()
    index.upsert(
        [IndexRow(PROJECT, f"r{i}", "en", "", f"d{i}", i, f"text {i}", vectors[i]) for i in range(3000)]
    )
    index.compact(flat_limit_rows=1000)
    recalls = []
    for query in vectors[:40]:
        exact = {f"r{i}" for i in np.argsort(-(vectors @ query))[:10]}
        found = {hit.run_id for hit in index.nearest(query, IndexFilter(PROJECT), 10)}
        recalls.append(len(exact & found) / 10)
    assert np.mean(recalls) >= 0.95
    # Rows that came after the index was built are found all the same.
    index.upsert([IndexRow(PROJECT, "late", "en", "", "late", 1, "late", vectors[0])])
    assert "late" in {hit.run_id for hit in index.nearest(vectors[0], IndexFilter(PROJECT), 3)}
    index.close()


def hit(digest: str, started: int = 0, score: float = 1.0) -> IndexHit:
    return IndexHit(f"run-{digest}-{started}", digest, started, score)


def test_fusion_prefers_what_both_lists_name() -> None:
    fused = fuse([hit("a"), hit("b"), hit("c")], [hit("c"), hit("d")])
    assert next(item.prompt_digest for item in fused) == "c"
    assert fused[0].score == pytest.approx(1 / 63 + 1 / 61)
    assert {item.prompt_digest for item in fused} == {"a", "b", "c", "d"}


def test_one_hit_per_prompt_is_its_newest_run_at_its_best_place() -> None:
    hits = one_per_prompt([hit("a", 1, 0.9), hit("b", 1, 0.8), hit("a", 5, 0.7)])
    assert [(item.run_id, item.score) for item in hits] == [("run-a-5", 0.9), ("run-b-1", 0.8)]


def test_state_of_another_model_counts_for_nothing(db: Database) -> None:
    state = search_tables.SearchState(7, 3)
    db.write_sync(search_tables.write_state, PROJECT, "runs_one", state)
    assert db.read_sync(search_tables.read_state, PROJECT, "runs_one") == state
    assert db.read_sync(search_tables.read_state, PROJECT, "runs_two") == search_tables.SearchState()

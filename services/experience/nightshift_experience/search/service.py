"""Keeps the index beside the store and searches it. The store is the truth; the index is made from it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.storage import Database

from ..audit import Audit, FencedEffect
from ..embedding.errors import EmbeddingStopped
from ..embedding.process import EmbeddingProcess
from ..store import search_tables as tables
from ..store.run_reads import Row, get_runs
from .child_work import ChildWork
from .errors import QueryEmpty, QueryTooLarge
from .fusion import fuse, one_per_prompt
from .index import FLAT_LIMIT_ROWS, IndexFilter, IndexHit, IndexRow, SearchIndex

T = TypeVar("T")

QUERY_LIMIT_BYTES = 8 << 10
# The model reads 256 word pieces; more characters than that would only be cut off by the tokenizer.
_EMBEDDED_CHARACTERS = 2_000
_INDEXED_CHARACTERS = 8_000
# Runs per step: the step is what an interruption may have to repeat.
_STEP_RUNS = 256
_COMPACT_AFTER_STEPS = 16
# Regenerations share a prompt, so more rows than hits are asked for.
_OVERFETCH = 8
_MOST_ROWS = 5_000


class SearchMode(IntEnum):
    """How to compare; the numbers are those of the proto."""

    SEMANTIC = 1
    TEXT = 2
    HYBRID = 3


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        hits: (run id, score), best first, one for each distinct prompt: its newest run.
        pending_count: Production runs that wait for embedding.
    """

    hits: list[tuple[str, float]]
    pending_count: int


@dataclass(frozen=True)
class EmbedProgress:
    """What one EmbedPending did: runs embedded, and runs that still wait."""

    embedded_count: int
    remaining_count: int


class SearchService:
    """Embeds what waits and finds runs. Methods belong to one event loop; LanceDB works in threads."""

    def __init__(
        self, db: Database, embedder: EmbeddingProcess, *, folder: Path, clock: Clock | None = None
    ) -> None:
        self._db = db
        self._audit = Audit(clock or SystemClock())
        self._embedder = embedder
        self._folder = folder
        self._index = SearchIndex(
            folder, model_fingerprint=embedder.model.fingerprint, dimension=embedder.model.dimension
        )
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="search-index")
        self._children = ChildWork()
        self._embedding = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._opened = False
        self._stops = 0
        self._steps_since_compaction = 0

    @property
    def folder(self) -> Path:
        """Where the index lies."""
        return self._folder

    @property
    def index(self) -> SearchIndex:
        """The index; its methods block."""
        return self._index

    async def start(self) -> None:
        """Notices an index that is gone, without opening one: then everything waits for embedding again."""
        if not self._index.exists:
            await self._db.write(tables.forget_states)

    async def _open(self) -> None:
        """Opens the index at its first use. What it has lost waits for embedding again."""
        async with self._opening:
            if self._opened:
                return
            await self._in_thread(functools.partial(self._index.open, repair=True))
            known = await self._db.read(tables.states, self._index.table_name)
            lost = [
                project
                for project, state in known.items()
                if await self._in_thread(self._index.count, project) < state.indexed_rows
            ]
            if lost:
                await self._db.write(tables.forget_states, lost)
            self._opened = True

    async def rebuild(self) -> None:
        """Throws the index away; EmbedPending makes it anew from the store."""
        await self._open()
        async with self._embedding:
            await self._db.write(tables.forget_states)
            await self._in_thread(self._index.clear)

    async def counts(self, project: str) -> tuple[int, int]:
        """(rows in the index, production runs that wait for embedding) of a project."""
        state = await self._db.read(tables.read_state, project, self._index.table_name)
        pending = await self._db.read(tables.waiting_count, project, state.indexed_seq)
        return state.indexed_rows, pending

    async def search(
        self,
        project: str,
        query: str,
        *,
        mode: SearchMode = SearchMode.SEMANTIC,
        limit: int = 10,
        language: str = "",
        interception_config: str = "",
    ) -> SearchResult:
        """Production runs near a query, one for each distinct prompt.

        Args:
            project: Project id.
            query: At most 8 KiB of UTF-8.
            mode: How to compare.
            limit: Most hits.
            language: Only this language; "" means all.
            interception_config: Only this config; "" means all.

        Raises:
            QueryEmpty, QueryTooLarge: As named.
            ModelUnavailable: The embedding process is still starting; not in TEXT mode.
        """
        size_bytes = len(query.encode("utf-8", "replace"))
        if size_bytes > QUERY_LIMIT_BYTES:
            raise QueryTooLarge.at("query", f"has {size_bytes} bytes, at most {QUERY_LIMIT_BYTES}")
        if not query.strip():
            raise QueryEmpty.at("query", "must hold something to look for")
        await self._open()
        where = IndexFilter(project, language, interception_config)
        searches: list[Callable[[int], list[IndexHit]]] = []
        if mode is not SearchMode.TEXT:
            vector = await self._embedder.embed_query(query.strip()[:_EMBEDDED_CHARACTERS])
            searches.append(lambda rows: self._index.nearest(vector, where, rows))
        if mode is not SearchMode.SEMANTIC:
            searches.append(lambda rows: self._index.matching(query, where, rows))
        hits = await self._collect(project, searches, limit)
        _, pending = await self.counts(project)
        return SearchResult([(hit.run_id, hit.score) for hit in hits], pending)

    async def runs(self, project: str, run_ids: Sequence[str]) -> dict[str, Row]:
        """Rows of `runs` by run id; unknown ones are left out."""
        return await self._db.read(get_runs, project, run_ids)

    async def _collect(
        self, project: str, searches: Sequence[Callable[[int], list[IndexHit]]], limit: int
    ) -> list[IndexHit]:
        rows = limit * _OVERFETCH
        while True:
            found = [await self._in_thread(search, rows) for search in searches]
            rankings = [one_per_prompt(await self._still_true(project, hits)) for hits in found]
            hits = fuse(*rankings) if len(rankings) > 1 else rankings[0]
            exhausted = all(len(ranking) < rows for ranking in found)
            if len(hits) >= limit or exhausted or rows >= _MOST_ROWS:
                return hits[:limit]
            rows = min(_MOST_ROWS, rows * 4)

    async def _still_true(self, project: str, hits: Sequence[IndexHit]) -> list[IndexHit]:
        """Leaves out rows whose run has changed or gone since it was indexed."""
        if not hits:
            return []
        now = await self._db.read(tables.searchable_digests, project, [hit.run_id for hit in hits])
        return [hit for hit in hits if now.get(hit.run_id) == hit.prompt_digest]

    async def embed_pending(self, project: str, limit: int, effect: FencedEffect) -> EmbedProgress:
        """Embeds at most ``limit`` production runs that wait, in steps that a Stop can end.

        Each step embeds, then writes the index, then commits its progress: a crash between the last two is
        harmless, since a row is replaced by its run id.

        Raises:
            Preempted: The fence was raised; what was committed stays.
            EmbeddingStopped: Stop killed the embedding process.
            ModelUnavailable, ModelRefused: No vectors.
        """
        await self._open()
        table = self._index.table_name
        embedded, stops = 0, self._stops
        async with self._embedding:
            state = await self._db.read(tables.read_state, project, table)
            while embedded < limit:
                if self._stops != stops:
                    raise EmbeddingStopped("background embedding was told to stop")
                batch = await self._db.read(
                    tables.changed_runs, project, state.indexed_seq, min(_STEP_RUNS, limit - embedded)
                )
                if not batch:
                    break
                # Before the work as well as after it, so that a stale grant costs no processor.
                await self._db.write(effect.begin)
                count = await self._index_runs(project, batch)
                embedded += count
                rows = await self._in_thread(self._index.count, project)
                state = tables.SearchState(batch[-1].change_seq, rows)
                await self._db.write(self._advance, effect, project, table, state, count)
            remaining = await self._db.read(tables.waiting_count, project, state.indexed_seq)
            if self._purge_mark.exists():
                await self._purge()
            else:
                await self._compact_sometimes(done=remaining == 0)
        return EmbedProgress(embedded, remaining)

    async def forget(self, project: str, run_ids: Sequence[str]) -> None:
        """Takes runs out of the index and their bytes out of its files. Raises Internal, EmbeddingStopped."""
        async with self._embedding:
            if not self._index.exists:
                return
            await self._open()
            self._purge_mark.touch(mode=0o600)
            for begin in range(0, len(run_ids), _STEP_RUNS):
                part = run_ids[begin : begin + _STEP_RUNS]
                await self._in_thread(self._index.delete, project, part)
            await self._purge()
            table = self._index.table_name
            state = await self._db.read(tables.read_state, project, table)
            rows = await self._in_thread(self._index.count, project)
            # Fewer rows than are told of would count as a loss.
            await self._db.write(
                tables.write_state, project, table, tables.SearchState(state.indexed_seq, rows)
            )

    async def _index_runs(self, project: str, batch: Sequence[tables.ChangedRun]) -> int:
        known = await self._in_thread(self._index.known, project, [run.run_id for run in batch])
        gone = [run.run_id for run in batch if not run.searchable and run.run_id in known]
        if gone:
            # Most of what goes was withheld by a privacy check. The mark survives a kill before the purge.
            self._purge_mark.touch(mode=0o600)
            await self._db.write(tables.forget_examples, project)
            await self._in_thread(self._index.delete, project, gone)
        fresh = [
            run
            for run in batch
            if run.searchable
            and known.get(run.run_id) != (run.prompt_digest, run.language, run.interception_config)
        ]
        if not fresh:
            return 0
        texts = {run.prompt_digest: run.prompt for run in fresh}
        vectors = await self._in_thread(self._index.vectors_of, list(texts))
        new = [digest for digest in texts if digest not in vectors]
        if new:
            made = await self._embedder.embed_bulk([texts[digest][:_EMBEDDED_CHARACTERS] for digest in new])
            vectors.update(zip(new, made, strict=True))
        rows = [
            IndexRow(
                project=project,
                run_id=run.run_id,
                language=run.language,
                interception_config=run.interception_config,
                prompt_digest=run.prompt_digest,
                started_ms=run.start_us // 1000,
                text=run.prompt[:_INDEXED_CHARACTERS].encode("utf-8", "replace").decode(),
                vector=np.asarray(vectors[run.prompt_digest], dtype=np.float32),
            )
            for run in fresh
        ]
        await self._in_thread(self._index.upsert, rows)
        self._steps_since_compaction += 1
        return len(fresh)

    async def _compact_sometimes(self, *, done: bool) -> None:
        steps = self._steps_since_compaction
        if steps >= _COMPACT_AFTER_STEPS or (done and steps >= 4):
            await self.compact()

    @property
    def _purge_mark(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}.purge")

    async def _purge(self) -> None:
        await self.compact("purge")
        self._purge_mark.unlink(missing_ok=True)

    async def compact(self, *how: str) -> None:
        """Compacts the index in a child process, which Stop kills. Raises EmbeddingStopped, Internal."""
        await self._open()
        model = self._embedder.model
        await self._children.run(
            "nightshift_experience.search.compaction",
            b"",
            str(self._folder),
            model.fingerprint,
            str(model.dimension),
            *how,
        )
        self._steps_since_compaction = 0
        await self._in_thread(self._index.refresh)

    async def stop_background(self) -> None:
        """Ends embedding and compaction now: kills their processes."""
        self._stops += 1
        self._children.stop()
        await self._embedder.stop_background()

    async def close(self) -> None:
        """Ends background work and lets go of the index."""
        await self.stop_background()
        async with self._embedding:
            await self._in_thread(self._index.close)
        self._threads.shutdown(wait=True)

    def _advance(
        self,
        connection: Any,
        effect: FencedEffect,
        project: str,
        table: str,
        state: tables.SearchState,
        count: int,
    ) -> None:
        effect.begin(connection)
        tables.write_state(connection, project, table, state)
        self._audit.effect(
            connection, effect, "prompts.embedded", project, runs=count, indexed_seq=state.indexed_seq
        )

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(work, *arguments)
        )


__all__ = ["FLAT_LIMIT_ROWS", "EmbedProgress", "SearchMode", "SearchResult", "SearchService"]

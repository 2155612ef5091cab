"""Runs detections and keeps what they find."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from nightshift_kit.clock import Clock
from nightshift_kit.storage import Database

from ..audit import Audit, FencedEffect
from ..embedding.errors import ModelRefused, ModelUnavailable
from ..embedding.process import EmbeddingProcess
from ..search.child_work import ChildWork
from ..search.service import SearchService
from ..store import search_tables as tables
from ..store.search_tables import StoredOpportunity
from .configs import ConfigTexts, read_configs
from .errors import OpportunityUnknown

# Experience of years ago says little about what is missing now, and a detection's time grows with this.
_NEWEST_RUNS = 20_000


class OpportunityService:
    """Detects, lists and gets opportunities. Methods belong to one event loop."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        search: SearchService,
        embedder: EmbeddingProcess,
        *,
        platform_root: Path | None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = Audit(clock)
        self._search = search
        self._embedder = embedder
        self._platform_root = platform_root
        self._children = ChildWork()
        self._detecting = asyncio.Lock()

    async def detect(self, project: str, effect: FencedEffect) -> list[StoredOpportunity]:
        """Looks through the newest 20,000 production runs and replaces what stood; best first.

        An interrupted detection leaves everything as it was.

        Raises:
            Preempted: The fence was raised.
            Internal: The detection's process failed.
        """
        async with self._detecting:
            await self._db.write(effect.begin)
            # Read before the runs: what comes in between counts as not looked at yet.
            seq = await self._db.read(tables.change_seq, project)
            rows = await self._db.read(tables.production_facts, project, _NEWEST_RUNS)
            known = await self._db.read(tables.known_keywords, project)
            configs = await asyncio.to_thread(read_configs, self._platform_root)
            model = self._embedder.model
            work = {
                "facts": rows,
                "configs": [asdict(texts) for texts in configs],
                "config_vectors": await self._config_vectors(configs),
                "known_keywords": known,
                "index": {
                    "folder": str(self._search.folder),
                    "fingerprint": model.fingerprint,
                    "dimension": model.dimension,
                    "project": project,
                },
            }
            data = await asyncio.to_thread(orjson.dumps, work)
            answer = await self._children.run("nightshift_experience.opportunities.worker", data)
            found = [_stored(item) for item in orjson.loads(answer)]
            now_us = int(self._clock.now().timestamp() * 1_000_000)
            return await self._db.write(_replace, effect, self._audit, project, found, seq, now_us)

    async def _config_vectors(self, configs: list[ConfigTexts]) -> dict[str, list[float]]:
        """What the configs mean; nothing where the model is not to be had, the detection goes without."""
        texts = {item.config: item.summary() for item in configs if item.summary()}
        try:
            vectors = await self._embedder.embed_bulk(list(texts.values()))
        except (ModelUnavailable, ModelRefused):
            return {}
        return {config: vector.tolist() for config, vector in zip(texts, vectors, strict=True)}

    async def page(self, project: str, after_place: int, limit: int) -> list[tuple[int, StoredOpportunity]]:
        """(place, opportunity), best first, after a place; -1 for the first."""
        return await self._db.read(tables.list_opportunities, project, after_place, limit)

    async def get(self, project: str, opportunity_id: str) -> StoredOpportunity:
        """One opportunity. Raises OpportunityUnknown."""
        found = await self._db.read(tables.get_opportunity, project, opportunity_id)
        if found is None:
            raise OpportunityUnknown(
                "There is no such opportunity now.", metadata={"opportunity": opportunity_id}
            )
        return found

    async def close(self) -> None:
        """Ends a detection that runs."""
        self._children.stop()


def _stored(item: dict[str, Any]) -> StoredOpportunity:
    return StoredOpportunity(item["opportunity_id"], item["kind"], item["score"], item)


def _replace(
    connection: Any,
    effect: FencedEffect,
    audit: Audit,
    project: str,
    found: list[StoredOpportunity],
    seq: int,
    now_us: int,
) -> list[StoredOpportunity]:
    effect.begin(connection)
    tables.replace_opportunities(connection, project, found, seq=seq, now_us=now_us)
    audit.effect(connection, effect, "opportunities.detected", project, found=len(found), seen_seq=seq)
    return [item for _, item in tables.list_opportunities(connection, project, -1, len(found) + 1)]

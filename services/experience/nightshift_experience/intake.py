"""Live records on their way into the store: durable before they are acknowledged.

Unary calls that wait while a transaction is under way share the next one: each costs a few statements,
which is little for a hundred runs and much for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from nightshift_experience.errors import DeviceForgotten, RunIdReused
from nightshift_experience.languages import LanguageDetector
from nightshift_experience.runs import PRIVACY_WITHHELD, Outcome, RunRecord
from nightshift_experience.store.merging import content_digest, encode
from nightshift_experience.store.run_reads import Row, get_runs
from nightshift_experience.store.run_writes import FORGOTTEN, REUSED, Incoming, WritingRules, store_batch
from nightshift_experience.store.signals import add_feedback
from nightshift_experience.taint import TAINTED, is_tainted
from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.storage import Database

_SHARED_RUNS = 500


@dataclass(slots=True)
class _Waiting:
    project: str
    record: RunRecord
    answer: asyncio.Future[Row]


class Intake:
    """Stores what a platform tells. Belongs to one event loop."""

    def __init__(self, db: Database, clock: Clock, rules: WritingRules, detector: LanguageDetector) -> None:
        self._db = db
        self._clock = clock
        self._rules = rules
        self._detector = detector
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, project: str, record: RunRecord) -> Row:
        """Store one run; its row after that. Raises RunIdReused, DeviceForgotten."""
        waiting = _Waiting(project, record, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_waiting(), name="record-run")
        return await waiting.answer

    async def record_many(self, project: str, records: Sequence[RunRecord]) -> list[str]:
        """Store runs in one transaction; a verdict for each, as of `store_batch`."""
        return await self._db.write(self._store, project, records)

    async def feedback(
        self, project: str, run_id: str, kind: int, value: float | None, feedback_us: int | None
    ) -> bool:
        """Store one signal; whether its run is known."""
        return await self._db.write(add_feedback, project, run_id, kind, value, feedback_us, self._now_us())

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_SHARED_RUNS], self._waiting[_SHARED_RUNS:]
                by_project: dict[str, list[_Waiting]] = {}
                for waiting in group:
                    by_project.setdefault(waiting.project, []).append(waiting)
                await asyncio.gather(*(self._write(project, them) for project, them in by_project.items()))
        finally:
            self._writing = None

    async def _write(self, project: str, group: list[_Waiting]) -> None:
        try:
            verdicts, rows = await self._db.write(self._store_and_read, project, [w.record for w in group])
        except Exception as error:  # noqa: BLE001 - belongs to those who wait
            for waiting in group:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, verdict in zip(group, verdicts, strict=True):
            if waiting.answer.done():
                # The caller has left; what it told is stored all the same.
                continue
            if verdict in (REUSED, FORGOTTEN):
                waiting.answer.set_exception(refusal(waiting.record, verdict))
            else:
                waiting.answer.set_result(rows[waiting.record.run_id])

    def _store_and_read(
        self, connection: sa.Connection, project: str, records: Sequence[RunRecord]
    ) -> tuple[list[str], dict[str, Row]]:
        verdicts = self._store(connection, project, records)
        return verdicts, get_runs(connection, project, list({record.run_id for record in records}))

    def _store(self, connection: sa.Connection, project: str, records: Sequence[RunRecord]) -> list[str]:
        batch = [self._incoming(record) for record in records]
        return store_batch(connection, project, batch, self._rules, self._now_us())

    def _incoming(self, record: RunRecord) -> Incoming:
        # What the digest covers is what the caller told, not what was made of it: flags are ours, and the
        # same run told again a little later may have other ones (its clock is not ahead of ours any more).
        payload = encode(record)
        digest = content_digest(encode(replace(record, flags=[])) if record.flags else payload)
        made: dict[str, Any] = {}
        flags = list(record.flags)
        if not record.language:
            made["language"] = self._detector.detect(record.prompt, record.transformed_prompt)
        if is_tainted(record.prompt):
            flags.append(TAINTED)
        if record.outcome == Outcome.BLOCKED and (record.prompt_digest or record.transformed_prompt):
            # A live record does not tell why it was blocked. It may have been for the names in it; where
            # it was not, the export brings the prompt.
            made |= {"prompt": None, "prompt_digest": "", "transformed_prompt": None}
            flags.append(PRIVACY_WITHHELD)
        if not made and flags == record.flags:
            return Incoming(record, digest, replaces=False, payload=payload)
        return Incoming(replace(record, flags=flags, **made), digest, replaces=False)

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


def refusal(record: RunRecord, verdict: str) -> NightshiftError:
    """The error of a record that is not stored: RunIdReused or DeviceForgotten."""
    if verdict == FORGOTTEN:
        return DeviceForgotten(
            "This run's device was to be forgotten after the run.", metadata={"run": record.run_id}
        )
    return RunIdReused(
        "This run id, source and revision are stored with other content; send changes under a new revision.",
        metadata={"run": record.run_id, "source": record.source, "revision": record.revision},
    )

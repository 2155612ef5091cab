"""RecordRuns: a stream of batches, each on disk before the next is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift_experience.intake import Intake, refusal
from nightshift_experience.resources import parse_project
from nightshift_experience.rpc.convert import MOST_RUNS_A_MESSAGE, run_record
from nightshift_experience.runs import RunRecord
from nightshift_experience.store.run_writes import CREATED, FORGOTTEN, REUSED, UNCHANGED
from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, NightshiftError

# So many refusals are listed; beyond them, one more entry explains nothing better.
_MOST_REJECTED = 10_000


class RunStream:
    """Takes the messages of one call and counts."""

    def __init__(self, intake: Intake, clock: Clock) -> None:
        self._intake = intake
        self._clock = clock
        self._project = ""
        self._index = 0
        self._answer = pb.RecordRunsResponse()
        self._writing: tuple[list[tuple[int, RunRecord]], asyncio.Future[list[str]]] | None = None

    async def take_all(self, requests: AsyncIterator[pb.RecordRunsRequest]) -> pb.RecordRunsResponse:
        """Store every batch; the counts. Raises what concerns the whole call; earlier batches stay."""
        try:
            await self._take_each(requests)
        finally:
            # Also where a later message is refused: what is being written has its answer.
            await self._settle()
        self._answer.rejected.sort(key=lambda refused: refused.index)
        return self._answer

    async def _take_each(self, requests: AsyncIterator[pb.RecordRunsRequest]) -> None:
        first = True
        async for request in requests:
            if first:
                self._project = parse_project(request.parent)
                first = False
            if len(request.runs) > MOST_RUNS_A_MESSAGE:
                raise FieldInvalid.at("runs", f"has more than {MOST_RUNS_A_MESSAGE} entries")
            # The next message is checked while this one is being written.
            batch = self._check(request)
            await self._settle()
            records = [record for _, record in batch]
            if records:
                task = asyncio.ensure_future(self._intake.record_many(self._project, records))
                self._writing = (batch, task)

    def _check(self, request: pb.RecordRunsRequest) -> list[tuple[int, RunRecord]]:
        batch: list[tuple[int, RunRecord]] = []
        now = self._clock.now()
        for run in request.runs:
            try:
                batch.append((self._index, run_record(run, self._project, now, "runs")))
            except NightshiftError as error:
                self._reject(self._index, error)
            self._index += 1
        return batch

    async def _settle(self) -> None:
        """Wait until what is being written is on disk, and count it."""
        if self._writing is None:
            return
        (batch, task), self._writing = self._writing, None
        for (place, record), verdict in zip(batch, await task, strict=True):
            if verdict == CREATED:
                self._answer.created_count += 1
            elif verdict == UNCHANGED:
                self._answer.unchanged_count += 1
            elif verdict in (REUSED, FORGOTTEN):
                self._reject(place, refusal(record, verdict))

    def _reject(self, index: int, error: NightshiftError) -> None:
        if len(self._answer.rejected) < _MOST_REJECTED:
            self._answer.rejected.add(index=index, reason=error.reason, message=error.message)

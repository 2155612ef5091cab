"""A platform that records runs and feedback, one by one and in streams."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from tests.chaos.flights import Flights
from tests.chaos.journal import Journal
from tests.chaos.themes import PARENT
from tests.support.plane import PLATFORM, RealPlane

# Configs that nobody else uses, so that the statistics of the drivers' runs can be counted by hand.
CONFIGS = tuple(f"chaos_{number}" for number in range(4))
_PROMPTS = tuple(f"a paper boat on the {place}" for place in ("river", "table", "roof", "stairs", "moon"))
_DEADLINE_S = 5.0


class Recorder:
    """Tells experience of runs until it is stopped; each call is repeated until it is acknowledged."""

    def __init__(self, plane: RealPlane, flights: Flights, journal: Journal, source: random.Random) -> None:
        self._stub = plane.stub(ExperienceServiceStub, "experience", PLATFORM)
        self._flights = flights
        self._journal = journal
        self._source = source
        self._count = 0

    async def one_by_one(self, stop: asyncio.Event) -> None:
        """Runs with feedback; now and then the same wish with another seed."""
        while not stop.is_set():
            run = self._new_run()
            await self.record(run)
            if self._source.random() < 0.4:
                await self.feed_back(run.name, self._source.random())
            if self._source.random() < 0.3:
                await self.record(self._again(run))
            await asyncio.sleep(self._source.uniform(0.02, 0.25))

    async def in_streams(self, stop: asyncio.Event) -> None:
        """Streams of a few messages with tens of runs each."""
        while not stop.is_set():
            await self.record_stream([self._new_run() for _ in range(self._source.randint(2, 90))])
            await asyncio.sleep(self._source.uniform(0.2, 1.5))

    async def record(self, run: resources.Run) -> None:
        """One run, journalled."""
        self._journal.intends("RecordRun", run=run.name)
        request = pb.RecordRunRequest(parent=PARENT, run=run)
        last_try_s = 0.0

        def call() -> Any:
            nonlocal last_try_s
            last_try_s = time.time()
            return self._stub.RecordRun(request, timeout=_DEADLINE_S)

        answer, tries = await self._flights.insist("RecordRun", call)
        assert (answer.name, answer.prompt, answer.seed) == (run.name, run.prompt, run.seed)
        if tries and answer.create_time.ToNanoseconds() / 1e9 < last_try_s:
            self._flights.found_done["RecordRun"] += 1
        self._journal.acknowledged("RecordRun", run=_content(run))

    async def record_stream(self, runs: Sequence[resources.Run]) -> None:
        """Many runs in one stream, journalled."""
        self._journal.intends("RecordRuns", runs=[run.name for run in runs])

        async def messages() -> AsyncIterator[pb.RecordRunsRequest]:
            for begin in range(0, len(runs), 20):
                yield pb.RecordRunsRequest(parent=PARENT, runs=runs[begin : begin + 20])
                await asyncio.sleep(0.005)

        answer, tries = await self._flights.insist(
            "RecordRuns", lambda: self._stub.RecordRuns(messages(), timeout=_DEADLINE_S)
        )
        assert not answer.rejected, answer.rejected
        assert answer.created_count + answer.unchanged_count == len(runs), answer
        if answer.unchanged_count:
            assert tries, "runs that were never told are called known"
            self._flights.found_done["RecordRuns"] += 1
        self._journal.acknowledged("RecordRuns", runs=[_content(run) for run in runs])

    async def feed_back(self, run: str, chance: float) -> None:
        """A favourite, taken back now and then; or an export."""
        kind = resources.FEEDBACK_KIND_FAVORITE if chance < 0.7 else resources.FEEDBACK_KIND_EXPORT
        await self._signal(run, kind, 0)
        if chance < 0.2:
            await self._signal(run, resources.FEEDBACK_KIND_UNFAVORITE, 1)

    async def keep(self, run: str) -> None:
        """A favourite of the workshop."""
        await self._signal(run, resources.FEEDBACK_KIND_FAVORITE, 0)

    async def _signal(self, run: str, kind: int, later_s: int) -> None:
        at_s = int(time.time()) + later_s
        feedback = resources.Feedback(
            run=run, kind=resources.FeedbackKind.ValueType(kind), feedback_time=Timestamp(seconds=at_s)
        )
        told = {"run": run, "feedback": kind, "at_s": at_s}
        self._journal.intends("RecordFeedback", **told)
        request = pb.RecordFeedbackRequest(parent=PARENT, feedback=feedback)
        answer, _ = await self._flights.insist(
            "RecordFeedback", lambda: self._stub.RecordFeedback(request, timeout=_DEADLINE_S)
        )
        assert answer.run_known, f"the acknowledged run {run} is not known"
        self._journal.acknowledged("RecordFeedback", **told)

    def _new_run(self) -> resources.Run:
        self._count += 1
        now_ms = int(time.time() * 1000)
        device = f"{self._source.getrandbits(32):08x}-2222-4333-8444-{self._count:012x}_2026-11-20"
        failed = self._source.random() < 0.1
        return resources.Run(
            name=f"{PARENT}/runs/run_{now_ms}_{self._count:06x}",
            device=device,
            start_time=Timestamp(seconds=now_ms // 1000),
            language="en",
            prompt=self._source.choice(_PROMPTS),
            interception_config=self._source.choice(CONFIGS),
            output_config="img_standard",
            outcome=resources.RUN_OUTCOME_FAILED if failed else resources.RUN_OUTCOME_SUCCEEDED,
            seed=self._count,
            media_types=["image"],
            models={"stage2_interception": "small"},
        )

    def _again(self, run: resources.Run) -> resources.Run:
        self._count += 1
        again = resources.Run()
        again.CopyFrom(run)
        now_ms = int(time.time() * 1000)
        again.name = f"{PARENT}/runs/run_{max(now_ms, _ms(run) + 1)}_{self._count:06x}"
        again.seed = self._count
        return again


def _ms(run: resources.Run) -> int:
    return int(run.name.split("run_")[1].split("_")[0])


def _content(run: resources.Run) -> dict[str, Any]:
    content: dict[str, Any] = MessageToDict(run, preserving_proto_field_name=True)
    return content

"""What experience tells: runs, statistics, its state; and the Aggregate that proves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_experience.aggregation.aggregator import Aggregator
from nightshift_experience.experience import Experience
from nightshift_experience.filters import parse_filter
from nightshift_experience.resources import RunName, parse_project
from nightshift_experience.rpc import render
from nightshift_experience.rpc.convert import window_us
from nightshift_experience.search import SearchService
from nightshift_experience.sessions.service import SessionService
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call

# Well below the 4 MiB of a message: a page of huge prompts is shorter than it was asked to be.
ANSWER_BYTES = 3 * 1024 * 1024


class ReadHandlers:
    """Handlers of the reads, and of Aggregate."""

    experience: Experience
    aggregator: Aggregator
    search: SearchService
    sessions: SessionService

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> resources.Run:
        """See the proto."""
        name = RunName.parse(request.name)
        return render.run(await self.experience.get_run(name.project, name.run))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        terms = parse_filter(request.filter)
        digest = query_digest(method="ListRuns", parent=request.parent, filter=request.filter)
        position = decode_token(request.page_token, digest, (int, str))
        before = (int(position[0] or 0), str(position[1])) if position else None
        rows = await self.experience.page(project, terms, before, size + 1)
        runs = render.fitting(map(render.run, rows[:size]), ANSWER_BYTES)
        last = rows[len(runs) - 1] if len(rows) > len(runs) else None
        token = encode_token((last.start_us, last.run_id), digest) if last is not None else ""
        return pb.ListRunsResponse(runs=runs, next_page_token=token)

    async def ExportRuns(
        self, request: pb.ExportRunsRequest, context: Any
    ) -> AsyncIterator[pb.ExportRunsResponse]:
        """See the proto."""
        project, terms = parse_project(request.parent), parse_filter(request.filter)
        async for rows in self.experience.export(project, terms):
            while rows:
                runs = render.fitting(map(render.run, rows), ANSWER_BYTES)
                yield pb.ExportRunsResponse(runs=runs)
                rows = rows[len(runs) :]

    async def ListConfigPerformance(
        self, request: pb.ListConfigPerformanceRequest, context: Any
    ) -> pb.ListConfigPerformanceResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        start_us, end_us = window_us(request)
        digest = query_digest(
            method="ListConfigPerformance", parent=request.parent, start_us=start_us, end_us=end_us
        )
        position = decode_token(request.page_token, digest, (int, str))
        items = await self.experience.performance(project, start_us, end_us)
        if position:
            after = (int(position[0] or 0), str(position[1]))
            items = [item for item in items if (-item.production_runs, item.config) > after]
        last = items[size - 1] if len(items) > size else None
        return pb.ListConfigPerformanceResponse(
            config_performance=[render.performance(item) for item in items[:size]],
            next_page_token=encode_token((-last.production_runs, last.config), digest) if last else "",
        )

    async def GetExperienceState(
        self, request: pb.GetExperienceStateRequest, context: Any
    ) -> pb.ExperienceState:
        """See the proto."""
        project = parse_project(request.parent)
        state, runs, production = await self.experience.state(project)
        embedded, waiting = await self.search.counts(project)
        unsorted, summarize_us = await self.sessions.waiting(project)
        return pb.ExperienceState(
            run_count=runs,
            production_run_count=production,
            embedded_count=embedded,
            pending_embedding_count=waiting,
            pending_aggregation_count=state.pending_aggregation,
            pending_detection_count=state.pending_detection,
            aggregate_time=render.timestamp(state.aggregate_us) if state.aggregate_us is not None else None,
            detect_time=render.timestamp(state.detect_us) if state.detect_us is not None else None,
            pending_session_count=unsorted,
            summarize_time=render.timestamp(summarize_us) if summarize_us is not None else None,
        )

    async def Aggregate(self, request: pb.AggregateRequest, context: Any) -> pb.AggregateResponse:
        """See the proto."""
        project = parse_project(request.parent)
        done = await self.aggregator.aggregate(current_call().effect(), project, request.full)
        return pb.AggregateResponse(
            run_count=done.run_count,
            config_count=done.config_count,
            regeneration_count=done.regeneration_count,
            corrected_count=done.corrected_count,
        )

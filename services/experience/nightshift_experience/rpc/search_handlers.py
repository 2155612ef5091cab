"""Finding runs again, and what they suggest to improve.

A mixin for the servicer, which sets ``search`` and ``opportunities``.
"""

from __future__ import annotations

from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_experience.opportunities import OpportunityService
from nightshift_experience.resources import OpportunityName, parse_project
from nightshift_experience.rpc import render_search
from nightshift_experience.search import SearchMode, SearchService
from nightshift_kit.errors import EnumUnknown
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call

_HITS_DEFAULT, _HITS_MAXIMUM = 10, 100
_LIMIT_DEFAULT, _LIMIT_MAXIMUM = 512, 4096


class SearchHandlers:
    """Handlers of search, embedding and opportunities."""

    search: SearchService
    opportunities: OpportunityService

    async def SearchRuns(self, request: pb.SearchRunsRequest, context: Any) -> pb.SearchRunsResponse:
        """See the proto."""
        project = parse_project(request.parent)
        result = await self.search.search(
            project,
            request.query,
            mode=_mode(request.mode),
            limit=page_size(request.page_size, _HITS_DEFAULT, _HITS_MAXIMUM),
            language=request.language,
            interception_config=request.interception_config,
        )
        rows = await self.search.runs(project, [run_id for run_id, _ in result.hits])
        return render_search.hits(result, rows)

    async def EmbedPending(self, request: pb.EmbedPendingRequest, context: Any) -> pb.EmbedPendingResponse:
        """See the proto."""
        project = parse_project(request.parent)
        limit = page_size(request.limit, _LIMIT_DEFAULT, _LIMIT_MAXIMUM, field="limit")
        done = await self.search.embed_pending(project, limit, current_call().effect())
        return pb.EmbedPendingResponse(
            embedded_count=done.embedded_count, remaining_count=done.remaining_count
        )

    async def DetectOpportunities(
        self, request: pb.DetectOpportunitiesRequest, context: Any
    ) -> pb.DetectOpportunitiesResponse:
        """See the proto."""
        project = parse_project(request.parent)
        found = await self.opportunities.detect(project, current_call().effect())
        return pb.DetectOpportunitiesResponse(
            opportunities=[render_search.opportunity(project, item) for item in found]
        )

    async def ListOpportunities(
        self, request: pb.ListOpportunitiesRequest, context: Any
    ) -> pb.ListOpportunitiesResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        digest = query_digest(method="ListOpportunities", parent=request.parent)
        position = decode_token(request.page_token, digest, (int,))
        after = int(position[0] or 0) if position else -1
        found = await self.opportunities.page(project, after, size + 1)
        return pb.ListOpportunitiesResponse(
            opportunities=[render_search.opportunity(project, item) for _, item in found[:size]],
            next_page_token=encode_token((found[size - 1][0],), digest) if len(found) > size else "",
        )

    async def GetOpportunity(self, request: pb.GetOpportunityRequest, context: Any) -> resources.Opportunity:
        """See the proto."""
        name = OpportunityName.parse(request.name)
        return render_search.opportunity(
            name.project, await self.opportunities.get(name.project, name.opportunity)
        )


def _mode(value: int) -> SearchMode:
    if value == pb.SEARCH_MODE_UNSPECIFIED:
        return SearchMode.SEMANTIC
    try:
        return SearchMode(value)
    except ValueError:
        raise EnumUnknown.at("mode", f"{value} is no SearchMode") from None

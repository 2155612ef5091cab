"""Sessions and days.

A mixin for the servicer, which sets ``sessions``.
"""

from __future__ import annotations

from typing import Any

from nightshift.experience.v1 import sessions_pb2 as pb
from nightshift_experience.resources import SessionName, parse_project
from nightshift_experience.rpc import render_sessions
from nightshift_experience.rpc.convert import window_us
from nightshift_experience.sessions.service import SessionService
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call


class SessionHandlers:
    """Handlers of sessions and of what they are told in."""

    sessions: SessionService

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.Session:
        """See the proto."""
        name = SessionName.parse(request.name)
        return render_sessions.session(name.project, await self.sessions.get(name.project, name.session))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        window = window_us(request)
        mode = int(request.mode) or None
        digest = query_digest(method="ListSessions", parent=request.parent, window=window, mode=mode)
        position = decode_token(request.page_token, digest, (int, str))
        before = (int(position[0] or 0), str(position[1])) if position else None
        found = await self.sessions.page(project, window, mode, before, size + 1)
        last = found[size - 1] if len(found) > size else None
        return pb.ListSessionsResponse(
            sessions=[render_sessions.session(project, one) for one in found[:size]],
            next_page_token=encode_token((last.start_us, last.session_id), digest) if last else "",
        )

    async def ListDailySummaries(
        self, request: pb.ListDailySummariesRequest, context: Any
    ) -> pb.ListDailySummariesResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        digest = query_digest(method="ListDailySummaries", parent=request.parent)
        position = decode_token(request.page_token, digest, (str,))
        found = await self.sessions.days(project, str(position[0]) if position else None, size + 1)
        return pb.ListDailySummariesResponse(
            daily_summaries=[render_sessions.day(project, one) for one in found[:size]],
            next_page_token=encode_token((found[size - 1].day,), digest) if len(found) > size else "",
        )

    async def SummarizeSessions(
        self, request: pb.SummarizeSessionsRequest, context: Any
    ) -> pb.SummarizeSessionsResponse:
        """See the proto."""
        done = await self.sessions.summarize(current_call().effect(), parse_project(request.parent))
        return pb.SummarizeSessionsResponse(
            run_count=done.run_count, session_count=done.session_count, day_count=done.day_count
        )

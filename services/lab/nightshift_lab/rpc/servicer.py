"""LabService over the core: check the request, one call, render."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from nightshift.lab.v1 import lab_service_pb2 as pb
from nightshift.lab.v1 import lab_service_pb2_grpc, resources_pb2
from nightshift_kit.errors import FieldRequired
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call

from ..catalog import Catalog
from ..drafting import draft
from ..promotions import Promotions
from ..proposals import NewProposal, Proposals
from ..reports import Reports
from ..resources import ConfigName, PromotionName, ProposalName, check_opportunity
from ..translation.drafting import Drafting
from ..translation.gaps import Translation
from ..translation.revisions import Revision, Revisions
from ..validation.validator import validate
from . import render
from .stoppable import Stoppable
from .values import from_struct

_M = TypeVar("_M", bound=Message)
# A message has at most 4 MiB, and one config more may have 1 MiB.
_PAGE_BYTES = 2 * 1024 * 1024

_STATES = {number: state for state, number in render.STATES.items()}


class LabServicer(lab_service_pb2_grpc.LabServiceServicer):
    """See the proto.

    Args:
        proposals, promotions, reports, drafting, revisions: The core.
        catalog: Reads production; blocks.
        stoppable: Ends drafting on a stop.
    """

    def __init__(
        self,
        proposals: Proposals,
        promotions: Promotions,
        catalog: Callable[[], Catalog],
        reports: Reports,
        drafting: Drafting,
        revisions: Revisions,
        stoppable: Stoppable,
    ) -> None:
        self._proposals = proposals
        self._promotions = promotions
        self._catalog = catalog
        self._reports = reports
        self._drafting = drafting
        self._revisions = revisions
        self._stoppable = stoppable

    async def _production(self) -> Catalog:
        return await asyncio.to_thread(self._catalog)

    async def ListConfigs(self, request: pb.ListConfigsRequest, context: Any) -> pb.ListConfigsResponse:
        """See the proto."""
        size, query = page_size(request.page_size), query_digest(list="configs")
        after = _position(request.page_token, query) or ""
        catalog, standing = await self._production(), await self._promotions.standing()
        rest = [file for file in catalog.interception if file.config_id > after]
        page = _fitting(render.config(file, standing.get(file.path) == file.digest) for file in rest[:size])
        return pb.ListConfigsResponse(
            configs=page,
            next_page_token=_next([file.config_id for file in rest], len(page), query),
        )

    async def GetConfig(self, request: pb.GetConfigRequest, context: Any) -> resources_pb2.Config:
        """See the proto."""
        name = ConfigName.parse(request.name)
        file = (await self._production()).get(name.config_id)
        standing = await self._promotions.standing()
        return render.config(file, standing.get(file.path) == file.digest)

    async def DraftProposal(self, request: pb.DraftProposalRequest, context: Any) -> pb.DraftProposalResponse:
        """See the proto."""
        check_opportunity(request.opportunity)
        nearest = [
            ConfigName.parse(_prefixed(name), "nearest_configs").config_id for name in request.nearest_configs
        ]
        catalog = await self._production()
        made = await asyncio.to_thread(draft, request.theme, list(request.keywords), nearest, catalog)
        return render.draft(made)

    async def ValidateConfig(
        self, request: pb.ValidateConfigRequest, context: Any
    ) -> resources_pb2.ValidationReport:
        """See the proto."""
        content = from_struct(_given(request, "content").content)
        catalog = await self._production()
        found = await asyncio.to_thread(validate, request.config_id, content, catalog.surroundings)
        return render.report(found)

    async def CreateProposal(self, request: pb.CreateProposalRequest, context: Any) -> resources_pb2.Proposal:
        """See the proto."""
        new = NewProposal(
            config_id=request.config_id,
            content=from_struct(_given(request, "content").content),
            opportunity=check_opportunity(request.opportunity),
            templates=tuple(ConfigName.parse(name, "templates").config_id for name in request.templates),
            drafted_by=request.drafted_by,
        )
        return render.proposal(await self._proposals.create(current_call().effect(), new))

    async def GetProposal(self, request: pb.GetProposalRequest, context: Any) -> resources_pb2.Proposal:
        """See the proto."""
        return render.proposal(await self._proposals.get(ProposalName.parse(request.name).proposal_id))

    async def ListProposals(self, request: pb.ListProposalsRequest, context: Any) -> pb.ListProposalsResponse:
        """See the proto."""
        size, query = page_size(request.page_size), query_digest(list="proposals", state=request.state)
        before = _position(request.page_token, query)
        found = await self._proposals.page(size + 1, before, _STATES.get(request.state))
        page = _fitting(render.proposal(proposal) for proposal in found[:size])
        return pb.ListProposalsResponse(
            proposals=page,
            next_page_token=_next([proposal.proposal_id for proposal in found], len(page), query),
        )

    async def DiffProposal(self, request: pb.DiffProposalRequest, context: Any) -> pb.DiffProposalResponse:
        """See the proto."""
        name = ProposalName.parse(request.name)
        other = ConfigName.parse(request.config, "config").config_id if request.config else ""
        text, compared = await self._proposals.diff(name.proposal_id, other)
        return pb.DiffProposalResponse(diff=text, config=ConfigName(compared).name)

    async def RejectProposal(self, request: pb.RejectProposalRequest, context: Any) -> resources_pb2.Proposal:
        """See the proto."""
        name = ProposalName.parse(request.name)
        effect = current_call().effect()
        return render.proposal(
            await self._proposals.reject(effect, name.proposal_id, request.etag, request.comment)
        )

    async def PromoteProposal(
        self, request: pb.PromoteProposalRequest, context: Any
    ) -> resources_pb2.Promotion:
        """See the proto."""
        name = ProposalName.parse(request.name)
        done = await self._promotions.promote(
            current_call().effect(), name.proposal_id, request.etag, request.content_digest, request.path
        )
        return render.promotion(done)

    async def RollbackPromotion(
        self, request: pb.RollbackPromotionRequest, context: Any
    ) -> resources_pb2.Promotion:
        """See the proto."""
        name = PromotionName.parse(request.name)
        done = await self._promotions.roll_back(
            current_call().effect(), name.promotion_id, request.current_digest
        )
        return render.promotion(done)

    async def GetPromotion(self, request: pb.GetPromotionRequest, context: Any) -> resources_pb2.Promotion:
        """See the proto."""
        return render.promotion(await self._promotions.get(PromotionName.parse(request.name).promotion_id))

    async def ListPromotions(
        self, request: pb.ListPromotionsRequest, context: Any
    ) -> pb.ListPromotionsResponse:
        """See the proto."""
        size, query = page_size(request.page_size), query_digest(list="promotions")
        found = await self._promotions.page(size + 1, _position(request.page_token, query))
        return pb.ListPromotionsResponse(
            promotions=[render.promotion(promotion) for promotion in found[:size]],
            next_page_token=_next([promotion.promotion_id for promotion in found], size, query),
        )

    async def GetLabState(self, request: pb.GetLabStateRequest, context: Any) -> pb.LabState:
        """See the proto."""
        return render.state(await self._reports.state(), self._drafting.model)

    async def ValidateConfigs(
        self, request: pb.ValidateConfigsRequest, context: Any
    ) -> pb.ValidateConfigsResponse:
        """See the proto."""
        return render.validated(await self._reports.validate(current_call().effect()))

    async def ListConfigReports(
        self, request: pb.ListConfigReportsRequest, context: Any
    ) -> pb.ListConfigReportsResponse:
        """See the proto."""
        size, query = page_size(request.page_size), query_digest(list="config_reports")
        after = _position(request.page_token, query) or ""
        rest = [report for report in await self._reports.all() if report.config_id > after]
        page = _fitting(render.config_report(report) for report in rest[:size])
        return pb.ListConfigReportsResponse(
            config_reports=page,
            next_page_token=_next([report.config_id for report in rest], len(page), query),
        )

    async def GetConfigReport(
        self, request: pb.GetConfigReportRequest, context: Any
    ) -> resources_pb2.ConfigReport:
        """See the proto."""
        return render.config_report(await self._reports.get(ConfigName.parse(request.name).config_id))

    async def DraftTranslations(
        self, request: pb.DraftTranslationsRequest, context: Any
    ) -> pb.DraftTranslationsResponse:
        """See the proto."""
        name = ConfigName.parse(request.name)
        work = self._drafting.draft(name.config_id, redraft=request.redraft, actor=current_call().actor)
        return render.translations(await self._stoppable.run(f"translations of {name.name}", work))

    async def TranslateConfig(
        self, request: pb.TranslateConfigRequest, context: Any
    ) -> resources_pb2.Promotion:
        """See the proto."""
        revision = Revision(
            config_id=ConfigName.parse(request.name).config_id,
            base_digest=request.base_digest,
            translations=tuple(Translation(t.field, t.language, t.text) for t in request.translations),
            content_digest=request.content_digest,
            drafted_by=request.drafted_by,
        )
        return render.promotion(await self._revisions.translate(current_call().effect(), revision))


def _position(token: str, query: str) -> str | None:
    position = decode_token(token, query, [str])
    return None if position is None else str(position[0])


def _fitting(messages: Iterable[_M]) -> list[_M]:
    """As many of the messages as fit into one answer, at least one; the next page goes on from there."""
    page: list[_M] = []
    size_bytes = 0
    for message in messages:
        size_bytes += message.ByteSize()
        if page and size_bytes > _PAGE_BYTES:
            break
        page.append(message)
    return page


def _next(ids: Sequence[str], size: int, query: str) -> str:
    return encode_token([ids[size - 1]], query) if len(ids) > size > 0 else ""


def _given(request: Any, field: str) -> Any:
    if not request.HasField(field):
        raise FieldRequired.at(field, "must be given")
    return request


def _prefixed(config: str) -> str:
    """The field takes bare ids; resource names of the same configs are welcome as well."""
    return config if config.startswith("configs/") else f"configs/{config}"

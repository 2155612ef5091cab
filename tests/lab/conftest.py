"""A real lab on a real server, mTLS and store, beside a copy of the miniature platform."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from nightshift.lab.v1 import lab_service_pb2 as pb
from nightshift.lab.v1 import lab_service_pb2_grpc as pb_grpc
from nightshift.lab.v1 import resources_pb2
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import FenceGate, Tier
from nightshift_kit.ids import new_id
from nightshift_kit.llm import LlmClient, LlmSettings
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.rpc.stop import StopHub
from nightshift_kit.safe_files import FileEffects
from nightshift_kit.storage import Database
from nightshift_lab.changes import Changes
from nightshift_lab.platform import Production, open_root
from nightshift_lab.promotions import Promotions
from nightshift_lab.proposals import Proposals
from nightshift_lab.reports import Reports
from nightshift_lab.rpc.servicer import LabServicer
from nightshift_lab.rpc.stoppable import Stoppable
from nightshift_lab.translation.drafting import Drafting
from nightshift_lab.translation.revisions import Revisions
from tests.support.servers import Serving, serving

EXAMPLE = Path(__file__).parents[2] / "examples" / "platform"
INTERCEPTION = "schemas/configs/interception"
SERVICE = "nightshift.lab.v1.LabService"

SKILLS = {
    "CreateProposal": ("propose_config", Tier.CONFIRM),
    "RejectProposal": ("reject_proposal", Tier.MANUAL),
    "PromoteProposal": ("promote_config", Tier.MANUAL),
    "RollbackPromotion": ("rollback", Tier.MANUAL),
    "ValidateConfigs": ("validate_configs", Tier.AUTO),
    "TranslateConfig": ("translate_configs", Tier.CONFIRM),
}


def copy_platform(target: Path) -> Path:
    """The example platform, writable."""
    shutil.copytree(EXAMPLE, target)
    for folder, names, files in os.walk(target):
        for name in names:
            (Path(folder) / name).chmod(0o755)
        for name in files:
            (Path(folder) / name).chmod(0o644)
    return target


def tree_digest(root: Path) -> str:
    """Digest over every path, kind, mode and content beneath a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        digest.update(f"{path.relative_to(root)} {status.st_mode:o} {len(content)} ".encode() + content)
    return digest.hexdigest()


def protected_digest(root: Path) -> str:
    """Digest over everything but the one folder that the lab may write."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        relative = str(path.relative_to(root))
        if path.is_file() and not relative.startswith(INTERCEPTION + "/"):
            digest.update(relative.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclass
class Lab:
    """A running lab."""

    running: Serving
    root: Path
    db: Database
    effects: FileEffects
    promotions: Promotions

    @property
    def stub(self) -> Any:
        return self.running.stub(pb_grpc.LabServiceStub)

    @property
    def folder(self) -> Path:
        return self.root / INTERCEPTION

    async def read(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, timeout=10)

    async def act(self, method: str, request: Any, **claims: Any) -> Any:
        skill, tier = SKILLS[method]
        return await self.running.act(
            pb_grpc.LabServiceStub, method, request, skill=skill, tier=tier, **claims
        )

    async def refused(self, method: str, request: Any, **claims: Any) -> RichError:
        call = self.act if method in SKILLS else self.read
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(method, request, **claims)
        return decode_error(caught.value)

    async def draft(
        self, theme: str = "old lanterns", keywords: tuple[str, ...] = ("brass", "wick", "soot")
    ) -> Any:
        return await self.read("DraftProposal", pb.DraftProposalRequest(theme=theme, keywords=keywords))

    async def propose(self, theme: str = "old lanterns", config_id: str = "") -> resources_pb2.Proposal:
        made = await self.draft(theme)
        request = pb.CreateProposalRequest(
            config_id=config_id or made.config_id,
            content=made.content,
            opportunity="projects/p/opportunities/o1",
            templates=made.templates,
            drafted_by=made.drafted_by,
        )
        proposal: resources_pb2.Proposal = await self.act("CreateProposal", request)
        return proposal

    def promotion_of(self, proposal: resources_pb2.Proposal, **changes: str) -> pb.PromoteProposalRequest:
        fields = {
            "name": proposal.name,
            "etag": proposal.etag,
            "content_digest": proposal.content_digest,
        }
        return pb.PromoteProposalRequest(**(fields | changes))

    async def promote(self, proposal: resources_pb2.Proposal, **changes: str) -> resources_pb2.Promotion:
        promotion: resources_pb2.Promotion = await self.act(
            "PromoteProposal", self.promotion_of(proposal, **changes)
        )
        return promotion

    async def roll_back(self, promotion: resources_pb2.Promotion) -> resources_pb2.Promotion:
        request = pb.RollbackPromotionRequest(name=promotion.name, current_digest=promotion.digest)
        undone: resources_pb2.Promotion = await self.act("RollbackPromotion", request)
        return undone


@pytest.fixture
def platform(tmp_path: Path) -> Path:
    """A writable copy of the example platform."""
    return copy_platform(tmp_path / "platform")


@pytest.fixture
def lab_db(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/lab.db", migrations="nightshift_lab", name="lab") as db:
        db.migrate()
        yield db


@asynccontextmanager
async def open_lab(
    home: Path,
    platform: Path,
    db: Database,
    llm: LlmSettings = LlmSettings(),  # noqa: B008 - frozen
    budget_usd: float = 0.0,
) -> AsyncIterator[Lab]:
    """The lab's objects as `__main__` wires them, on ephemeral ports."""
    clock = SystemClock()
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(open_root(platform))
        production = Production(root)
        outbox = Outbox("lab", clock)
        effects = FileEffects(root, db, clock=clock)
        changes = Changes(db, effects, production, outbox, clock)
        promotions = Promotions(db, changes, clock, new_id)
        stack.callback(changes.close)
        changes.recover()
        hub = StopHub(FenceGate(db, clock), clock)
        client = LlmClient(llm)
        servicer = LabServicer(
            Proposals(db, production, outbox, clock, new_id),
            promotions,
            production,
            Reports(db, production, outbox, clock),
            Drafting(db, production, client, budget_usd, outbox, clock),
            Revisions(changes, clock, new_id),
            Stoppable(hub),
        )
        services = [(pb_grpc.add_LabServiceServicer_to_server, servicer, SERVICE)]
        async with serving("lab", services, home=home, db=db, hub=hub) as running:
            yield Lab(running, platform, db, effects, promotions)
        await client.close()


@pytest.fixture
async def lab(tmp_path: Path, platform: Path, lab_db: Database) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path / "home", platform, lab_db) as opened:
        yield opened


def content_of(message: Any) -> dict[str, Any]:
    """A Struct as a dict."""
    return json_format.MessageToDict(message)


def load_config(root: Path, config_id: str) -> dict[str, Any]:
    """A config of production as JSON."""
    content: dict[str, Any] = json.loads((root / INTERCEPTION / f"{config_id}.json").read_text("utf-8-sig"))
    return content

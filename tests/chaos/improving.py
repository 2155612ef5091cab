"""The improvement loop: proposals approved, promoted, rolled back, again and again."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

from google.protobuf.json_format import MessageToDict

from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import resources_pb2 as lab_types
from nightshift.lab.v1.lab_service_pb2_grpc import LabServiceStub
from nightshift.skills.v1 import resources_pb2 as types
from tests.chaos.commanding import Person
from tests.support.plane import RealPlane


class Improver:
    """Approves every proposal that is asked for, and moves proposals in and out of production.

    Attributes:
        promotions: Promotions and rollbacks that were acknowledged as done.
    """

    def __init__(self, plane: RealPlane, person: Person, source: random.Random) -> None:
        self._plane = plane
        self._person = person
        self._source = source
        self._lab = plane.stub(LabServiceStub, "lab")
        self.promotions = 0
        # What stands in production now: path → the promotion that put it there.
        self._standing: dict[str, dict[str, Any]] = {}

    async def approve_all(self, stop: asyncio.Event, pause_s: float) -> None:
        """Approves what waits, with pauses; asks for proposals as well."""
        while not stop.is_set():
            for approval in await self._person.pending():
                if approval.plan.skill == "skills/propose_config":
                    await self._person.approve(approval)
                    await self._person.ended(await self._person.get(approval.skill_run))
            if self._source.random() < 0.3:
                await self._ask()
            await asyncio.sleep(self._source.uniform(0.1, pause_s))

    async def _ask(self) -> None:
        """A person who sees the plan and confirms it at once."""
        plan = await self._person.plan("propose_config")
        if plan is None:
            return
        try:
            run = await self._person.run("propose_config", plan_digest=plan.digest)
        except AssertionError as error:
            # The other way may have been quicker: then this plan is not the plan any more.
            if getattr(getattr(error, "rich", None), "reason", "") not in {"PLAN_CHANGED", "COOLDOWN"}:
                raise
            return
        if run.state != types.SKILL_RUN_STATE_NOTHING_TO_DO:
            await self._person.ended(run)

    async def move(self, stop: asyncio.Event) -> None:
        """Promotes validated proposals, takes promotions back, and takes some of that back, too."""
        while not stop.is_set():
            proposals = [p for p in await self.proposals() if p.state == lab_types.PROPOSAL_STATE_VALIDATED]
            if proposals and (not self._standing or self._source.random() < 0.5):
                proposal = self._source.choice(proposals)
                await self._moved("promote_config", proposal=proposal.name)
            elif self._standing:
                last = self._standing[self._source.choice(sorted(self._standing))]
                taken_out = await self._moved("rollback", promotion=last["name"])
                if self._source.random() < 0.3:
                    # A rollback is itself a promotion, and can be taken back.
                    await self._moved("rollback", promotion=taken_out["name"])
            else:
                await asyncio.sleep(0.2)

    async def _moved(self, skill: str, **parameters: Any) -> dict[str, Any]:
        """Carries it out; what was acknowledged as done must lie there at once, to the byte."""
        promotion = await self._done(skill, **parameters)
        path = self._plane.platform_root / promotion["path"]
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        assert found == promotion.get("digest", ""), (found, promotion)
        if found:
            self._standing[promotion["path"]] = promotion
        else:
            self._standing.pop(promotion["path"], None)
        return promotion

    async def proposals(self) -> list[lab_types.Proposal]:
        """All there are."""
        request = lab_pb.ListProposalsRequest(page_size=100)
        answer, _ = await self._person.flights.insist(
            "look", lambda: self._lab.ListProposals(request, timeout=5), quiet=True
        )
        return list(answer.proposals)

    async def _done(self, skill: str, **parameters: Any) -> dict[str, Any]:
        run = await self._person.ended(await self._person.run(skill, **parameters))
        assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
        assert len(run.results) == 1, run
        self.promotions += 1
        promotion: dict[str, Any] = MessageToDict(run.results[0])
        return promotion

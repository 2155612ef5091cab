"""A real skills service, wired and served as in production, among stand-ins of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as pb_grpc
from nightshift_kit.canonical import canonical_json
from nightshift_kit.processes.table import find_free_base, taken_ports
from nightshift_kit.rpc.channels import RichError, channel_to, decode_error
from nightshift_kit.rpc.serve import Wiring, serve
from nightshift_kit.rpc.tls import create_credential, ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_skills.__main__ import assemble
from tests.skills.stand_ins import Surroundings, surroundings

ENDED = {
    types.SKILL_RUN_STATE_SUCCEEDED,
    types.SKILL_RUN_STATE_FAILED,
    types.SKILL_RUN_STATE_CANCELLED,
    types.SKILL_RUN_STATE_DENIED,
    types.SKILL_RUN_STATE_NOTHING_TO_DO,
}
FAST: dict[str, Any] = {
    "tick_s": 0.3,
    "backoff_first_s": 0.3,
    "backoff_max_s": 1.0,
    "checkpoint_interval_s": 0.5,
    "call_retry_s": 3.0,
    "failed_rest_s": 0.5,
}


def toml(settings: dict[str, Any]) -> str:
    """Settings as a section; JSON's scalars and inline tables are TOML's, but for the colon."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f'"{key}" = {value(inner)}' for key, inner in item.items()) + "}"
        return canonical_json(item).decode()

    return "[skills]\n" + "".join(f"{key} = {value(item)}\n" for key, item in settings.items())


@dataclass
class Plane:
    """Skills and what surrounds it."""

    home: Path
    around: Surroundings
    port_base: int
    settings: dict[str, Any]
    # Real services that take a stand-in's place: name → main and control port.
    instead: dict[str, tuple[int, int]] = field(default_factory=dict)
    # The entry for guardrails, of the service that runs now.
    guardrail: Any = None
    _task: asyncio.Task[None] | None = None
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _channels: dict[tuple[str, bool], grpc.aio.Channel] = field(default_factory=dict)

    @property
    def plane_settings(self) -> PlaneSettings:
        return PlaneSettings(home=self.home, port_base=self.port_base)

    def write_settings(self) -> None:
        addresses, control_addresses = self.around.addresses, self.around.control_addresses
        for name, (port, control_port) in self.instead.items():
            addresses[name] = f"127.0.0.1:{port}"
            control_addresses[name] = f"127.0.0.1:{control_port}"
        told = {**self.settings, "addresses": addresses, "control_addresses": control_addresses}
        (self.home / "settings.toml").write_text(toml(told))

    async def start(self) -> None:
        self.write_settings()
        self._stopped = asyncio.Event()

        async def wire(wiring: Wiring) -> None:
            self.guardrail = await assemble(wiring)

        self._task = asyncio.create_task(serve("skills", self.plane_settings, wire, stopped=self._stopped))
        ready = asyncio.ensure_future(
            self.stub().GetLock(pb.GetLockRequest(), timeout=20, wait_for_ready=True)
        )
        await asyncio.wait([self._task, ready], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            ready.cancel()
            await self._task
        await ready

    async def stop(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        if self._task is not None:
            self._stopped.set()
            task, self._task = self._task, None
            await task
            # The metrics server ends by itself within half a second.
            while self.plane_settings.metrics_port("skills") in taken_ports(self.plane_settings.port_base):
                await asyncio.sleep(0.05)

    def channel(self, identity: str = "admin", *, control: bool = False) -> grpc.aio.Channel:
        key = (identity, control)
        if key not in self._channels:
            settings = self.plane_settings
            if "/" in identity:
                name = identity
            else:
                name = f"person/{identity}"
                role = identity.rstrip("0123456789")
                if not (self.home / "credentials" / f"{name}.pem").exists():
                    create_credential(settings, "person", identity, role)
            port = settings.control_port("skills") if control else settings.port("skills")
            self._channels[key] = channel_to(f"127.0.0.1:{port}", "skills", load_credential(settings, name))
        return self._channels[key]

    def stub(self, identity: str = "admin") -> Any:
        return pb_grpc.SkillsServiceStub(self.channel(identity))

    def control(self, identity: str = "platform/devserver") -> Any:
        if identity.startswith("platform/"):
            path = self.home / "credentials" / f"{identity}.pem"
            if not path.exists():
                create_credential(self.plane_settings, "platform", identity.partition("/")[2])
        return control_grpc.ControlServiceStub(self.channel(identity, control=True))

    async def call(self, method: str, request: Any, identity: str = "admin", timeout_s: float = 10) -> Any:
        return await getattr(self.stub(identity), method)(request, timeout=timeout_s)

    async def refused(self, method: str, request: Any, identity: str = "admin") -> RichError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, identity)
        return decode_error(caught.value)

    async def run(
        self, skill: str, parameters: dict[str, Any] | None = None, **fields: Any
    ) -> types.SkillRun:
        identity = fields.pop("identity", "admin")
        request = pb.RunSkillRequest(name=f"skills/{skill}", **fields)
        request.parameters.update(parameters or {})
        answer: types.SkillRun = await self.call("RunSkill", request, identity)
        return answer

    async def get(self, run: str) -> types.SkillRun:
        answer: types.SkillRun = await self.call("GetSkillRun", pb.GetSkillRunRequest(name=run))
        return answer

    async def until(self, run: str, *states: int, timeout_s: float = 15) -> types.SkillRun:
        """The run once it is in one of the states (any ended one if none is named)."""
        found: types.SkillRun = await eventually(
            lambda: self.get(run), lambda r: r.state in (states or ENDED), timeout_s
        )
        return found

    async def approval_of(self, run: types.SkillRun) -> types.Approval:
        answer: types.Approval = await self.call("GetApproval", pb.GetApprovalRequest(name=run.approval))
        return answer

    async def decide(
        self, approval: types.Approval, *, approve: bool = True, identity: str = "admin", comment: str = ""
    ) -> types.Approval:
        request = pb.DecideApprovalRequest(
            name=approval.name,
            decision=pb.DECISION_APPROVE if approve else pb.DECISION_DENY,
            plan_digest=approval.plan.digest,
            nonce=approval.nonce,
            comment=comment,
        )
        answer: types.Approval = await self.call("DecideApproval", request, identity)
        return answer

    async def report(self, kind: str = "request", **fields: Any) -> pb.ReportActivityResponse:
        answer: pb.ReportActivityResponse = await self.control().ReportActivity(
            pb.ReportActivityRequest(kind=kind, **fields), timeout=5
        )
        return answer

    async def runs(self, skill: str) -> list[types.SkillRun]:
        answer = await self.call("ListSkillRuns", pb.ListSkillRunsRequest(skill=f"skills/{skill}"))
        return list(answer.skill_runs)

    async def open(self) -> None:
        """Waits until background work may start."""
        await eventually(
            lambda: self.call("GetSchedule", pb.GetScheduleRequest()), lambda schedule: schedule.open
        )


async def eventually(
    ask: Callable[[], Any], wanted: Callable[[Any], bool], timeout_s: float = 15, each_s: float = 0.03
) -> Any:
    """Asks until the answer is wanted."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while True:
        answer = await ask()
        if wanted(answer):
            return answer
        if loop.time() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {answer}")
        await asyncio.sleep(each_s)


@asynccontextmanager
async def plane_in(home: Path, **settings: Any) -> AsyncIterator[Plane]:
    """A plane that is up."""
    base = find_free_base()
    ensure_home(PlaneSettings(home=home, port_base=base))
    async with surroundings(home) as around:
        plane = Plane(home, around, base, {**FAST, **settings})
        await plane.start()
        try:
            yield plane
        finally:
            await plane.stop()

"""Real servers for tests: the product's builder on ephemeral ports, mutual TLS on, grants signed for real.

async with serving("lab", [(add_LabServiceServicer_to_server, servicer, "nightshift.lab.v1.LabService")],
                   home=tmp_path / "home", db=db) as lab:
    stub = lab.stub(LabServiceStub)                      # as person/<uid>, an admin
    await stub.PromoteProposal(request, timeout=5)       # GRANT_MISSING
    await lab.act(LabServiceStub, "PromoteProposal", request, skill="promote_config", tier=Tier.MANUAL)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import digest_message
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import FenceGate, GrantMinter, GrantVerifier, Tier
from nightshift_kit.otlp import SpanSink
from nightshift_kit.rpc.channels import channel_to, grant_metadata
from nightshift_kit.rpc.control import ControlThread, control_services
from nightshift_kit.rpc.guard import Authority
from nightshift_kit.rpc.metrics import RpcMetrics
from nightshift_kit.rpc.server import AddToServer, Server, ServerBuilder
from nightshift_kit.rpc.stop import StopHub
from nightshift_kit.rpc.tls import (
    Credential,
    create_credential,
    ensure_home,
    load_credential,
    load_private_key,
    load_public_key,
)
from nightshift_kit.rpc.token_door import TokenDoor
from nightshift_kit.rpc.traffic import Limits
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from nightshift_kit.tokens import RefusedUses

Service = tuple[AddToServer, Any, str]

PERSON = f"person/{os.getuid()}"


class Serving:
    """A running service: its main server, and its control server where it acts.

    Attributes:
        port: Of the main server; `control_port` of the control server, 0 where there is none; `token_port` of
            the server for callers without a certificate.
        minter: Signs grants as skills would.
        hub: Works of the service; None where it does not act.
    """

    def __init__(self, name: str, settings: PlaneSettings, clock: Clock) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock
        self.minter = GrantMinter(load_private_key(settings, "grant"), clock)
        self.metrics = RpcMetrics(name)
        self.hub: StopHub | None = None
        self.server: Server | None = None
        self.port = 0
        self.control_port = 0
        self.token_port = 0
        self.fence = 1
        self._channels: dict[tuple[str, bool], grpc.aio.Channel] = {}
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def credential(self, identity: str) -> Credential:
        """Credential of "person/…", "platform/…" or "service/…"; "viewer", "approver", "admin" make one."""
        if identity in {"viewer", "approver", "admin"}:
            path = self.settings.home / "credentials" / "person" / f"{identity}.pem"
            if not path.exists():
                create_credential(self.settings, "person", identity, identity)
            identity = f"person/{identity}"
        return load_credential(self.settings, identity)

    def channel(self, identity: str = PERSON, *, control: bool = False) -> grpc.aio.Channel:
        """A channel under an identity; kept, and closed with the server."""
        key = (identity, control)
        if key not in self._channels:
            port = self.control_port if control else self.port
            made = channel_to(f"127.0.0.1:{port}", self.name, self.credential(identity))
            self._channels[key] = made
            self._stack.push_async_callback(made.close)
        return self._channels[key]

    def stub(self, stub_class: Any, identity: str = PERSON, *, control: bool = False) -> Any:
        """A stub under an identity."""
        return stub_class(self.channel(identity, control=control))

    def mint(
        self,
        method: str,
        request: Message | None = None,
        *,
        skill: str,
        tier: Tier = Tier.CONFIRM,
        **claims: Any,
    ) -> str:
        """A grant for `service/skills`; further claims of GrantMinter.mint win over the fitting defaults.

        Args:
            method: Full name ("nightshift.lab.v1.LabService/PromoteProposal").
            request: What it is bound to (CONFIRM and MANUAL).
            skill: Without "skills/".
        """
        fitting: dict[str, Any] = {
            "skill": f"skills/{skill}",
            "skill_digest": "test",
            "skill_run": "skillRuns/test",
            "tier": tier,
            "methods": [method],
            "fence": self.fence,
            "audience": self.name,
            "thumbprint": self.credential("service/skills").thumbprint,
            "initiator": "person/admin/tester",
            "on_purpose": tier is Tier.MANUAL,
        }
        if tier > Tier.AUTO:
            assert request is not None
            fitting |= {"approval": "approvals/test", "arguments_digest": digest_message(request)}
        return self.minter.mint(**(fitting | claims))

    async def act(
        self,
        stub_class: Any,
        method: str,
        request: Message,
        *,
        skill: str,
        tier: Tier = Tier.CONFIRM,
        timeout_s: float = 10.0,
        token: str = "",
        **claims: Any,
    ) -> Any:
        """Calls an acting method as skills would, with a fresh fitting grant or the one given."""
        service = next(
            full for _, _, full in self.services if full.rpartition(".")[2] + "Stub" == stub_class.__name__
        )
        token = token or self.mint(f"{service}/{method}", request, skill=skill, tier=tier, **claims)
        call = getattr(self.stub(stub_class, "service/skills"), method)
        renewing = asyncio.create_task(self._renew(claims.get("skill_run", "skillRuns/test")))
        try:
            return await call(request, timeout=timeout_s, metadata=grant_metadata(token))
        finally:
            renewing.cancel()

    async def _renew(self, skill_run: str) -> None:
        """Renews a run's lease as skills does while it is at work."""
        while self.hub is not None:
            if self.hub.gate.is_open:
                with suppress(NightshiftError):
                    await self.hub.renew(self.hub.gate.highest, [skill_run])
            await asyncio.sleep(0.5)

    services: Sequence[Service] = ()


@asynccontextmanager
async def serving(
    name: str,
    services: Sequence[Service],
    *,
    home: Path,
    db: Database | None = None,
    control: Sequence[Service] = (),
    clock: Clock | None = None,
    open_gate: bool = True,
    insecure_loopback: bool = False,
    limits: Limits | None = None,
    grace_s: float = 1.0,
    hub: StopHub | None = None,
    spans: SpanSink | None = None,
    refused: RefusedUses | None = None,
) -> AsyncIterator[Serving]:
    """Serves on ephemeral ports until the block ends.

    Args:
        services: What the main server has.
        home: NIGHTSHIFT_HOME; made where it is missing.
        db: Migrated, with the kit's tables; makes it an acting service with StopService and OutboxService.
        control: Further services of the control server.
        open_gate: Whether skills has told the fence (1) already.
        hub: Where the servicers know one already; its gate is used.
        spans: Hears of the calls.
        refused: Takes refused uses of local tokens into an audit.
    """
    settings = PlaneSettings(home=home, insecure_loopback=insecure_loopback)
    ensure_home(settings)
    clock = clock or SystemClock()
    running = Serving(name, settings, clock)
    running.services = services
    authority = None
    on_control = list(control)
    if db is not None:
        running.hub = hub or StopHub(FenceGate(db, clock), clock)
        gate = running.hub.gate
        verifier = GrantVerifier(load_public_key(settings, "grant"), name, clock)
        authority = Authority(verifier, gate, running.hub)
        on_control += control_services(running.hub, db, Outbox(name, clock))
        if open_gate:
            running.fence = max(1, gate.highest)
            await gate.raise_to(running.fence)

    def builder(label: str, chosen: Sequence[Service]) -> ServerBuilder:
        made = ServerBuilder(
            name,
            settings,
            clock=clock,
            authority=authority,
            door=TokenDoor.of(settings, clock, refused),
            for_tokens=label == "tokens",
            metrics=running.metrics,
            plaintext_port=0 if insecure_loopback and label == "main" else None,
            limits=limits,
            label=label,
            spans=spans,
        )
        for service in chosen:
            made.add(*service)
        return made

    control_thread = None
    if on_control:
        control_thread = ControlThread(
            lambda: builder("control", on_control),
            background=[running.hub.watch_leases] if running.hub is not None else [],
        )
        running.control_port = control_thread.start()
    try:
        running.server = builder("main", services).build()
        running.port = await running.server.start()
        tokens = builder("tokens", services).build()
        running.token_port = await tokens.start()
        try:
            yield running
        finally:
            await running._stack.aclose()
            await running.server.stop(grace_s)
            await tokens.stop(grace_s)
    finally:
        if control_thread is not None:
            control_thread.stop()

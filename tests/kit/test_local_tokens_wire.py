"""Local tokens against a real server: who a caller is on each kind of connection, and each refusal."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.rpc.context import current_call
from nightshift_kit.rpc.server import ServerBuilder
from nightshift_kit.rpc.tls import (
    Credential,
    create_credential,
    ensure_home,
    load_credential,
    load_private_key,
)
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from nightshift_kit.telemetry import configure_logging
from nightshift_kit.tokens import METADATA_KEY, LocalToken, RefusedUses, RegisterWriter, TokenEntry, plane_id
from nightshift_kit.tokens.register import REGISTER
from tests.support.servers import Serving, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
MONITOR = "nightshift.monitor.v1.MonitorService"


class Monitor(pb_grpc.MonitorServiceServicer):
    """Says who calls."""

    async def GetProbe(self, request: Any, context: Any) -> resources.Probe:
        identity = current_call().identity
        return resources.Probe(name=identity.actor, target=identity.vouched_by)

    async def AcknowledgeIncident(self, request: Any, context: Any) -> resources.Incident:
        return resources.Incident(name=current_call().identity.actor)

    async def RecordActivity(self, request: Any, context: Any) -> pb.RecordActivityResponse:
        return pb.RecordActivityResponse()

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        for seq in range(1, 10_000):
            yield pb.WatchStatusResponse(seq=seq)
            await asyncio.sleep(0.02)


def who() -> Monitor:
    return Monitor()  # type: ignore[abstract]


class Door:
    """A server, the register that skills would write, and an audit."""

    def __init__(self, monitor: Serving, db: Database, refused: RefusedUses) -> None:
        self.monitor = monitor
        self.db = db
        self.refused = refused
        home = monitor.settings.home
        self.plane = plane_id((home / "ca" / "ca.pem").read_bytes())
        self.writer = RegisterWriter(home / REGISTER, self.plane, load_private_key(monitor.settings, "token"))
        self.entries: dict[str, TokenEntry] = {}
        self.generations = itertools.count(1)

    def write(self) -> None:
        assert self.writer.write(self.entries.values(), next(self.generations))

    def token(
        self, role: str, person: str = "ada", *, expires_in_s: float = 3600, revoked: bool = False
    ) -> LocalToken:
        token = LocalToken.new(self.plane, new_id())
        now = self.monitor.clock.now()
        self.entries[token.id] = TokenEntry(
            token.id,
            token.digest,
            person,
            role,
            "1000",
            now + timedelta(seconds=expires_in_s),
            now if revoked else None,
        )
        self.write()
        return token

    def revoke(self, token: LocalToken) -> None:
        found = self.entries[token.id]
        self.entries[token.id] = TokenEntry(
            found.id,
            found.digest,
            found.person,
            found.role,
            found.issuer,
            found.expire_time,
            self.monitor.clock.now(),
        )
        self.write()

    @asynccontextmanager
    async def stub(self, identity: str = "", *, plain: bool = False, address: str = "") -> AsyncIterator[Any]:
        """Without a certificate, or under one; or without TLS."""
        if plain:
            assert self.monitor.server is not None
            channel = grpc.aio.insecure_channel(address or f"127.0.0.1:{self.monitor.server.plaintext_port}")
        else:
            own = self.monitor.credential("service/monitor")
            shown: Credential | None = self.monitor.credential(identity) if identity else None
            pair = (shown.key_pem, shown.certificate_pem) if shown else ()
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{self.monitor.port if identity else self.monitor.token_port}",
                grpc.ssl_channel_credentials(own.ca_pem, *pair),
                options=[("grpc.ssl_target_name_override", "monitor.nightshift.local")],
            )
        async with channel:
            yield pb_grpc.MonitorServiceStub(channel)

    async def call(
        self, method: str, *texts: str, identity: str = "", plain: bool = False, address: str = ""
    ) -> Any:
        request = {
            "GetProbe": pb.GetProbeRequest(name="probes/x"),
            "AcknowledgeIncident": pb.AcknowledgeIncidentRequest(name="incidents/x"),
            "RecordActivity": pb.RecordActivityRequest(),
        }[method]
        async with self.stub(identity, plain=plain, address=address) as stub:
            metadata = tuple((METADATA_KEY, text) for text in texts)
            return await getattr(stub, method)(request, timeout=10, metadata=metadata)

    async def refusal(self, method: str, *texts: str, **where: Any) -> RichError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, *texts, **where)
        return decode_error(caught.value)

    async def audited(self) -> list[tuple[str, str, str, int]]:
        await self.refused.flush()
        events = await self.db.read(Outbox("lab").events, 0, 10_000)
        return [(e.actor, e.subject, e.fields["reason"], e.fields["count"]) for e in events]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    folder = tmp_path_factory.mktemp("tokens")
    db = Database(f"sqlite:///{folder}/x.db", migrations="tests.kit.sample_store", name="lab")
    db.migrate()
    refused = RefusedUses(db, Outbox("lab"))
    services = [(pb_grpc.add_MonitorServiceServicer_to_server, who(), MONITOR)]
    async with serving(
        "monitor", services, home=folder / "home", insecure_loopback=True, refused=refused
    ) as monitor:
        create_credential(monitor.settings, "person", "ada", "approver")
        yield Door(monitor, db, refused)
    db.close()


async def test_a_token_says_who_comes_without_a_certificate(door: Door) -> None:
    for role in ("viewer", "approver", "admin"):
        probe = await door.call("GetProbe", door.token(role).text)
        assert (probe.name, probe.target) == (f"person/{role}/ada", "1000")
    incident = await door.call("AcknowledgeIncident", door.token("approver").text)
    assert incident.name == "person/approver/ada"
    # Nobody without one, health and reflection aside.
    nobody = await door.refusal("GetProbe")
    assert (nobody.code.name, nobody.reason) == ("UNAUTHENTICATED", "IDENTITY_MISSING")


@dataclass(frozen=True)
class Row:
    reason: str
    made: Callable[[Door], tuple[str, ...]]
    code: str = "UNAUTHENTICATED"
    method: str = "GetProbe"
    identity: str = ""
    plain: bool = False


def _wrong_secret(door: Door) -> tuple[str, ...]:
    token = door.token("admin")
    return (LocalToken(token.plane, token.id, "0" * 64).text,)


def _other_id(door: Door) -> tuple[str, ...]:
    token, other = door.token("admin"), door.token("viewer")
    return (LocalToken(token.plane, token.id, other.secret).text,)


ROWS = {
    "forged": Row("TOKEN_UNKNOWN", lambda d: (LocalToken.new(d.plane, new_id()).text,)),
    "another secret": Row("TOKEN_UNKNOWN", _wrong_secret),
    "the secret of a lower token": Row("TOKEN_UNKNOWN", _other_id),
    "cut": Row("TOKEN_INVALID", lambda d: (d.token("admin").text[:-1],)),
    "its id alone": Row("TOKEN_INVALID", lambda d: (d.token("admin").id,)),
    "the digest from the file": Row("TOKEN_INVALID", lambda d: (d.token("admin").digest,)),
    "empty": Row("TOKEN_INVALID", lambda d: ("",)),
    "two at once": Row("TOKEN_INVALID", lambda d: (d.token("viewer").text, d.token("admin").text)),
    "the same twice": Row("TOKEN_INVALID", lambda d: (d.token("viewer").text,) * 2),
    "of another plane": Row("TOKEN_FOREIGN", lambda d: (LocalToken.new("f" * 16, new_id()).text,)),
    "expired": Row("TOKEN_EXPIRED", lambda d: (d.token("admin", expires_in_s=0).text,)),
    "revoked": Row("TOKEN_REVOKED", lambda d: (d.token("admin", revoked=True).text,)),
    "role too low": Row(
        "ROLE_INSUFFICIENT",
        lambda d: (d.token("viewer").text,),
        code="PERMISSION_DENIED",
        method="AcknowledgeIncident",
    ),
    "a person is no service": Row(
        "CALLER_NOT_ALLOWED",
        lambda d: (d.token("admin", "skills").text,),
        code="PERMISSION_DENIED",
        method="RecordActivity",
    ),
    "beside another's certificate": Row(
        "TOKEN_SUBJECT",
        lambda d: (d.token("admin", "bob").text,),
        code="PERMISSION_DENIED",
        identity="person/ada",
    ),
    "beside a service's certificate": Row(
        "TOKEN_SUBJECT",
        lambda d: (d.token("admin").text,),
        code="PERMISSION_DENIED",
        identity="service/skills",
    ),
    "a person called like the service": Row(
        "TOKEN_SUBJECT",
        lambda d: (d.token("admin", "skills").text,),
        code="PERMISSION_DENIED",
        identity="service/skills",
    ),
    "beside the platform's certificate": Row(
        "TOKEN_SUBJECT",
        lambda d: (d.token("admin").text,),
        code="PERMISSION_DENIED",
        identity="platform/default",
    ),
    "revoked, beside a good certificate": Row(
        "TOKEN_REVOKED", lambda d: (d.token("admin", revoked=True).text,), identity="person/ada"
    ),
    "without TLS a viewer at most": Row(
        "ROLE_INSUFFICIENT",
        lambda d: (d.token("admin").text,),
        code="PERMISSION_DENIED",
        method="AcknowledgeIncident",
        plain=True,
    ),
}


@pytest.mark.parametrize("name", ROWS)
async def test_each_refusal_has_its_reason_and_is_audited(name: str, door: Door) -> None:
    row = ROWS[name]
    before = len(await door.audited())
    texts = row.made(door)
    refused = await door.refusal(row.method, *texts, identity=row.identity, plain=row.plain)
    assert (refused.code.name, refused.reason) == (row.code, row.reason)
    said = refused.message + str(refused.metadata)
    for text in texts:
        assert len(text) < 60 or text[-64:] not in said
    told = (await door.audited())[before:]
    assert [(reason, count) for _, _, reason, count in told] == [(row.reason, 1)]
    assert all(re.fullmatch(r"tokens/(-|[0-9a-f-]{36})", subject) for _, subject, _, _ in told)
    # Who never had a token is named by nobody's word.
    assert all(actor == "unknown" for actor, _, reason, _ in told if reason == "TOKEN_UNKNOWN")


async def test_beside_a_certificate_a_token_can_only_lower(door: Door) -> None:
    lowered = await door.call("GetProbe", door.token("viewer").text, identity="person/ada")
    assert lowered.name == "person/viewer/ada"
    same = await door.call("GetProbe", door.token("admin").text, identity="person/ada")
    assert same.name == "person/approver/ada"
    refused = await door.refusal("AcknowledgeIncident", door.token("viewer").text, identity="person/ada")
    assert refused.reason == "ROLE_INSUFFICIENT"
    assert (await door.call("AcknowledgeIncident", identity="person/ada")).name == "person/approver/ada"


async def test_without_tls_a_token_lends_a_name_and_no_role(door: Door) -> None:
    probe = await door.call("GetProbe", door.token("admin").text, plain=True)
    assert probe.name == "person/viewer/ada"
    assert (await door.call("GetProbe", plain=True)).name == "person/viewer/insecure-loopback"


def _outer_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing
            return str(asking.getsockname()[0])
        except OSError:
            return "127.0.0.1"


async def test_a_token_over_a_network_without_tls_is_refused_unseen(door: Door, tmp_path: Path) -> None:
    outer = _outer_address()
    if outer.startswith("127."):
        pytest.skip("this machine has no other address than loopback")
    # Our own builder refuses to listen there without TLS; this is what an operator's forwarding could make.
    builder = ServerBuilder("monitor", door.monitor.settings, clock=SystemClock())
    server = builder.add(pb_grpc.add_MonitorServiceServicer_to_server, who(), MONITOR).build()
    port = server._server.add_insecure_port(f"{outer}:0")
    await server.start()
    try:
        token = door.token("admin")
        for text in (token.text, "nonsense"):
            refused = await door.refusal("GetProbe", text, plain=True, address=f"{outer}:{port}")
            assert (refused.code.name, refused.reason) == ("PERMISSION_DENIED", "TOKEN_PLAINTEXT")
    finally:
        await server.stop(0)


async def test_a_revoked_token_is_refused_by_the_next_call_and_ends_its_streams(door: Door) -> None:
    token = door.token("admin")
    async with door.stub() as stub:
        metadata = ((METADATA_KEY, token.text),)
        stream = stub.WatchStatus(pb.WatchStatusRequest(), metadata=metadata, timeout=30)
        assert (await stream.read()).seq == 1
        probe = pb.GetProbeRequest(name="probes/x")
        await stub.GetProbe(probe, timeout=10, metadata=metadata)
        door.revoke(token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetProbe(probe, timeout=10, metadata=metadata)
        assert decode_error(caught.value).reason == "TOKEN_REVOKED"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while True:
                await stream.read()
        assert decode_error(ended.value).reason == "TOKEN_REVOKED"


async def test_a_damaged_register_lets_no_token_in_and_every_certificate(door: Door) -> None:
    token = door.token("admin")
    path = door.monitor.settings.home / REGISTER
    path.write_bytes(b"{}")
    refused = await door.refusal("GetProbe", token.text)
    assert (refused.code.name, refused.reason) == ("UNAVAILABLE", "TOKEN_UNVERIFIABLE")
    assert refused.retry_after_s
    assert (await door.call("GetProbe", identity="person/ada")).name == "person/approver/ada"
    door.write()
    await door.call("GetProbe", token.text)


async def test_no_log_and_no_audit_holds_a_token(door: Door, tmp_path: Path) -> None:
    sink = configure_logging("monitor", tmp_path, level="DEBUG")
    try:
        good, bad = door.token("viewer"), LocalToken.new(door.plane, new_id())
        await door.call("GetProbe", good.text)
        await door.refusal("AcknowledgeIncident", good.text)
        await door.refusal("GetProbe", bad.text)
        await door.refusal("GetProbe", bad.text[:-1])
    finally:
        sink.close()
    logged = "".join(path.read_text() for path in tmp_path.iterdir())
    assert f"tokens/{good.id}" in logged
    events = "".join(event.canonical for event in await door.db.read(Outbox("lab").events, 0, 10_000))
    for secret in (good.secret, bad.secret, bad.secret[:-1], good.digest):
        assert secret not in logged + events


async def test_a_token_of_another_plane_is_foreign_there(door: Door, tmp_path: Path) -> None:
    settings = PlaneSettings(home=tmp_path / "other")
    ensure_home(settings)
    assert plane_id(load_credential(settings, "service/lab").ca_pem) != door.plane
    services = [(pb_grpc.add_MonitorServiceServicer_to_server, who(), MONITOR)]
    async with serving("monitor", services, home=settings.home) as other:
        there = Door(other, door.db, door.refused)
        refused = await there.refusal("GetProbe", door.token("admin").text)
        assert refused.reason == "TOKEN_FOREIGN"
        # Nor is a register worth anything there that this plane signed.
        (settings.home / REGISTER).parent.mkdir(mode=0o700)
        (settings.home / REGISTER).write_bytes((door.monitor.settings.home / REGISTER).read_bytes())
        own = LocalToken.new(there.plane, new_id())
        assert (await there.refusal("GetProbe", own.text)).reason == "TOKEN_UNVERIFIABLE"

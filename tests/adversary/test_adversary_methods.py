"""All methods of all services, from their descriptors, against callers and grants that must not pass.

One running plane: five real processes with mutual TLS. Nothing here names a method: what is added to a
contract is attacked by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1 import tokens_service_pb2 as tokens_pb
from nightshift.skills.v1 import tokens_service_pb2_grpc as tokens_grpc
from nightshift.skills.v1.skills_service_pb2_grpc import SkillsServiceStub
from nightshift_kit.processes.table import SERVICES
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.identity import ROLES, Identity, allows, lacks_role_only
from nightshift_kit.rpc.policies import Kind, MethodRule, rules_of
from nightshift_kit.rpc.tls import Credential, create_credential, ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings
from nightshift_skills.catalogue import BUILT_IN
from tests.adversary.intruders import (
    Attack,
    Forger,
    attacks,
    odd_certificate,
    refusal,
    send,
    with_unknown_field,
)
from tests.support.plane import RealPlane, real_plane

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Service → what its main and its control server serve.
MAIN = {name: f"nightshift.{name}.v1.{name.capitalize()}Service" for name in (spec.name for spec in SERVICES)}
FURTHER = {"skills": ("nightshift.skills.v1.AutonomyService", "nightshift.skills.v1.TokensService")}
CONTROL = {
    "skills": ("nightshift.skills.v1.ControlService",),
    **dict.fromkeys(
        ("experience", "lab", "trainer"),
        ("nightshift.skills.v1.StopService", "nightshift.skills.v1.OutboxService"),
    ),
}
METHODS: dict[str, tuple[str, bool, MethodRule]] = {
    f"{service} {'control ' if control else ''}{rule.name.rpartition('/')[2]}": (service, control, rule)
    for service in MAIN
    for control, names in (
        (False, (MAIN[service], *FURTHER.get(service, ()))),
        (True, CONTROL.get(service, ())),
    )
    for name in names
    for rule in rules_of(name).values()
}
ACTING = {name: entry for name, entry in METHODS.items() if entry[2].kind is Kind.ACTING}
ATTACKS = dict(attacks())
IDENTITY_REFUSALS = {"CALLER_NOT_ALLOWED", "ROLE_INSUFFICIENT", "IDENTITY_INVALID", "IDENTITY_MISSING"}
CALLERS = (
    *ROLES,
    "platform/default",
    *(f"service/{name}" for name in MAIN),
)


class Besieged:
    """The plane, and channels to it under every identity."""

    def __init__(self, plane: RealPlane) -> None:
        self.plane = plane
        self.settings = plane.plane.settings
        self.fence = 0
        self._channels: dict[tuple[str, bool, bytes], grpc.aio.Channel] = {}
        self._tokens: dict[str, str] = {}
        self._odd: dict[tuple[str, ...], Credential] = {}
        for role in ROLES:
            create_credential(self.settings, "person", role, role)

    def credential(self, identity: str) -> Credential:
        return load_credential(self.settings, f"person/{identity}" if identity in ROLES else identity)

    def channel(self, service: str, who: str | Credential, *, control: bool = False) -> grpc.aio.Channel:
        credential = self.credential(who) if isinstance(who, str) else who
        key = (service, control, credential.certificate_pem)
        if key not in self._channels:
            settings = self.settings
            port = settings.control_port(service) if control else settings.port(service)
            self._channels[key] = channel_to(f"127.0.0.1:{port}", service, credential)
        return self._channels[key]

    def odd(self, uris: list[str]) -> Credential:
        """A certificate of the plane's CA with these URIs; the same one for each method."""
        if tuple(uris) not in self._odd:
            self._odd[tuple(uris)] = odd_certificate(self.plane.home, uris)
        return self._odd[tuple(uris)]

    def forger(self, rule: MethodRule) -> Forger:
        return Forger(self.settings, rule, self.credential("service/skills").thumbprint, self.fence)

    async def token(self, role: str) -> str:
        """A local token, issued by the plane; each role's once."""
        if role not in self._tokens:
            request = tokens_pb.CreateTokenRequest(
                person=role, role=tokens_pb.PersonRole.Value(f"PERSON_ROLE_{role.upper()}")
            )
            request.ttl.FromSeconds(3600)
            stub: Any = tokens_grpc.TokensServiceStub(self.channel("skills", "admin"))
            self._tokens[role] = (await stub.CreateToken(request, timeout=10)).secret
        return self._tokens[role]

    def token_channel(self, service: str) -> grpc.aio.Channel:
        """A channel of somebody without a certificate."""
        key = (service, False, b"")
        if key not in self._channels:
            own = self.credential(f"service/{service}")
            self._channels[key] = grpc.aio.secure_channel(
                f"127.0.0.1:{self.settings.token_port(service)}",
                grpc.ssl_channel_credentials(own.ca_pem),
                options=[("grpc.ssl_target_name_override", f"{service}.nightshift.local")],
            )
        return self._channels[key]

    async def effects(self) -> dict[str, int]:
        """Events in each acting service's outbox but those of refused tokens: whatever acts adds one."""
        found = {}
        for service in ("experience", "lab", "trainer"):
            stub: Any = control_grpc.OutboxServiceStub(self.channel(service, "service/skills", control=True))
            request = control_pb.ListOutboxEventsRequest(page_size=1000)
            answer = await stub.ListOutboxEvents(request, timeout=5)
            assert answer.last_seq < 1000
            found[service] = len([e for e in answer.outbox_events if e.kind != "token.refused"])
        return found

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def besieged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Besieged]:
    # Without its platform the plane does nothing by itself, so that whatever happens was an attack's doing.
    async with real_plane(tmp_path_factory.mktemp("besieged"), platform_app=False) as plane:
        made = Besieged(plane)
        skills: Any = SkillsServiceStub(made.channel("skills", "admin"))
        made.fence = (await skills.GetSchedule(skills_pb.GetScheduleRequest(), timeout=10)).fence
        before = await made.effects()
        yield made
        assert await made.effects() == before, "an attack had an effect"
        await made.close()


async def test_the_table_is_whole() -> None:
    """Every method of every contract of ours is in the table, with a policy that names what it must."""
    assert len(METHODS) > 70
    assert {entry[0] for entry in ACTING.values()} == {"experience", "lab", "skills", "trainer"}
    skills = {skill.name: skill for skill in BUILT_IN}
    for _, _, rule in METHODS.values():
        if rule.kind is Kind.ACTING:
            assert rule.tier is not None
            for name in rule.skills:
                # A skill reaches a method by its declaration and by the method's; neither alone is enough.
                assert rule.path in skills[name].methods, (name, rule.path)
                assert skills[name].tier >= rule.tier
            assert rule.single_use == (rule.tier.name != "AUTO")
        elif rule.kind is not Kind.READ:
            assert rule.callers
            assert "any" not in rule.callers
    reached = {method for skill in BUILT_IN for method in skill.methods}
    acting = {rule.path for _, _, rule in ACTING.values()}
    assert acting <= reached


@pytest.mark.parametrize("name", METHODS)
async def test_unknown_callers(besieged: Besieged, name: str) -> None:
    service, control, rule = METHODS[name]
    for uris in (
        [],
        ["spiffe://nightshift.local/service/skills", "spiffe://nightshift.local/person/admin/x"],
        ["spiffe://elsewhere.local/service/skills"],
        ["spiffe://nightshift.local/person/root/x"],
        ["spiffe://nightshift.local/service/skills/x"],
        ["spiffe://nightshift.local/service/"],
        ["https://nightshift.local/service/skills"],
    ):
        channel = besieged.channel(service, besieged.odd(uris), control=control)
        error = await refusal(send(channel, rule))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_INVALID"), error


@pytest.mark.parametrize("service", MAIN)
async def test_strangers_do_not_get_through_the_handshake(
    besieged: Besieged, service: str, tmp_path: Any
) -> None:
    stranger = PlaneSettings(home=tmp_path / "stranger")
    ensure_home(stranger)
    theirs = load_credential(stranger, "service/skills")
    mixed = Credential(
        theirs.identity, theirs.certificate_pem, theirs.key_pem, besieged.credential("viewer").ca_pem
    )
    rule = next(iter(rules_of(MAIN[service]).values()))
    for control in (False, True):
        error = await refusal(send(besieged.channel(service, mixed, control=control), rule))
        assert error.code is grpc.StatusCode.UNAVAILABLE
        port = besieged.settings.control_port(service) if control else besieged.settings.port(service)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain:
            assert (await refusal(send(plain, rule))).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", METHODS)
async def test_callers(besieged: Besieged, name: str) -> None:
    service, control, rule = METHODS[name]
    for identity in CALLERS:
        credential = besieged.credential(identity)
        channel = besieged.channel(service, identity, control=control)
        if not allows(rule.callers, credential.identity):
            error = await refusal(send(channel, rule))
            role_only = lacks_role_only(rule.callers, credential.identity)
            reason = "ROLE_INSUFFICIENT" if role_only else "CALLER_NOT_ALLOWED"
            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, reason), identity
            # Identity comes before everything: garbage and too deep nesting are not even looked at.
            for data in (b"\xff\xff\xff", b"\x0a" * 400):
                assert (await refusal(send(channel, rule, data))).reason == reason
        elif rule.kind is Kind.READ and not rule.server_streaming:
            assert (await refusal(send(channel, rule))).reason not in IDENTITY_REFUSALS, identity


@pytest.mark.parametrize("name", [name for name, (_, control, _) in METHODS.items() if not control])
async def test_tokens(besieged: Besieged, name: str) -> None:
    """A token opens what a certificate of its role opens, never what a service's does, and no effect."""
    service, _, rule = METHODS[name]
    channel = besieged.token_channel(service)
    assert (await refusal(send(channel, rule))).reason == "IDENTITY_MISSING"
    for role in ROLES:
        secret = await besieged.token(role)
        shown = (("nightshift-token", secret),)
        person = Identity("person", role, role)
        cut = await refusal(send(channel, rule, metadata=(("nightshift-token", secret[:-1]),)))
        assert (cut.code, cut.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        if not allows(rule.callers, person):
            reason = "ROLE_INSUFFICIENT" if lacks_role_only(rule.callers, person) else "CALLER_NOT_ALLOWED"
            for data in (b"", b"\xff\xff\xff"):
                assert (await refusal(send(channel, rule, data, metadata=shown))).reason == reason
        elif rule.kind is Kind.ACTING:
            assert (await refusal(send(channel, rule, metadata=shown))).reason == "GRANT_MISSING"
            # A grant is bound to the certificate of skills; a token brings none.
            stolen = ("nightshift-grant", besieged.forger(rule).fitting(rule.request_class()))
            assert (await refusal(send(channel, rule, metadata=(*shown, stolen)))).reason == "GRANT_SUBJECT"
        elif rule.kind is Kind.READ and not rule.server_streaming:
            assert (await refusal(send(channel, rule, metadata=shown))).reason not in IDENTITY_REFUSALS
        # Beside the certificate of a service a token is worth nothing, and neither is the certificate.
        mixed = besieged.channel(service, "service/skills")
        assert (await refusal(send(mixed, rule, metadata=shown))).reason == "TOKEN_SUBJECT"


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
async def test_grants(besieged: Besieged, name: str, attack: Attack) -> None:
    service, _, rule = ACTING[name]
    assert rule.tier is not None
    if attack.bound_only and rule.tier.name == "AUTO":
        return
    if attack.lower is not None and rule.tier <= attack.lower:
        return
    request = rule.request_class()
    token = attack.token(besieged.forger(rule), request)
    metadata = () if token is None else (("nightshift-grant", token),)
    channel = besieged.channel(service, attack.identity)
    error = await refusal(send(channel, rule, metadata=metadata, timeout=attack.timeout_s))
    assert error.reason == attack.reason, error
    # A refusal tells nothing of the key, the token or what was expected instead.
    assert token is None or len(token) < 20 or token not in error.message


@pytest.mark.parametrize("name", ACTING)
async def test_a_skills_grant_is_no_use_for_another_skills_method(besieged: Besieged, name: str) -> None:
    service, _, rule = ACTING[name]
    forger, request = besieged.forger(rule), rule.request_class()
    channel = besieged.channel(service, "service/skills")
    for skill in BUILT_IN:
        if skill.name not in rule.skills:
            token = forger.fitting(request, skill=skill.name)
            error = await refusal(send(channel, rule, metadata=(("nightshift-grant", token),)))
            assert error.reason == "GRANT_SUBJECT", skill.name


@pytest.mark.parametrize("name", ACTING)
async def test_what_the_digest_cannot_see_does_not_act(besieged: Besieged, name: str) -> None:
    service, _, rule = ACTING[name]
    request = rule.request_class()
    channel = besieged.channel(service, "service/skills")
    metadata = (("nightshift-grant", besieged.forger(rule).fitting(request)),)
    error = await refusal(send(channel, rule, with_unknown_field(request), metadata=metadata))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    if not request.DESCRIPTOR.fields:
        # Nothing can be missing in it: with the right grant it would act.
        return
    # And the right grant with right bytes is stopped by what the request lacks, not by the guard: the attacks
    # above fail for their own reasons alone.
    error = await refusal(send(channel, rule, metadata=metadata))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT, error
    assert not error.reason.startswith("GRANT_")


@pytest.mark.parametrize("name", ACTING)
async def test_two_grants_at_once_are_none(besieged: Besieged, name: str) -> None:
    """Metadata may repeat a key; whichever of the two a server takes, both have to fit."""
    service, _, rule = ACTING[name]
    request, forger = rule.request_class(), besieged.forger(rule)
    channel = besieged.channel(service, "service/skills")
    for pair in ((forger.other_key(request), forger.fitting(request, audience="monitor")),):
        for tokens in (pair, pair[::-1]):
            metadata = tuple(("nightshift-grant", token) for token in tokens)
            error = await refusal(send(channel, rule, metadata=metadata))
            assert error.reason in {"GRANT_INVALID", "GRANT_SCOPE"}

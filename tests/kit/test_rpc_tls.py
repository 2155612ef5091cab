"""The home: CA, keys, credentials; made once, by however many processes; what does not fit is refused."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit.clock import SystemClock
from nightshift_kit.rpc import tls
from nightshift_kit.rpc.channels import channel_to, credential_for
from nightshift_kit.rpc.identity import (
    ROLES,
    Identity,
    SpiffeInvalid,
    allows,
    format_spiffe,
    identity_of_peer,
    is_pattern,
    parse_spiffe,
)
from nightshift_kit.rpc.server import BindRefused, ServerBuilder
from nightshift_kit.settings import PlaneSettings

PERSON = f"person/{os.getuid()}"


def settings_of(tmp_path: Path) -> PlaneSettings:
    return PlaneSettings(home=tmp_path / "home")


def contents(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def test_the_first_start_makes_everything_and_the_second_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    before = contents(settings.home)
    for path in settings.home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    tls.ensure_home(settings)
    assert contents(settings.home) == before
    assert tls.load_credential(settings, PERSON).identity.spiffe == (
        f"spiffe://nightshift.local/person/admin/{os.getuid()}"
    )
    assert tls.load_credential(settings, "platform/default").identity.kind == "platform"
    for service in tls.SERVICES:
        pem = tls.load_credential(settings, f"service/{service}").certificate_pem
        leaf = x509.load_pem_x509_certificate(pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{service}.nightshift.local", "localhost"]
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            f"spiffe://nightshift.local/service/{service}"
        ]
        assert leaf.not_valid_after_utc - dt.datetime.now(dt.UTC) < dt.timedelta(days=31)
        assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    signature = tls.load_private_key(settings, "grant").sign(b"words")
    tls.load_public_key(settings, "grant").verify(signature, b"words")


def test_many_processes_at_once_make_one_home(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    program = (
        "import sys; from pathlib import Path; from nightshift_kit.rpc.tls import *;"
        "from nightshift_kit.settings import PlaneSettings; s = PlaneSettings(home=Path(sys.argv[1]));"
        "ensure_home(s); print(*(load_credential(s, 'service/' + one).thumbprint for one in SERVICES))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(settings.home)], stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    outputs = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 6
    assert len(outputs) == 1


def test_old_and_foreign_leaves_are_renewed_and_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tls, "_LEAF_LIFETIME", dt.timedelta(days=3))
        tls.ensure_home(settings)
        tls.create_credential(settings, "person", "ada", "approver")
    tls.create_credential(settings, "person", "new", "viewer")
    before = {
        name: tls.load_credential(settings, name) for name in ("service/lab", "person/ada", "person/new")
    }
    tls.ensure_home(settings)
    after = {name: tls.load_credential(settings, name) for name in before}
    assert after["service/lab"].thumbprint != before["service/lab"].thumbprint
    assert after["person/ada"].identity.role == "approver"
    assert after["person/ada"].thumbprint != before["person/ada"].thumbprint
    assert after["person/new"].thumbprint == before["person/new"].thumbprint
    # Another CA: nothing that the old one signed is of use.
    for name in ("ca.pem", "ca.key"):
        (settings.home / "ca" / name).unlink()
    tls.ensure_home(settings)
    assert tls.load_credential(settings, "person/new").thumbprint != after["person/new"].thumbprint


@pytest.mark.parametrize(
    ("kind", "name", "role"),
    [
        ("service", "lab", ""),
        ("person", "ada", "owner"),
        ("person", "../../ca/ca", "viewer"),
        ("platform", "a/b", ""),
        ("platform", "", ""),
        ("platform", "x" * 65, ""),
        ("person", "näme", "viewer"),
    ],
)
def test_credentials_of_other_kinds_and_names_are_not_made(
    kind: str, name: str, role: str, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    before = contents(settings.home)
    with pytest.raises(SpiffeInvalid):
        tls.create_credential(settings, kind, name, role)
    assert contents(settings.home) == before


def test_a_credential_in_another_place_than_its_own_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    folder = settings.home / "credentials"
    for suffix in (".pem", ".key"):
        (folder / f"service/skills{suffix}").write_bytes((folder / f"platform/default{suffix}").read_bytes())
    with pytest.raises(SpiffeInvalid, match="platform/default"):
        tls.load_credential(settings, "service/skills")


async def test_strangers_do_not_get_through_the_handshake(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    stranger = PlaneSettings(home=tmp_path / "stranger")
    tls.ensure_home(stranger)
    server = ServerBuilder("monitor", settings, clock=SystemClock()).build()
    address = f"127.0.0.1:{await server.start()}"
    request = health_pb2.HealthCheckRequest()
    ours = credential_for(settings, PERSON)
    theirs = tls.load_credential(stranger, PERSON)
    mixed = tls.Credential(theirs.identity, theirs.certificate_pem, theirs.key_pem, ours.ca_pem)
    try:
        async with channel_to(address, "monitor", ours) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        # They do not trust us; we do not trust them; and a server is not another than it says.
        for credential, target in ((theirs, "monitor"), (mixed, "monitor"), (ours, "lab")):
            async with channel_to(address, target, credential) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    finally:
        await server.stop(0)


def test_other_addresses_need_an_explicit_certificate(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    for host in ("0.0.0.0", "::", "192.0.2.1", "workshop.example"):
        with pytest.raises(BindRefused):
            ServerBuilder("lab", settings, clock=SystemClock(), host=host)
    with pytest.raises(BindRefused):
        ServerBuilder("lab", settings, clock=SystemClock(), plaintext_port=0)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(st.sampled_from(["service", "platform", "person"]), NAMES, st.sampled_from(ROLES))
def test_spiffe_ids_come_back(kind: str, name: str, role: str) -> None:
    role = role if kind == "person" else ""
    identity = parse_spiffe(format_spiffe(kind, name, role))
    assert (identity.kind, identity.name, identity.role) == (kind, name, role)
    assert parse_spiffe(identity.spiffe) == identity


@given(st.text())
def test_nothing_else_is_a_spiffe_id(text: str) -> None:
    for candidate in (text, f"spiffe://nightshift.local/{text}"):
        try:
            identity = parse_spiffe(candidate)
        except SpiffeInvalid:
            continue
        assert identity.spiffe == candidate


@pytest.mark.parametrize(
    ("callers", "identity", "allowed"),
    [
        ([], Identity("platform", "default"), True),
        (["any"], Identity("person", "a", "viewer"), True),
        (["platform"], Identity("platform", "default"), True),
        (["platform"], Identity("service", "skills"), False),
        (["service"], Identity("service", "lab"), True),
        (["service:skills"], Identity("service", "skills"), True),
        (["service:skills"], Identity("service", "lab"), False),
        (["service:skills"], Identity("person", "skills", "admin"), False),
        (["person:viewer"], Identity("person", "a", "viewer"), True),
        (["person:viewer"], Identity("person", "a", "admin"), True),
        (["person:approver"], Identity("person", "a", "viewer"), False),
        (["person:admin"], Identity("person", "a", "approver"), False),
        (["person:admin", "service:skills"], Identity("service", "skills"), True),
    ],
)
def test_who_may_call(callers: list[str], identity: Identity, allowed: bool) -> None:
    assert all(map(is_pattern, callers))
    assert allows(callers, identity) is allowed


def test_a_connection_does_not_outlive_its_certificate(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    tls.ensure_home(settings)
    credential = tls.load_credential(settings, PERSON)
    peer = {"x509_pem_cert": [credential.certificate_pem]}
    almost = credential.not_after - dt.timedelta(seconds=1)
    found = identity_of_peer(peer, insecure_allowed=False, now=almost)
    assert found == credential.identity
    with pytest.raises(SpiffeInvalid, match="run out"):
        identity_of_peer(peer, insecure_allowed=True, now=credential.not_after)


def test_no_certificate_is_nobody_unless_insecure() -> None:
    assert identity_of_peer({}, insecure_allowed=False) is None
    insecure = identity_of_peer({}, insecure_allowed=True)
    assert insecure is not None
    assert insecure.actor == "person/viewer/insecure-loopback"

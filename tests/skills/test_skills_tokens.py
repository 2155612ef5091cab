"""Local tokens issued, used, taken back: the real service among stand-ins, over its token port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import sqlalchemy as sa

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift.skills.v1 import skills_service_pb2_grpc as skills_grpc
from nightshift.skills.v1 import tokens_service_pb2 as tokens_pb
from nightshift.skills.v1 import tokens_service_pb2_grpc as tokens_grpc
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.storage import Database
from nightshift_kit.tokens import METADATA_KEY, LocalToken, RegisterWriter
from nightshift_kit.tokens.register import REGISTER
from nightshift_skills.store import tables
from tests.skills.skills_support import Plane, eventually, plane_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROLES = {
    "viewer": tokens_pb.PERSON_ROLE_VIEWER,
    "approver": tokens_pb.PERSON_ROLE_APPROVER,
    "admin": tokens_pb.PERSON_ROLE_ADMIN,
}
TOKENS, SKILLS = tokens_grpc.TokensServiceStub, skills_grpc.SkillsServiceStub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    async with plane_in(tmp_path_factory.mktemp("tokens") / "home", two_person=True) as made:
        yield made


def asking(person: str = "ada", role: str = "approver", seconds: int = 3600, **fields: Any) -> Any:
    request = tokens_pb.CreateTokenRequest(
        person=person, role=ROLES.get(role, tokens_pb.PERSON_ROLE_UNSPECIFIED), **fields
    )
    request.ttl.FromSeconds(seconds)
    return request


async def issue(plane: Plane, person: str = "ada", role: str = "approver", by: str = "admin") -> Any:
    return await TOKENS(plane.channel(by)).CreateToken(asking(person, role), timeout=10)


@asynccontextmanager
async def holding(plane: Plane, secret: str, stub: Any = SKILLS) -> AsyncIterator[Any]:
    """A stub of somebody without a certificate, who shows a token with each call."""
    authority = (plane.home / "ca" / "ca.pem").read_bytes()

    class Show(grpc.AuthMetadataPlugin):
        def __call__(self, _context: Any, callback: Any) -> None:
            callback(((METADATA_KEY, secret),), None)

    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{plane.plane_settings.token_port('skills')}",
        grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(authority), grpc.metadata_call_credentials(Show())
        ),
        options=[("grpc.ssl_target_name_override", "skills.nightshift.local")],
    )
    async with channel:
        yield stub(channel)


async def refusal(call: Any) -> RichError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode_error(caught.value)


async def events(plane: Plane, prefix: str = "token.") -> list[Any]:
    request = pb.ListAuditEventsRequest(kind_prefix=prefix, page_size=1000)
    return list((await plane.call("ListAuditEvents", request)).audit_events)


async def audited(plane: Plane, kind: str, subject: str, **payload: Any) -> Any:
    """The sealed event; it comes with the sealer's next round."""

    def wanted(found: list[Any]) -> bool:
        return any(fits(event) for event in found)

    def fits(event: Any) -> bool:
        told = dict(event.payload)
        return (event.kind, event.subject) == (kind, subject) and payload.items() <= told.items()

    return next(event for event in await eventually(lambda: events(plane), wanted) if fits(event))


async def test_a_token_is_issued_used_and_taken_back(plane: Plane) -> None:
    made = await issue(plane, role="approver")
    assert LocalToken.parse(made.secret).id == made.token.name.removeprefix("tokens/")
    assert (made.token.person, made.token.role) == ("ada", tokens_pb.PERSON_ROLE_APPROVER)
    assert made.token.state == tokens_pb.LOCAL_TOKEN_STATE_ACTIVE
    issued = await audited(plane, "token.issued", made.token.name, person="ada", role="approver")
    assert issued.actor == "spiffe://nightshift.local/person/admin/admin"
    async with holding(plane, made.secret) as ada:
        run = await ada.RunSkill(pb.RunSkillRequest(name="skills/health_check"), timeout=10)
        assert run.initiator == "spiffe://nightshift.local/person/approver/ada"
        low = await refusal(ada.ReleaseLock(pb.ReleaseLockRequest(), timeout=10))
        assert (low.code.name, low.reason) == ("PERMISSION_DENIED", "ROLE_INSUFFICIENT")
        # What a handler itself refuses for the role is a refused use, too.
        resume = pb.UpdateScheduleRequest(skill="skills/propose_config", paused=False)
        assert (await refusal(ada.UpdateSchedule(resume, timeout=10))).reason == "ROLE_INSUFFICIENT"
        await audited(plane, "token.refused", made.token.name, reason="ROLE_INSUFFICIENT")
        revoke = tokens_pb.RevokeTokenRequest(name=made.token.name)
        gone = await TOKENS(plane.channel("admin")).RevokeToken(revoke, timeout=10)
        assert gone.state == tokens_pb.LOCAL_TOKEN_STATE_REVOKED
        after = await refusal(ada.RunSkill(pb.RunSkillRequest(name="skills/health_check"), timeout=10))
        assert (after.code.name, after.reason) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
        # Again, and once more: it stays as it was.
        assert await TOKENS(plane.channel("admin")).RevokeToken(revoke, timeout=10) == gone
    await audited(plane, "token.revoked", made.token.name, person="ada")
    refused = await audited(plane, "token.refused", made.token.name, reason="TOKEN_REVOKED")
    assert refused.actor == "person/ada"
    assert [e.kind for e in await events(plane, "token.revoked")] == ["token.revoked"]


async def test_the_secret_is_kept_nowhere(plane: Plane) -> None:
    made = await TOKENS(plane.channel("admin")).CreateToken(
        asking("eve", display_name="the workshop's laptop"), timeout=10
    )
    secret = LocalToken.parse(made.secret).secret
    await audited(plane, "token.issued", made.token.name)
    for path in plane.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content, path
            assert b"workshop's laptop" not in content or path.parent.name == "skills", path
    register = (plane.home / REGISTER).read_text()
    assert LocalToken.parse(made.secret).digest in register


async def test_only_an_admin_with_a_certificate_issues_and_others_see_their_own(plane: Plane) -> None:
    for by in ("viewer", "approver"):
        refused = await refusal(TOKENS(plane.channel(by)).CreateToken(asking(), timeout=10))
        assert refused.reason == "ROLE_INSUFFICIENT"
    root = await issue(plane, "rosa", "admin")
    own = await issue(plane, "carl", "viewer")
    async with holding(plane, root.secret, TOKENS) as rosa:
        begets = await refusal(rosa.CreateToken(asking("rosa", "viewer"), timeout=10))
        assert (begets.code.name, begets.reason) == ("PERMISSION_DENIED", "CERTIFICATE_REQUIRED")
        names = {token.name for token in (await rosa.ListTokens(tokens_pb.ListTokensRequest())).tokens}
        assert {root.token.name, own.token.name} <= names
    async with holding(plane, own.secret, TOKENS) as carl:
        seen = await carl.ListTokens(tokens_pb.ListTokensRequest())
        assert [token.name for token in seen.tokens] == [own.token.name]
        for ask in (
            carl.GetToken(tokens_pb.GetTokenRequest(name=root.token.name)),
            carl.RevokeToken(tokens_pb.RevokeTokenRequest(name=root.token.name)),
            carl.RevokeToken(tokens_pb.RevokeTokenRequest(name="tokens/none")),
        ):
            assert (await refusal(ask)).reason == "LOCAL_TOKEN_UNKNOWN"
        # Somebody leaves: their own token they may take back themselves.
        gone = await carl.RevokeToken(tokens_pb.RevokeTokenRequest(name=own.token.name))
        assert gone.revoker == "spiffe://nightshift.local/person/viewer/carl"
        assert (await refusal(carl.ListTokens(tokens_pb.ListTokensRequest()))).reason == "TOKEN_REVOKED"
    active = await TOKENS(plane.channel("admin")).ListTokens(tokens_pb.ListTokensRequest(active_only=True))
    assert own.token.name not in {token.name for token in active.tokens}
    assert {token.state for token in active.tokens} == {tokens_pb.LOCAL_TOKEN_STATE_ACTIVE}


async def test_pages_of_tokens(plane: Plane) -> None:
    for _ in range(3):
        await issue(plane, "paul", "viewer")
    stub, names, token = TOKENS(plane.channel("admin")), [], ""
    while True:
        page = await stub.ListTokens(tokens_pb.ListTokensRequest(page_size=2, page_token=token))
        names += [one.name for one in page.tokens]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(set(names), reverse=True)
    assert len(names) >= 3


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asking(""), "person"),
        (asking("../ca"), "person"),
        (asking("a/b"), "person"),
        (asking("x" * 65), "person"),
        (asking("ada\n"), "person"),
        (asking("näme"), "person"),
        (asking(role=""), "role"),
        (asking(seconds=0), "ttl"),
        (asking(seconds=-5), "ttl"),
        (asking(seconds=59), "ttl"),
        (asking(seconds=90 * 86_400 + 1), "ttl"),
        (asking(seconds=315_576_000_001), "ttl"),
        (asking(display_name="x" * 65), "display_name"),
        (asking(display_name="a\x1b[31m"), "display_name"),
    ],
)
async def test_bad_wishes_name_their_field(request_: Any, field: str, plane: Plane) -> None:
    refused = await refusal(TOKENS(plane.channel("admin")).CreateToken(request_, timeout=10))
    assert refused.code.name == "INVALID_ARGUMENT"
    assert [violation.field for violation in refused.violations] == [field]


async def proposed(plane: Plane, stub: Any) -> types.Approval:
    run = await stub.RunSkill(pb.RunSkillRequest(name="skills/propose_config"), timeout=10)
    return await plane.approval_of(run)


def decision(approval: types.Approval) -> pb.DecideApprovalRequest:
    return pb.DecideApprovalRequest(
        name=approval.name,
        decision=pb.DECISION_APPROVE,
        plan_digest=approval.plan.digest,
        nonce=approval.nonce,
    )


async def test_two_credentials_of_one_person_are_one_person(plane: Plane) -> None:
    # The certificate "admin" issues all tokens but bert's, which another admin issues.
    same = await issue(plane, "admin", "approver")
    cased = await issue(plane, "Admin", "approver")
    vouched = await issue(plane, "ben", "approver")
    second = await issue(plane, "bea", "admin")
    independent = await issue(plane, "bert", "approver", by="admin2")
    proposal = await proposed(plane, plane.stub("admin"))
    for made in (same, cased, vouched, second):
        async with holding(plane, made.secret) as person:
            refused = await refusal(person.DecideApproval(decision(proposal), timeout=10))
            assert (refused.code.name, refused.reason) == ("PERMISSION_DENIED", "SELF_APPROVAL")
            confirm = pb.RunSkillRequest(name="skills/propose_config", plan_digest=proposal.plan.digest)
            assert (await refusal(person.RunSkill(confirm, timeout=10))).reason == "SELF_APPROVAL"
    async with holding(plane, independent.secret) as bert:
        approved = await bert.DecideApproval(decision(proposal), timeout=10)
        assert approved.decider == "spiffe://nightshift.local/person/approver/bert"


async def test_nor_may_who_issued_a_token_approve_what_came_with_it(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home", two_person=True) as plane:
        ben, bea = await issue(plane, "ben"), await issue(plane, "bea")
        async with holding(plane, ben.secret) as stub:
            proposal = await proposed(plane, stub)
        # Over a restart, too: who vouched is kept with the question.
        await plane.stop()
        await plane.start()
        refused = await refusal(plane.stub("admin").DecideApproval(decision(proposal), timeout=10))
        assert refused.reason == "SELF_APPROVAL"
        async with holding(plane, bea.secret) as stub:
            assert (
                await refusal(stub.DecideApproval(decision(proposal), timeout=10))
            ).reason == "SELF_APPROVAL"
        approved = await plane.stub("approver2").DecideApproval(decision(proposal), timeout=10)
        assert approved.state == types.APPROVAL_STATE_APPROVED


async def test_what_is_revoked_while_the_register_cannot_be_written_is_said_and_caught_up_with(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await issue(plane, "olga", "viewer")
    write = RegisterWriter.write

    def full(self: RegisterWriter, entries: Any, generation: int) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RegisterWriter, "write", full)
    revoke = tokens_pb.RevokeTokenRequest(name=made.token.name)
    refused = await refusal(TOKENS(plane.channel("admin")).RevokeToken(revoke, timeout=10))
    assert (refused.code.name, refused.reason) == ("UNAVAILABLE", "TOKENS_NOT_PUBLISHED")
    lost = await refusal(TOKENS(plane.channel("admin")).CreateToken(asking("olga"), timeout=10))
    assert lost.reason == "TOKENS_NOT_PUBLISHED"
    async with holding(plane, made.secret) as olga:
        await olga.GetLock(pb.GetLockRequest(), timeout=10)
        monkeypatch.setattr(RegisterWriter, "write", write)

        async def ask() -> str:
            try:
                await olga.GetLock(pb.GetLockRequest(), timeout=10)
            except grpc.aio.AioRpcError as error:
                return decode_error(error).reason
            return ""

        assert await eventually(ask, bool) == "TOKEN_REVOKED"
    assert (await TOKENS(plane.channel("admin")).RevokeToken(revoke, timeout=10)).revoker


@pytest.mark.parametrize("damaged", [True, False])
async def test_a_restart_writes_the_register_as_the_database_is(damaged: bool, tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home") as plane:
        kept, gone = await issue(plane, "ada"), await issue(plane, "bob")
        await TOKENS(plane.channel("admin")).RevokeToken(tokens_pb.RevokeTokenRequest(name=gone.token.name))
        await plane.stop()
        before = json.loads((plane.home / REGISTER).read_bytes())["register"]["generation"]
        if damaged:
            (plane.home / REGISTER).write_bytes(b"half a regi")
        else:
            # A store that was put back from an older copy: the register goes on above what stands there.
            url = f"sqlite:///{plane.home}/skills/skills.db"
            with Database(url, migrations="nightshift_skills", name="older") as db:
                db.write_sync(
                    lambda c: c.execute(
                        sa.update(tables.feeds).where(tables.feeds.c.name == "tokens").values(seq=1)
                    )
                )
        await plane.start()
        assert json.loads((plane.home / REGISTER).read_bytes())["register"]["generation"] > before
        async with holding(plane, kept.secret) as ada:
            await ada.GetLock(pb.GetLockRequest(), timeout=10)
        async with holding(plane, gone.secret) as bob:
            assert (await refusal(bob.GetLock(pb.GetLockRequest(), timeout=10))).reason == "TOKEN_REVOKED"
        forged = LocalToken(LocalToken.parse(kept.secret).plane, new_id(), "0" * 64)
        async with holding(plane, forged.text) as nobody:
            assert (await refusal(nobody.GetLock(pb.GetLockRequest(), timeout=10))).reason == "TOKEN_UNKNOWN"
        await audited(plane, "token.refused", "tokens/-", reason="TOKEN_UNKNOWN")
        report = await plane.call("VerifyAudit", pb.VerifyAuditRequest())
        assert report.valid


async def test_a_register_that_another_one_wrote_is_put_right(plane: Plane) -> None:
    """As a leader does that was stopped before it wrote the file, and goes on after it was replaced."""
    path = plane.home / REGISTER
    older = path.read_bytes()
    issued = await issue(plane)
    newer = path.read_bytes()
    assert newer != older
    late = path.with_name("late")
    late.write_bytes(older)
    late.replace(path)

    async def present() -> bytes:
        return path.read_bytes()

    await eventually(present, lambda content: content != older)
    async with holding(plane, issued.secret) as stub:
        assert (await stub.GetLock(pb.GetLockRequest(), timeout=10)).engaged is False

"""Every reason for refusing a grant, and single use, against a real acting server with a real database."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import experience_service_pb2_grpc as experience_grpc
from nightshift.lab.v1 import lab_service_pb2 as lab_pb
from nightshift.lab.v1 import lab_service_pb2_grpc as lab_grpc
from nightshift.lab.v1 import resources_pb2 as lab_resources
from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.grants import FenceGate, Tier
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import RichError, decode_error, grant_metadata
from nightshift_kit.rpc.context import current_call
from nightshift_kit.rpc.tls import load_private_key
from nightshift_kit.storage import Database
from tests.support.servers import Serving, serving

LAB = "nightshift.lab.v1.LabService"
PROMOTE = f"{LAB}/PromoteProposal"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

REQUEST = lab_pb.PromoteProposalRequest(name="proposals/a", etag="1")


class Lab(lab_grpc.LabServiceServicer):
    """Promotes into an audit event: the smallest effect that there is."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._outbox = Outbox("lab")
        self.promoted = 0
        self.hold: asyncio.Event | None = None

    async def PromoteProposal(self, request: Any, context: Any) -> lab_resources.Promotion:
        effect = current_call().effect()
        if self.hold is not None:
            await self.hold.wait()

        def transaction(connection: sa.Connection) -> bytes:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            answer = lab_resources.Promotion(name=f"promotions/{new_id()}").SerializeToString()
            self._outbox.append(
                connection, kind="config.promoted", actor=effect.actor, subject=request.name, payload={}
            )
            effect.finish(connection, answer)
            self.promoted += 1
            return answer

        return lab_resources.Promotion.FromString(await self._db.write(transaction))

    async def RejectProposal(self, request: Any, context: Any) -> lab_resources.Proposal:
        raise AssertionError("not reached")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/lab.db", migrations="tests.kit.sample_store", name="lab") as made:
        made.migrate()
        yield made


@contextlib.asynccontextmanager
async def lab(home: Path, db: Database, **options: Any) -> AsyncIterator[tuple[Serving, Lab]]:
    servicer = Lab(db)  # type: ignore[abstract]
    services = [(lab_grpc.add_LabServiceServicer_to_server, servicer, LAB)]
    async with serving("lab", services, home=home, db=db, **options) as running:
        yield running, servicer


async def promote(
    running: Serving,
    token: str | None,
    request: Any = REQUEST,
    *,
    identity: str = "service/skills",
    timeout_s: float | None = 5,
) -> Any:
    stub = running.stub(lab_grpc.LabServiceStub, identity)
    metadata = grant_metadata(token) if token is not None else ()
    return await stub.PromoteProposal(request, timeout=timeout_s, metadata=metadata)


async def refusal(awaitable: Any) -> RichError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return decode_error(caught.value)


def fitting(running: Serving, **claims: Any) -> str:
    chosen: dict[str, Any] = {"skill": "promote_config", "tier": Tier.MANUAL} | claims
    return running.mint(PROMOTE, REQUEST, **chosen)


def forged(running: Serving, change: Callable[[dict[str, Any]], None], *, typ: str = "grant+jwt") -> str:
    """A token signed with the true key, but with other claims than the minter would give."""
    claims = jwt.decode(fitting(running), options={"verify_signature": False})
    change(claims)
    return jwt.encode(claims, load_private_key(running.settings, "grant"), "EdDSA", headers={"typ": typ})


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda claims: claims.pop(key)


def having(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda claims: claims.update(changes)


def other_key(running: Serving) -> str:
    claims = jwt.decode(fitting(running), options={"verify_signature": False})
    return jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers={"typ": "grant+jwt"})


def symmetric(running: Serving) -> str:
    """The old confusion: the public key's bytes as an HMAC secret."""
    claims = jwt.decode(fitting(running), options={"verify_signature": False})
    secret = b"0123456789abcdef0123456789abcdef"
    return jwt.encode(claims, secret, "HS256", headers={"typ": "grant+jwt"})


def unsigned(running: Serving) -> str:
    claims = jwt.decode(fitting(running), options={"verify_signature": False})
    return jwt.encode(claims, "", "none", headers={"typ": "grant+jwt"})


def expired(claims: dict[str, Any]) -> None:
    now = int(time.time())
    claims.update(iat=now - 40, exp=now - 10)


@dataclass(frozen=True)
class Row:
    token: Callable[[Serving], str | None]
    code: grpc.StatusCode
    reason: str
    request: Any = None
    identity: str = "service/skills"
    timeout_s: float | None = 5


ROWS = {
    "no grant": Row(lambda _: None, UNAUTHENTICATED, "GRANT_MISSING"),
    "no grant, an admin": Row(lambda _: None, UNAUTHENTICATED, "GRANT_MISSING", identity="admin"),
    "no grant, no deadline either": Row(lambda _: None, UNAUTHENTICATED, "GRANT_MISSING", timeout_s=None),
    "expired": Row(lambda r: forged(r, expired), UNAUTHENTICATED, "GRANT_EXPIRED"),
    "no token at all": Row(lambda _: "nonsense", UNAUTHENTICATED, "GRANT_INVALID"),
    "other key": Row(other_key, UNAUTHENTICATED, "GRANT_INVALID"),
    "other algorithm": Row(symmetric, UNAUTHENTICATED, "GRANT_INVALID"),
    "algorithm none": Row(unsigned, UNAUTHENTICATED, "GRANT_INVALID"),
    "cut": Row(lambda r: fitting(r)[:-2], UNAUTHENTICATED, "GRANT_INVALID"),
    "other type": Row(lambda r: forged(r, having(), typ="JWT"), UNAUTHENTICATED, "GRANT_INVALID"),
    "other issuer": Row(
        lambda r: forged(r, having(iss="spiffe://nightshift.local/service/lab")),
        UNAUTHENTICATED,
        "GRANT_INVALID",
    ),
    "no expiry": Row(lambda r: forged(r, without("exp")), UNAUTHENTICATED, "GRANT_INVALID"),
    "no jti": Row(lambda r: forged(r, without("jti")), UNAUTHENTICATED, "GRANT_INVALID"),
    "empty jti": Row(lambda r: forged(r, having(jti="")), UNAUTHENTICATED, "GRANT_INVALID"),
    "no thumbprint": Row(lambda r: forged(r, having(cnf={})), UNAUTHENTICATED, "GRANT_INVALID"),
    "lives too long": Row(
        lambda r: forged(r, lambda claims: claims.update(exp=claims["iat"] + 3600)),
        UNAUTHENTICATED,
        "GRANT_INVALID",
    ),
    "from the future": Row(
        lambda r: forged(r, having(iat=time.time() + 3600, exp=time.time() + 3610)),
        UNAUTHENTICATED,
        "GRANT_INVALID",
    ),
    "unknown tier": Row(lambda r: forged(r, having(tier="GOD")), UNAUTHENTICATED, "GRANT_INVALID"),
    "bound tier, no arguments": Row(lambda r: forged(r, without("arg")), UNAUTHENTICATED, "GRANT_INVALID"),
    "other audience": Row(lambda r: fitting(r, audience="trainer"), DENIED, "GRANT_SCOPE"),
    "other method": Row(lambda r: fitting(r, methods=[f"{LAB}/RejectProposal"]), DENIED, "GRANT_SCOPE"),
    "other skill": Row(lambda r: fitting(r, skill="rollback"), DENIED, "GRANT_SUBJECT"),
    "stolen": Row(fitting, DENIED, "GRANT_SUBJECT", identity="admin"),
    "stolen by a service": Row(fitting, DENIED, "GRANT_SUBJECT", identity="service/trainer"),
    "tier too low": Row(lambda r: fitting(r, tier=Tier.CONFIRM), DENIED, "TIER_INSUFFICIENT"),
    "tier far too low": Row(lambda r: fitting(r, tier=Tier.AUTO), DENIED, "TIER_INSUFFICIENT"),
    "other arguments": Row(
        fitting, DENIED, "GRANT_ARGS", request=lab_pb.PromoteProposalRequest(name="proposals/b", etag="1")
    ),
    "old fence": Row(lambda r: fitting(r, fence=0, on_purpose=False), PRECONDITION, "PREEMPTED"),
    "no deadline": Row(fitting, grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED", timeout_s=None),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
async def test_refused(row: Row, tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, servicer):
        error = await refusal(
            promote(
                running,
                row.token(running),
                row.request or REQUEST,
                identity=row.identity,
                timeout_s=row.timeout_s,
            )
        )
        assert (error.code, error.reason) == (row.code, row.reason)
        assert servicer.promoted == 0
        assert running.hub is not None
        assert running.hub.works() == []


async def test_the_grant_is_checked_before_the_bytes(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, _):
        call: Any = running.channel("service/skills").unary_unary(f"/{PROMOTE}")
        assert (await refusal(call(b"\xff\xff", timeout=5))).reason == "GRANT_MISSING"
        fits = grant_metadata(fitting(running))
        assert (await refusal(call(b"\xff\xff", metadata=fits))).reason == "DEADLINE_REQUIRED"
        assert (await refusal(call(b"\xff\xff", timeout=5, metadata=fits))).reason == "MALFORMED_REQUEST"
        # A field that this version does not know would act unseen by the digest.
        unknown = REQUEST.SerializeToString() + b"\xf8\x3f\x01"
        assert (await refusal(call(unknown, timeout=5, metadata=fits))).reason == "FIELD_UNKNOWN"


async def test_a_retry_gets_the_stored_answer_and_other_arguments_are_a_replay(
    tmp_path: Path, db: Database
) -> None:
    async with lab(tmp_path / "home", db) as (running, servicer):
        token = fitting(running, jti="jti-1")
        first = await promote(running, token)
        assert await promote(running, token) == first
        # Minted again for the same call, as skills does when it lost the answer and the grant has expired.
        assert await promote(running, fitting(running, jti="jti-1")) == first
        assert servicer.promoted == 1
        other = lab_pb.PromoteProposalRequest(name="proposals/b", etag="1")
        replay = running.mint(PROMOTE, other, skill="promote_config", tier=Tier.MANUAL, jti="jti-1")
        error = await refusal(promote(running, replay, other))
        assert (error.code, error.reason) == (DENIED, "GRANT_REPLAYED")
        assert servicer.promoted == 1
        events = db.read_sync(Outbox("lab").events)
        assert [event.actor for event in events] == ["person/admin/tester"]


async def test_twenty_copies_at_once_have_one_effect(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, servicer):
        token = fitting(running)
        answers = await asyncio.gather(*(promote(running, token) for _ in range(20)))
        assert len({answer.name for answer in answers}) == 1
        assert servicer.promoted == 1


async def test_closed_after_a_start_until_the_fence_is_told(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, _):
        assert running.hub is not None
        await running.hub.gate.raise_to(41)
    async with lab(tmp_path / "home", db, open_gate=False) as (running, _):
        assert running.hub is not None
        assert running.hub.gate.highest == 41
        background = fitting(running, fence=41, on_purpose=False)
        error = await refusal(promote(running, background))
        assert (error.code, error.reason) == (PRECONDITION, "PREEMPTED")
        assert error.retry_after_s == 1.0
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        stale = await refusal(control.RenewLease(control_pb.RenewLeaseRequest(fence=40), timeout=5))
        assert (stale.code, stale.reason) == (PRECONDITION, "PREEMPTED")
        renewed = await control.RenewLease(control_pb.RenewLeaseRequest(fence=41), timeout=5)
        assert renewed.fence == 41
        await promote(running, background)


async def test_a_person_passes_the_fence_but_not_from_before_a_start(tmp_path: Path, db: Database) -> None:
    """Whoever died may have been told to stop everything, and it was not durable yet."""
    async with lab(tmp_path / "home", db, open_gate=False) as (running, servicer):
        assert running.hub is not None
        on_its_way = fitting(running, fence=6, on_purpose=True)
        error = await refusal(promote(running, on_its_way))
        assert (error.reason, error.retry_after_s) == ("PREEMPTED", 1.0)
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        await control.RenewLease(control_pb.RenewLeaseRequest(fence=7), timeout=5)
        assert (await refusal(promote(running, on_its_way))).reason == "PREEMPTED"
        assert servicer.promoted == 0
        granted_since = fitting(running, fence=7, on_purpose=True)
        # A user comes: later fences are no person's business.
        await control.RenewLease(control_pb.RenewLeaseRequest(fence=8), timeout=5)
        await promote(running, granted_since)
        assert servicer.promoted == 1


async def test_a_stop_ends_background_calls_and_spares_a_persons(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, servicer):
        servicer.hold = asyncio.Event()
        background = asyncio.create_task(
            refusal(promote(running, fitting(running, fence=1, on_purpose=False, skill_run="skillRuns/b")))
        )
        person = asyncio.create_task(promote(running, fitting(running, skill_run="skillRuns/p")))
        assert running.hub is not None
        while len(running.hub.works()) < 2:
            await asyncio.sleep(0.01)
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        answers = [
            answer async for answer in control.Stop(control_pb.StopRequest(fence=2, cause="user"), timeout=5)
        ]
        phases = [answer.phase for answer in answers]
        assert phases == [
            control_pb.STOP_PHASE_DELIVERED,
            control_pb.STOP_PHASE_EXITED,
            control_pb.STOP_PHASE_DONE,
        ]
        assert answers[0].running_count == 1
        assert not answers[1].killed
        times = [answer.boottime.ToNanoseconds() for answer in answers]
        assert times == sorted(times)
        assert times[-1] - times[0] < 500e6
        error = await background
        assert (error.code, error.reason) == (PRECONDITION, "PREEMPTED")
        assert running.hub.skill_runs() == ["skillRuns/p"]
        assert FenceGate(db, running.clock).highest == 2
        late = await refusal(promote(running, fitting(running, fence=1, on_purpose=False)))
        assert late.reason == "PREEMPTED"
        servicer.hold.set()
        assert (await person).name.startswith("promotions/")


async def test_a_stop_of_everything_reaches_a_person_too(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, servicer):
        servicer.hold = asyncio.Event()
        person = asyncio.create_task(refusal(promote(running, fitting(running))))
        assert running.hub is not None
        while not running.hub.works():
            await asyncio.sleep(0.01)
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        request = control_pb.StopRequest(fence=2, cause="lock", on_purpose_too=True)
        assert [answer.phase async for answer in control.Stop(request, timeout=5)][
            -1
        ] == control_pb.STOP_PHASE_DONE
        assert (await person).reason == "PREEMPTED"


async def test_a_grant_from_before_a_stop_of_everything_is_void(tmp_path: Path, db: Database) -> None:
    """What was on its way when the lock was set does not arrive later, not even after a restart."""
    request = control_pb.StopRequest(fence=2, cause="lock", on_purpose_too=True)
    async with lab(tmp_path / "home", db) as (running, servicer):
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        on_its_way = fitting(running, fence=1)
        async for _ in control.Stop(request, timeout=5):
            pass
        error = await refusal(promote(running, on_its_way))
        assert (error.reason, servicer.promoted) == ("PREEMPTED", 0)
    async with lab(tmp_path / "home", db) as (running, servicer):
        assert running.fence == 2
        assert (await refusal(promote(running, fitting(running, fence=1)))).reason == "PREEMPTED"
        # Whatever is commanded after the lock was lifted carries the fence of that time.
        assert (await promote(running, fitting(running, fence=2))).name.startswith("promotions/")
        assert servicer.promoted == 1
    async with lab(tmp_path / "other", db) as (running, _):
        # A user who comes voids no person's grant.
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        async for _ in control.Stop(control_pb.StopRequest(fence=9, cause="user"), timeout=5):
            pass
        assert (await promote(running, fitting(running, fence=2))).name.startswith("promotions/")


async def test_a_late_stop_of_everything_voids_what_was_before_it_and_nothing_since(
    tmp_path: Path, db: Database
) -> None:
    """A stop may overtake another: the one that comes late, or from a skills that was replaced, counts."""
    stop_everything = control_pb.StopRequest(fence=2, cause="takeover", on_purpose_too=True)
    async with lab(tmp_path / "home", db) as (running, servicer):
        control = running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
        await control.RenewLease(control_pb.RenewLeaseRequest(fence=5), timeout=5)
        servicer.hold = asyncio.Event()
        since = asyncio.create_task(promote(running, fitting(running, fence=2)))
        assert running.hub is not None
        while not running.hub.works():
            await asyncio.sleep(0.01)
        phases = [answer.phase async for answer in control.Stop(stop_everything, timeout=5)]
        assert phases == [control_pb.STOP_PHASE_DELIVERED, control_pb.STOP_PHASE_DONE]
        servicer.hold.set()
        assert (await since).name.startswith("promotions/")
        assert (await refusal(promote(running, fitting(running, fence=1)))).reason == "PREEMPTED"
        assert running.hub.gate.highest == 5
    # It is durable as well.
    async with lab(tmp_path / "home", db, open_gate=False) as (running, servicer):
        assert (await refusal(promote(running, fitting(running, fence=1)))).reason == "PREEMPTED"
        assert servicer.promoted == 0


async def test_a_stop_between_begin_and_commit_leaves_nothing(tmp_path: Path, db: Database) -> None:
    """The fence is read again inside the transaction."""
    async with lab(tmp_path / "home", db) as (running, servicer):
        assert running.hub is not None
        gate = running.hub.gate
        servicer.hold = asyncio.Event()
        call = asyncio.create_task(refusal(promote(running, fitting(running, fence=1, on_purpose=False))))
        while not running.hub.works():
            await asyncio.sleep(0.01)
        assert gate.raise_in_memory(7)
        servicer.hold.set()
        assert (await call).reason == "PREEMPTED"
        assert servicer.promoted == 0
        assert db.read_sync(Outbox("lab").events) == []


async def test_control_methods_are_for_skills_alone(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, _):
        for identity in ("admin", "platform/default", "service/trainer"):
            stub = running.stub(control_grpc.StopServiceStub, identity, control=True)
            error = await refusal(stub.RenewLease(control_pb.RenewLeaseRequest(fence=9), timeout=5))
            assert (error.code, error.reason) == (DENIED, "CALLER_NOT_ALLOWED")
        assert running.hub is not None
        assert running.hub.gate.highest == 1


async def test_auto_grants_serve_many_calls_within_their_minute(tmp_path: Path, db: Database) -> None:
    class Experience(experience_grpc.ExperienceServiceServicer):
        calls = 0

        async def Aggregate(self, request: Any, context: Any) -> experience_pb.AggregateResponse:
            assert current_call().effect().single_use is False
            assert db.read_sync(current_call().effect().begin) is None
            self.calls += 1
            return experience_pb.AggregateResponse()

    servicer = Experience()  # type: ignore[abstract]
    name = "nightshift.experience.v1.ExperienceService"
    services = [(experience_grpc.add_ExperienceServiceServicer_to_server, servicer, name)]
    async with serving("experience", services, home=tmp_path / "home", db=db) as running:
        token = running.mint(f"{name}/Aggregate", skill="aggregate_experience", tier=Tier.AUTO)
        for _ in range(3):
            await running.act(
                experience_grpc.ExperienceServiceStub,
                "Aggregate",
                experience_pb.AggregateRequest(),
                skill="aggregate_experience",
                token=token,
            )
        assert servicer.calls == 3
        assert running.hub is not None
        running.hub.gate.raise_in_memory(5)
        error = await refusal(
            running.act(
                experience_grpc.ExperienceServiceStub,
                "Aggregate",
                experience_pb.AggregateRequest(),
                skill="aggregate_experience",
                token=token,
            )
        )
        assert error.reason == "PREEMPTED"


async def test_outbox_is_read_over_the_control_port(tmp_path: Path, db: Database) -> None:
    async with lab(tmp_path / "home", db) as (running, _):
        await promote(running, fitting(running))
        stub = running.stub(control_grpc.OutboxServiceStub, "service/skills", control=True)
        answer = await stub.ListOutboxEvents(control_pb.ListOutboxEventsRequest(), timeout=5)
        assert [event.kind for event in answer.outbox_events] == ["config.promoted"]
        assert answer.last_seq == 1
        event = answer.outbox_events[0]
        assert abs(event.event_time.ToDatetime(dt.UTC) - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        assert '"kind":"config.promoted"' in event.canonical
        nothing = await stub.ListOutboxEvents(control_pb.ListOutboxEventsRequest(after_seq=1), timeout=5)
        assert not nothing.outbox_events
        error = await refusal(
            stub.ListOutboxEvents(control_pb.ListOutboxEventsRequest(after_seq=-1), timeout=5)
        )
        assert error.reason == "FIELD_INVALID"

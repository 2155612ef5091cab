"""Every "Wire" row of the list of bad inputs, against a real server over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Value

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.experience.v1 import experience_service_pb2_grpc as experience_grpc
from nightshift.monitor.v1 import monitor_service_pb2 as monitor_pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as monitor_grpc
from nightshift.monitor.v1 import resources_pb2 as monitor_resources
from nightshift.skills.v1 import resources_pb2 as skills_resources
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift.skills.v1 import skills_service_pb2_grpc as skills_grpc
from nightshift_kit.errors import EnumRequired, EnumUnknown, FieldUnknown, FilterInvalid, PageSizeInvalid
from nightshift_kit.pages import decode_token, page_size, query_digest
from nightshift_kit.rpc.channels import RichError, decode_error
from nightshift_kit.rpc.decoding import decode
from nightshift_kit.rpc.policies import PolicyMissing
from nightshift_kit.rpc.traffic import Limits
from tests.support.servers import Serving, serving

MONITOR = "nightshift.monitor.v1.MonitorService"
SKILLS = "nightshift.skills.v1.SkillsService"
EXPERIENCE = "nightshift.experience.v1.ExperienceService"


class Monitor(monitor_grpc.MonitorServiceServicer):
    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.waiting = 0

    async def GetStatus(self, request: Any, context: Any) -> monitor_resources.Status:
        return monitor_resources.Status()

    async def GetProbe(self, request: Any, context: Any) -> monitor_resources.Probe:
        self.waiting += 1
        await self.release.wait()
        return monitor_resources.Probe(name=request.name)

    async def ListProbes(self, request: Any, context: Any) -> monitor_pb.ListProbesResponse:
        page_size(request.page_size)
        if request.page_token:
            decode_token(request.page_token, query_digest(parent="probes"), [str])
        return monitor_pb.ListProbesResponse()

    async def ListProbeResults(self, request: Any, context: Any) -> monitor_pb.ListProbeResultsResponse:
        if request.parent == "filter":
            raise FilterInvalid.at("filter", "does not parse")
        if request.parent == "mask":
            raise FieldUnknown.at("update_mask", "no such field: colour")
        raise KeyError("a secret of the inside")

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[monitor_pb.WatchStatusResponse]:
        yield monitor_pb.WatchStatusResponse(seq=1)
        await self.release.wait()


class Skills(skills_grpc.SkillsServiceServicer):
    async def PlanSkill(self, request: Any, context: Any) -> skills_pb.PlanSkillResponse:
        return skills_pb.PlanSkillResponse(nothing_to_do="nothing")

    async def DecideApproval(self, request: Any, context: Any) -> skills_resources.Approval:
        if not request.decision:
            raise EnumRequired.at("decision", "approve or deny")
        return skills_resources.Approval(name=request.name)

    async def StreamActivity(self, requests: Any, context: Any) -> skills_pb.ReportActivityResponse:
        count = 0
        async for request in requests:
            count += len(request.reports)
        return skills_pb.ReportActivityResponse(fence=count)


@contextlib.asynccontextmanager
async def monitor(home: Path, **options: Any) -> AsyncIterator[tuple[Serving, Monitor]]:
    servicer = Monitor()  # type: ignore[abstract]
    services = [(monitor_grpc.add_MonitorServiceServicer_to_server, servicer, MONITOR)]
    async with serving("monitor", services, home=home, **options) as running:
        yield running, servicer
        servicer.release.set()


@contextlib.asynccontextmanager
async def skills(home: Path) -> AsyncIterator[Serving]:
    servicer = Skills()  # type: ignore[abstract]
    services = [(skills_grpc.add_SkillsServiceServicer_to_server, servicer, SKILLS)]
    async with serving("skills", services, home=home) as running:
        yield running


async def refusal(call: Any) -> RichError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode_error(caught.value)


def raw(channel: grpc.aio.Channel, path: str) -> Callable[..., Any]:
    return channel.unary_unary(path, request_serializer=None, response_deserializer=None)


def nested(levels: int) -> bytes:
    """A Value within lists within lists, deeper than protobuf's own runtime would build."""

    def framed(tag: int, body: bytes) -> bytes:
        size, length = len(body), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([tag]) + length + bytes([size]) + body

    value = Value(null_value=0).SerializeToString()  # type: ignore[arg-type]
    for _ in range(levels):
        value = framed(0x32, framed(0x0A, value))
    return framed(0x12, framed(0x0A, framed(0x0A, b"key") + framed(0x12, value)))


@dataclass(frozen=True)
class Row:
    path: str
    data: bytes
    reason: str
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    identity: str = "admin"
    fields: tuple[str, ...] = field(default=())


ROWS = {
    "garbage bytes": Row(f"/{SKILLS}/PlanSkill", b"\xff\xff\xff\xff", "MALFORMED_REQUEST"),
    "truncated": Row(f"/{SKILLS}/PlanSkill", b"\x0a\x7fshort", "MALFORMED_REQUEST"),
    "bad UTF-8": Row(f"/{SKILLS}/PlanSkill", b"\x0a\x02\xff\xfe", "MALFORMED_REQUEST"),
    "too deep": Row(f"/{SKILLS}/PlanSkill", nested(200), "NESTING_TOO_DEEP"),
    "unknown enum": Row(
        f"/{SKILLS}/DecideApproval", b"\x0a\x01a\x10\x63", "ENUM_UNKNOWN", fields=("decision",)
    ),
    "negative enum": Row(
        f"/{SKILLS}/DecideApproval",
        b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "ENUM_UNKNOWN",
        fields=("decision",),
    ),
    "unspecified enum": Row(f"/{SKILLS}/DecideApproval", b"", "ENUM_REQUIRED", fields=("decision",)),
    "garbage from nobody who may call": Row(
        f"/{SKILLS}/DecideApproval",
        b"\xff\xff",
        "ROLE_INSUFFICIENT",
        grpc.StatusCode.PERMISSION_DENIED,
        identity="viewer",
    ),
    "a method that is not there": Row(f"/{SKILLS}/Explode", b"", "", grpc.StatusCode.UNIMPLEMENTED),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
async def test_bytes_on_the_wire(row: Row, tmp_path: Path) -> None:
    async with skills(tmp_path / "home") as running:
        error = await refusal(raw(running.channel(row.identity), row.path)(row.data, timeout=5))
    assert (error.code, error.reason) == (row.code, row.reason)
    assert tuple(violation.field for violation in error.violations) == row.fields


async def test_deep_but_allowed_nesting_is_read(tmp_path: Path) -> None:
    async with skills(tmp_path / "home") as running:
        answer = await raw(running.channel(), f"/{SKILLS}/PlanSkill")(nested(40), timeout=5)
    assert skills_pb.PlanSkillResponse.FromString(answer).nothing_to_do == "nothing"


async def test_malformed_message_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    good = skills_pb.StreamActivityRequest(reports=[skills_pb.ReportActivityRequest(kind="request")])

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield good.SerializeToString()
        yield b"\x0a\xff\xff"
        yield good.SerializeToString()

    async with skills(tmp_path / "home") as running:
        stream: Any = running.channel("platform/default").stream_unary(f"/{SKILLS}/StreamActivity")
        error = await refusal(stream(messages(), timeout=5))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")

        async def fine() -> AsyncIterator[bytes]:
            yield good.SerializeToString()
            yield good.SerializeToString()

        answer = await stream(fine(), timeout=5)
        assert skills_pb.ReportActivityResponse.FromString(answer).fence == 2


async def test_an_acting_service_without_means_to_check_grants_is_not_built(tmp_path: Path) -> None:
    class Experience(experience_grpc.ExperienceServiceServicer):
        pass

    servicer = Experience()  # type: ignore[abstract]
    services = [(experience_grpc.add_ExperienceServiceServicer_to_server, servicer, EXPERIENCE)]
    with pytest.raises(PolicyMissing, match="cannot check its grants"):
        async with serving("experience", services, home=tmp_path / "home"):
            pass


def test_an_unknown_enum_deep_inside_is_named_by_its_path() -> None:
    run = experience_pb.RecordRunRequest().run
    number = next(
        field.number
        for field in run.DESCRIPTOR.fields
        if field.enum_type is not None and not field.is_repeated
    )
    # A varint field of that number with a value that no enum has.
    key = number << 3
    tag = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    run.MergeFromString(tag + b"\x8f\x4e")
    request = experience_pb.RecordRunRequest(run=run)
    with pytest.raises(EnumUnknown) as caught:
        decode(experience_pb.RecordRunRequest, request.SerializeToString())
    (violation,) = caught.value.violations
    assert violation.field.startswith("run.")


async def test_oversize_message_and_metadata(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, _):
        call = raw(running.channel(), f"/{MONITOR}/GetProbe")
        error = await refusal(call(b"\x0a" + b"x" * (4 * 1024 * 1024 + 1), timeout=5))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        error = await refusal(
            running.stub(monitor_grpc.MonitorServiceStub).GetStatus(
                monitor_pb.GetStatusRequest(), timeout=5, metadata=(("filler", "x" * 17000),)
            )
        )
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await running.stub(monitor_grpc.MonitorServiceStub).GetStatus(
            monitor_pb.GetStatusRequest(), timeout=5, metadata=(("filler", "x" * 15000),)
        )


@pytest.mark.parametrize(
    ("method", "request_message", "reason", "path"),
    [
        ("ListProbes", monitor_pb.ListProbesRequest(page_size=-1), PageSizeInvalid.reason, "page_size"),
        (
            "ListProbes",
            monitor_pb.ListProbesRequest(page_token="foreign"),
            "PAGE_TOKEN_INVALID",
            "page_token",
        ),
        ("ListProbeResults", monitor_pb.ListProbeResultsRequest(parent="filter"), "FILTER_INVALID", "filter"),
        (
            "ListProbeResults",
            monitor_pb.ListProbeResultsRequest(parent="mask"),
            "FIELD_UNKNOWN",
            "update_mask",
        ),
    ],
)
async def test_field_errors_carry_their_path(
    method: str, request_message: Any, reason: str, path: str, tmp_path: Path
) -> None:
    async with monitor(tmp_path / "home") as (running, _):
        error = await refusal(
            getattr(running.stub(monitor_grpc.MonitorServiceStub), method)(request_message, timeout=5)
        )
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [violation.field for violation in error.violations] == [path]


async def test_overload_says_when_to_try_again(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home", limits=Limits(calls=3, streams=1)) as (running, servicer):
        stub = running.stub(monitor_grpc.MonitorServiceStub)
        calls = [stub.GetProbe(monitor_pb.GetProbeRequest(name=f"probes/{n}"), timeout=5) for n in range(3)]
        while servicer.waiting < 3:
            await asyncio.sleep(0.01)
        error = await refusal(stub.GetStatus(monitor_pb.GetStatusRequest(), timeout=5))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        watch = stub.WatchStatus(monitor_pb.WatchStatusRequest())
        assert (await watch.read()).seq == 1
        second = stub.WatchStatus(monitor_pb.WatchStatusRequest())
        assert (await refusal(second.read())).reason == "OVERLOADED"
        servicer.release.set()
        assert [(await call).name for call in calls] == ["probes/0", "probes/1", "probes/2"]
        await stub.GetStatus(monitor_pb.GetStatusRequest(), timeout=5)


async def test_draining_lets_running_calls_end_and_refuses_new_ones(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, servicer):
        stub = running.stub(monitor_grpc.MonitorServiceStub)
        call = stub.GetProbe(monitor_pb.GetProbeRequest(name="probes/a"), timeout=10)
        watch = stub.WatchStatus(monitor_pb.WatchStatusRequest())
        assert (await watch.read()).seq == 1
        while not servicer.waiting:
            await asyncio.sleep(0.01)
        assert running.server is not None
        stopping = asyncio.create_task(running.server.stop(5))
        await asyncio.sleep(0.05)
        error = await refusal(stub.GetStatus(monitor_pb.GetStatusRequest(), timeout=5))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert error.retry_after_s == 1.0
        # Watchers are told soon; they can resume elsewhere.
        assert (await refusal(watch.read())).reason == "DRAINING"
        servicer.release.set()
        assert (await call).name == "probes/a"
        assert await stopping == 1


async def test_draining_cuts_what_outlives_the_grace(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, servicer):
        stub = running.stub(monitor_grpc.MonitorServiceStub)
        call = stub.GetProbe(monitor_pb.GetProbeRequest(name="probes/a"), timeout=10)
        pending = asyncio.ensure_future(refusal(call))
        while not servicer.waiting:
            await asyncio.sleep(0.01)
        assert running.server is not None
        assert await running.server.stop(0.3) == 1
        assert (await pending).reason == "DRAINING"


async def test_unexpected_exceptions_leak_nothing(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, _):
        error = await refusal(
            running.stub(monitor_grpc.MonitorServiceStub).ListProbeResults(
                monitor_pb.ListProbeResultsRequest(parent="boom"), timeout=5
            )
        )
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in error.message
    assert error.metadata["reference"] in error.message


async def test_reads_without_a_deadline_are_served(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, _):
        call = running.stub(monitor_grpc.MonitorServiceStub).GetStatus(monitor_pb.GetStatusRequest())
        await call


async def test_a_method_the_servicer_lacks(tmp_path: Path) -> None:
    async with monitor(tmp_path / "home") as (running, _):
        error = await refusal(
            running.stub(monitor_grpc.MonitorServiceStub).ListGpus(monitor_pb.ListGpusRequest(), timeout=5)
        )
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNIMPLEMENTED")

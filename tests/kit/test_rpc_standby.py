"""A replica that stands by: well, not serving, and every call refused with words that help."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift_kit.errors import Code, NightshiftError
from nightshift_kit.processes.table import find_free_base, taken_ports
from nightshift_kit.rpc.channels import channel_to, decode_error
from nightshift_kit.rpc.serve import Wiring, serve
from nightshift_kit.rpc.tls import create_credential, ensure_home, load_credential
from nightshift_kit.settings import PlaneSettings

MONITOR = (pb_grpc.add_MonitorServiceServicer_to_server, "nightshift.monitor.v1.MonitorService")
HEALTH = health_pb2.HealthCheckResponse


class Elsewhere(NightshiftError):
    code = Code.UNAVAILABLE
    reason = "ELSEWHERE"


class Broken(NightshiftError):
    code = Code.UNAVAILABLE
    reason = "BROKEN"


class Monitor(pb_grpc.MonitorServiceServicer):
    async def GetIdleness(self, request: Any, context: Any) -> Any:
        from nightshift.monitor.v1 import resources_pb2

        return resources_pb2.Idleness(idle=True)


class Standing:
    """A service that stands by until `turn` is set, on its own ports."""

    def __init__(self, home: Path) -> None:
        self.settings = PlaneSettings(home=home, port_base=find_free_base())
        ensure_home(self.settings)
        self.turn = asyncio.Event()
        self.stopped = asyncio.Event()
        self.wiring: Wiring | None = None
        self.order: list[str] = []
        self.task = asyncio.create_task(serve("monitor", self.settings, self.wire, stopped=self.stopped))

    async def wire(self, wiring: Wiring) -> None:
        self.wiring = wiring
        wiring.hold(lambda: self.order.append("held"))
        wiring.on_stop(lambda: self.order.append("stopped"))

        async def until() -> None:
            await self.turn.wait()

        await wiring.stand_by(
            until, refusal=lambda: Elsewhere("ask elsewhere", retry_after_s=2.0), main=[MONITOR]
        )
        self.order.append("leads")
        monitor_class: Any = Monitor
        wiring.add(MONITOR[0], monitor_class(), MONITOR[1])

    @asynccontextmanager
    async def channel(self, identity: str = "service/skills") -> AsyncIterator[grpc.aio.Channel]:
        address = f"127.0.0.1:{self.settings.port('monitor')}"
        async with channel_to(address, "monitor", load_credential(self.settings, identity)) as channel:
            yield channel

    async def health(self, channel: grpc.aio.Channel, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(
            health_pb2.HealthCheckRequest(service=service), timeout=20, wait_for_ready=True
        )
        return int(answer.status)


@pytest.fixture
async def standing(tmp_path: Path) -> AsyncIterator[Standing]:
    one = Standing(tmp_path / "home")
    yield one
    one.stopped.set()
    await asyncio.gather(one.task, return_exceptions=True)
    while one.settings.metrics_port("monitor") in taken_ports(one.settings.port_base):
        await asyncio.sleep(0.05)


async def test_a_standby_is_well_and_refuses_everything_until_it_leads(standing: Standing) -> None:
    async with standing.channel() as channel:
        assert await standing.health(channel) == HEALTH.NOT_SERVING
        assert await standing.health(channel, MONITOR[1]) == HEALTH.NOT_SERVING
        assert await standing.health(channel, "standby") == HEALTH.SERVING
        stub = pb_grpc.MonitorServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetIdleness(pb.GetIdlenessRequest(), timeout=5)
        error = decode_error(caught.value)
        assert (error.code, error.reason, error.message) == (
            grpc.StatusCode.UNAVAILABLE,
            "ELSEWHERE",
            "ask elsewhere",
        )
        assert error.retry_after_s == 2.0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchStatus(pb.WatchStatusRequest(), timeout=5):
                raise AssertionError("a standby tells nothing")
        assert decode_error(caught.value).reason == "ELSEWHERE"
        # Who may not call at all learns nothing of who leads.
        create_credential(standing.settings, "person", "viewer", "viewer")
        async with standing.channel("person/viewer") as other:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.MonitorServiceStub(other).RecordActivity(pb.RecordActivityRequest(), timeout=5)
            assert decode_error(caught.value).reason == "CALLER_NOT_ALLOWED"
    standing.turn.set()
    async with standing.channel() as channel:
        answer = await pb_grpc.MonitorServiceStub(channel).GetIdleness(
            pb.GetIdlenessRequest(), timeout=20, wait_for_ready=True
        )
        assert answer.idle
        assert await standing.health(channel) == HEALTH.SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await standing.health(channel, "standby")
        assert standing.wiring is not None
        await standing.wiring.say_healthy(False, "the test says so")
        assert await standing.health(channel) == HEALTH.NOT_SERVING
    standing.stopped.set()
    await standing.task
    assert standing.order == ["leads", "stopped", "held"]


async def test_a_standby_that_is_told_to_end_never_leads(standing: Standing) -> None:
    async with standing.channel() as channel:
        assert await standing.health(channel, "standby") == HEALTH.SERVING
    standing.stopped.set()
    await standing.task
    assert standing.order == ["stopped", "held"]


async def test_a_service_that_fails_ends_in_order_and_says_why(standing: Standing) -> None:
    standing.turn.set()
    async with standing.channel() as channel:
        while await standing.health(channel) != HEALTH.SERVING:
            await asyncio.sleep(0.02)
    assert standing.wiring is not None
    standing.wiring.fail(Broken("first"))
    standing.wiring.fail(Broken("second"))
    with pytest.raises(Broken, match="first"):
        await standing.task
    assert standing.order == ["leads", "stopped", "held"]

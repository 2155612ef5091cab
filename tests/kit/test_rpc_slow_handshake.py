"""A handshake that takes its time on a busy machine is waited for; both clients of ours, over mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift_client.line import open_channel
from nightshift_kit.rpc.channels import channel_to
from tests.support.servers import serving

# Longer than the pauses between two tries, far shorter than what a person would wait for.
HELD_S = 0.6


@asynccontextmanager
async def holding(port: int) -> AsyncIterator[int]:
    """A way to a server's port that lets nothing through at first; its own port."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await asyncio.sleep(HELD_S)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(inner_writer)
        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    server = await asyncio.start_server(through, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        for writer in writers:
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_call_waits_for_a_slow_handshake(tmp_path: Path) -> None:
    request = health_pb2.HealthCheckRequest()
    async with serving("lab", [], home=tmp_path / "home") as lab:
        credential = lab.credential("service/skills")
        async with holding(lab.port) as port:
            address = f"127.0.0.1:{port}"
            async with channel_to(address, "lab", credential) as channel:
                # Not "wait for ready": one failed try would be the call's end.
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=30)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            pems = (credential.certificate_pem, credential.key_pem, credential.ca_pem)
            with open_channel(address, "lab", *pems) as line:
                call = health_pb2_grpc.HealthStub(line).Check.future(request, timeout=30)
                waited = asyncio.Event()
                loop = asyncio.get_running_loop()
                call.add_done_callback(lambda _: loop.call_soon_threadsafe(waited.set))
                await waited.wait()
                assert call.code() is grpc.StatusCode.OK, call.details()

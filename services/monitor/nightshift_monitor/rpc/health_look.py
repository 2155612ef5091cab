"""gRPC health: asks grpc.health.v1 of a server, of the plane or elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2

from nightshift_kit.errors import NightshiftError
from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.observations import ProbeState, Seen

ChannelFactory = Callable[[str], grpc.aio.Channel]
"""Opens a channel to a target ``host:port`` or ``plane:SERVICE``."""

_METHOD = "/grpc.health.v1.Health/Check"


class HealthLook:
    """Asks for the health; keeps one channel a target, to spare a TLS handshake each look."""

    def __init__(self, open_channel: ChannelFactory) -> None:
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """UP for SERVING, DOWN for anything else."""
        try:
            if probe.target not in self._channels:
                self._channels[probe.target] = self._open_channel(probe.target)
        except (NightshiftError, OSError) as error:
            return Seen(ProbeState.DOWN, str(error))
        check = self._channels[probe.target].unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(
                health_pb2.HealthCheckRequest(service=probe.service), timeout=probe.timeout_s
            )
        except grpc.aio.AioRpcError as error:
            details = (error.details() or "").splitlines()
            return Seen(
                ProbeState.DOWN, f"{error.code().name}: {details[0][:200] if details else 'no details'}"
            )
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return Seen(ProbeState.UP if state == "SERVING" else ProbeState.DOWN, state)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

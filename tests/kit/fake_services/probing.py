"""A monitor with one quick, one slow and one endless method, as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from nightshift.monitor.v1 import monitor_service_pb2 as pb
from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.rpc.serve import Wiring, run


class Monitor(pb_grpc.MonitorServiceServicer):
    async def GetStatus(self, request: Any, context: Any) -> resources.Status:
        return resources.Status()

    async def GetProbe(self, request: Any, context: Any) -> resources.Probe:
        await asyncio.sleep(float(request.name))
        return resources.Probe(name=request.name)

    async def ListProbes(self, request: Any, context: Any) -> pb.ListProbesResponse:
        raise ValueError("a secret of the inside")

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        for seq in range(request.after_seq + 1, request.after_seq + 4):
            yield pb.WatchStatusResponse(seq=seq)


async def wire(wiring: Wiring) -> None:
    monitor = Monitor()  # type: ignore[abstract]
    name = "nightshift.monitor.v1.MonitorService"
    wiring.add(pb_grpc.add_MonitorServiceServicer_to_server, monitor, name)


if __name__ == "__main__":
    raise SystemExit(run("monitor", wire))

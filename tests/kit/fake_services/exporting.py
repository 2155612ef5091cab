"""A monitor that starts a child and answers with what that child was given."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.rpc.serve import Wiring, run
from tests.kit.fake_services.probing import Monitor

_LOOK = """
import os
descriptors = [os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd") if one != "3"]
print(sorted(os.environ), [one for one in descriptors if one.startswith("socket:")])
"""


class Parent(Monitor):
    async def GetProbe(self, request: Any, context: Any) -> resources.Probe:
        # Nothing is closed for it: what it gets is what the kernel hands on.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LOOK, stdout=asyncio.subprocess.PIPE, close_fds=False
        )
        told, _ = await child.communicate()
        return resources.Probe(name=told.decode())


async def wire(wiring: Wiring) -> None:
    name = "nightshift.monitor.v1.MonitorService"
    wiring.add(pb_grpc.add_MonitorServiceServicer_to_server, Parent(), name)  # type: ignore[abstract]


if __name__ == "__main__":
    raise SystemExit(run("monitor", wire))

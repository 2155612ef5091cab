"""A small plane of real servers with servicers of the tests' own, here or in a child process.

Run as a program it serves until it is killed: ``python -m tests.client.plane HOME``; it prints one line
when ready.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nightshift.experience.v1 import (
    experience_service_pb2,
    experience_service_pb2_grpc,
    resources_pb2,
    tuning_pb2,
)
from nightshift.skills.v1 import control_service_pb2_grpc, skills_service_pb2
from nightshift_kit.clock import SystemClock
from nightshift_kit.errors import AlreadyExists, Code, FieldInvalid, NightshiftError
from nightshift_kit.rpc.server import Server, ServerBuilder
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings

EXPERIENCE = "nightshift.experience.v1.ExperienceService"
CONTROL = "nightshift.skills.v1.ControlService"


class RunIdReused(AlreadyExists):
    """Other content under the same id."""

    reason = "RUN_ID_REUSED"


class Broken(NightshiftError):
    """Something inside that does not work."""

    code = Code.INTERNAL
    reason = "INTERNAL"


class Experience(experience_service_pb2_grpc.ExperienceServiceServicer):
    """Keeps runs and signals in memory, with the refusals of the contract that the client must know."""

    def __init__(self) -> None:
        self.runs: dict[str, resources_pb2.Run] = {}
        self.calls = 0
        self.feedback: list[resources_pb2.Feedback] = []
        self.asked: list[tuning_pb2.GetTunedSettingsRequest] = []

    async def RecordRun(
        self, request: experience_service_pb2.RecordRunRequest, context: Any
    ) -> resources_pb2.Run:
        self.calls += 1
        run = request.run
        if "broken" in run.name:
            raise Broken("stumbled over this one")
        if run.prompt == "refuse me":
            raise FieldInvalid.at("run.prompt", "refused by the test")
        known = self.runs.get(run.name)
        if known is not None and known != run:
            raise RunIdReused("other content")
        self.runs[run.name] = run
        return run

    async def GetTunedSettings(
        self, request: tuning_pb2.GetTunedSettingsRequest, context: Any
    ) -> tuning_pb2.TunedSettings:
        self.asked.append(request)
        if request.settings.mode == "broken":
            raise Broken("stumbled over this one")
        answer = tuning_pb2.TunedSettings(settings=request.settings, original_settings=request.settings)
        if request.skip_auto_tune or "mode" in request.explicit_fields:
            return answer
        answer.settings.mode, answer.auto_tuned = "3loop", True
        answer.tuned_fields.add(
            field="mode", original_value="2loop", tuned_value="3loop", explanation="33 % cheaper"
        )
        return answer

    async def RecordFeedback(
        self, request: experience_service_pb2.RecordFeedbackRequest, context: Any
    ) -> experience_service_pb2.RecordFeedbackResponse:
        if request.feedback not in self.feedback:
            self.feedback.append(request.feedback)
        return experience_service_pb2.RecordFeedbackResponse(run_known=request.feedback.run in self.runs)


class Control(control_service_pb2_grpc.ControlServiceServicer):
    """Remembers the reports."""

    def __init__(self) -> None:
        self.reports: list[skills_service_pb2.ReportActivityRequest] = []

    async def ReportActivity(
        self, request: skills_service_pb2.ReportActivityRequest, context: Any
    ) -> skills_service_pb2.ReportActivityResponse:
        self.reports.append(request)
        return skills_service_pb2.ReportActivityResponse(fence=1)


def only(add: Callable[[Any, Any], None], *methods: str) -> Callable[[Any, Any], None]:
    """The generated ``add_…_to_server`` for some of a service's methods."""

    class Chosen:
        def __init__(self, server: Any) -> None:
            self._server = server

        def add_generic_rpc_handlers(self, _: Any) -> None:
            """Said again by the method below."""

        def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
            self._server.add_registered_method_handlers(service, {name: handlers[name] for name in methods})

    def added(servicer: Any, server: Any) -> None:
        add(servicer, Chosen(server))

    return added


class Plane:
    """Experience and skills' control port on an event loop in a thread of their own."""

    def __init__(self, home: Path, *, ports: Mapping[str, int] | None = None) -> None:
        self.home = home
        self.settings = PlaneSettings(home=home)
        ensure_home(self.settings)
        self.experience = Experience()  # type: ignore[abstract]
        self.control = Control()  # type: ignore[abstract]
        self._ports = dict(ports or {})
        self._servers: list[Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        """Runs a coroutine on the plane's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def start(self, **more: tuple[Callable[[Any, Any], None], Any, str]) -> None:
        """Listens and writes endpoints.json; ``more`` adds services by name of the server."""
        services: dict[str, tuple[Callable[[Any, Any], None], Any, str]] = {
            "experience": (
                only(
                    experience_service_pb2_grpc.add_ExperienceServiceServicer_to_server,
                    "RecordRun",
                    "RecordFeedback",
                    "GetTunedSettings",
                ),
                self.experience,
                EXPERIENCE,
            ),
            "skills": (
                only(control_service_pb2_grpc.add_ControlServiceServicer_to_server, "ReportActivity"),
                self.control,
                CONTROL,
            ),
            **more,
        }

        async def serve() -> dict[str, int]:
            ports = {}
            for name, (add, servicer, full_name) in services.items():
                builder = ServerBuilder(
                    name, self.settings, clock=SystemClock(), port=self._ports.get(name, 0)
                )
                server = builder.add(add, servicer, full_name).build()
                ports[name] = await server.start()
                self._servers.append(server)
            return ports

        self._ports = self.run(serve())
        write_endpoints(self.home, self._ports)

    def stop(self) -> None:
        """Stops listening; ``start`` listens on the same ports again."""
        servers, self._servers = self._servers, []
        for server in servers:
            self.run(server.stop(0))

    def close(self) -> None:
        """Ends everything."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def write_endpoints(home: Path, ports: Mapping[str, int]) -> None:
    """endpoints.json for servers whose control port is their only one."""
    document = {
        "services": {
            name: {
                "address": f"127.0.0.1:{port}",
                "control_address": f"127.0.0.1:{port}",
                "metrics_address": "",
                "pid": os.getpid(),
            }
            for name, port in ports.items()
        },
        "insecure_loopback": False,
    }
    temporary = home / ".endpoints.json.part"
    temporary.write_text(json.dumps(document))
    temporary.replace(home / "endpoints.json")


if __name__ == "__main__":
    plane = Plane(Path(sys.argv[1]))
    plane.start()
    print("ready", flush=True)
    threading.Event().wait()

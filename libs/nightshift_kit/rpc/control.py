"""The control server: an event loop and a thread of its own, so that load elsewhere delays no stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import sqlalchemy as sa
import structlog
from google.protobuf.duration_pb2 import Duration

from nightshift.skills.v1 import control_service_pb2 as pb
from nightshift.skills.v1 import control_service_pb2_grpc as pb_grpc
from nightshift_kit.audit import Event, Outbox
from nightshift_kit.errors import AuditBroken, FieldInvalid
from nightshift_kit.pages import page_size
from nightshift_kit.rpc.server import AddToServer, Server, ServerBuilder
from nightshift_kit.rpc.stop import Phase, StopHub
from nightshift_kit.storage import Database

STOP_SERVICE = "nightshift.skills.v1.StopService"
OUTBOX_SERVICE = "nightshift.skills.v1.OutboxService"

_PHASES = {
    Phase.DELIVERED: pb.STOP_PHASE_DELIVERED,
    Phase.EXITED: pb.STOP_PHASE_EXITED,
    Phase.DONE: pb.STOP_PHASE_DONE,
    Phase.RELEASED: pb.STOP_PHASE_RELEASED,
}


class StopServicer(pb_grpc.StopServiceServicer):
    """Stop and RenewLease over a hub."""

    def __init__(self, hub: StopHub) -> None:
        self._hub = hub

    async def Stop(self, request: pb.StopRequest, context: Any) -> AsyncIterator[pb.StopResponse]:
        """See the proto."""
        async for event in self._hub.stop(
            request.fence,
            cause=request.cause or "user",
            on_purpose_too=request.on_purpose_too,
            skill_run=request.skill_run,
        ):
            boottime: Duration | None = None
            if event.boottime_ns:
                boottime = Duration()
                boottime.FromNanoseconds(event.boottime_ns)
            yield pb.StopResponse(
                phase=_PHASES[event.phase],
                work=event.work,
                killed=event.killed,
                running_count=event.running_count,
                boottime=boottime,
                detail=event.detail,
            )

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        """See the proto."""
        fence, skill_runs = await self._hub.renew(request.fence, request.skill_runs)
        return pb.RenewLeaseResponse(fence=fence, skill_runs=skill_runs)


class OutboxServicer(pb_grpc.OutboxServiceServicer):
    """ListOutboxEvents over a service's audit outbox."""

    def __init__(self, db: Database, outbox: Outbox) -> None:
        self._db = db
        self._outbox = outbox

    async def ListOutboxEvents(
        self, request: pb.ListOutboxEventsRequest, context: Any
    ) -> pb.ListOutboxEventsResponse:
        """See the proto."""
        limit = page_size(request.page_size, default=500)
        if request.after_seq < 0:
            raise FieldInvalid.at("after_seq", "must not be negative")
        events, last_seq = await self._db.read(self._page, request.after_seq, limit)
        return pb.ListOutboxEventsResponse(outbox_events=map(_render, events), last_seq=last_seq)

    def _page(self, connection: sa.Connection, after_seq: int, limit: int) -> tuple[list[Event], int]:
        return self._outbox.events(connection, after_seq, limit), self._outbox.last_seq(connection)


def _render(event: Event) -> pb.OutboxEvent:
    try:
        return _rendered(event)
    except (ValueError, TypeError, RecursionError) as error:
        raise AuditBroken(
            f"outbox {event.service}, event {event.seq}: a column holds what is never written there",
            metadata={"source": str(event.service), "source_seq": str(event.seq)},
        ) from error


def _rendered(event: Event) -> pb.OutboxEvent:
    rendered = pb.OutboxEvent(
        seq=event.seq,
        kind=event.kind,
        actor=event.actor,
        subject=event.subject,
        previous_hash=event.previous_hash,
        hash=event.hash,
        canonical=event.canonical,
    )
    rendered.event_time.FromDatetime(event.at)
    rendered.payload.update(event.fields)
    return rendered


def control_services(hub: StopHub, db: Database, outbox: Outbox) -> tuple[tuple[AddToServer, Any, str], ...]:
    """What every acting service serves on its control port, as arguments of `ServerBuilder.add`."""
    return (
        (pb_grpc.add_StopServiceServicer_to_server, StopServicer(hub), STOP_SERVICE),
        outbox_service(db, outbox),
    )


def outbox_service(db: Database, outbox: Outbox) -> tuple[AddToServer, Any, str]:
    """What a service serves there that is audited and does not act."""
    return pb_grpc.add_OutboxServiceServicer_to_server, OutboxServicer(db, outbox), OUTBOX_SERVICE


class ControlThread:
    """Runs a server, and what belongs beside it, on a loop in a thread.

    Args:
        make: Makes the builder; called on the thread's loop.
        background: Coroutine functions that run beside the server until it stops.
        name: Of the thread.
        standing_by: As for `Server.start`.
    """

    def __init__(
        self,
        make: Callable[[], ServerBuilder | Awaitable[ServerBuilder]],
        *,
        background: list[Callable[[], Coroutine[Any, Any, None]]] | None = None,
        name: str = "control",
        standing_by: bool = False,
    ) -> None:
        self._make = make
        self._standing_by = standing_by
        self._background = background or []
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._stop: asyncio.Event | None = None
        self._grace_s = 1.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._logger: Any = structlog.get_logger()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.server: Server | None = None

    def start(self) -> int:
        """Starts and waits until it listens. Returns the port; raises what kept it from listening."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        assert self.server is not None
        return self.server.port

    def stop(self, grace_s: float = 1.0) -> None:
        """Stops and waits for the thread. Harmless where it does not run."""
        if self.loop is None or not self._thread.is_alive():
            return
        self._grace_s = grace_s
        assert self._stop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in start()
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        made = self._make()
        builder = await made if isinstance(made, Awaitable) else made
        self.server = builder.build()
        await self.server.start(standing_by=self._standing_by)
        tasks = [asyncio.create_task(work()) for work in self._background]
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.server.stop(self._grace_s)
